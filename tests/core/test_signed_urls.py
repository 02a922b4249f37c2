"""Signatures of object stores in URLs: which parameters belong to one, and which stay."""

from __future__ import annotations

import pytest

from kling_async import ConfigurationError, Job, KlingSession
from kling_async._core import signed_urls
from kling_async._core.content import RULES, Identity, content_of, recalled, same_but_for_signatures
from kling_async._core.signed_urls import without_parameters, without_signature

PICTURE = "https://pictures.example/a%20b/face.png"

SIGNATURES = {
    "S3, version 4": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F20270115%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20270115T080000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
    "&X-Amz-Security-Token=t&X-Amz-Signature={}",
    "S3, lower case": "x-amz-algorithm=AWS4-HMAC-SHA256&x-amz-credential=AK&x-amz-date=1&x-amz-signature={}",
    "S3, version 2": "AWSAccessKeyId=AK&Expires=1800000{}&Signature=a%2Bb%3D&x-amz-security-token=t",
    "Google, version 4": "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=me%40p.iam.gserviceaccount.com"
    "%2F20270115%2Fauto%2Fstorage%2Fgoog4_request&X-Goog-Date=20270115T080000Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host"
    "&X-Goog-Signature={}",
    "Google, version 2": "GoogleAccessId=me%40p.iam.gserviceaccount.com&Expires=1800000{}&Signature=abc",
    "Azure, service": "sv=2022-11-02&st=2027-01-15T08%3A00%3A00Z&se=2027-01-15T09%3A00%3A00Z&sr=b&sp=r&spr=https"
    "&sig={}",
    "Azure, account": "sv=2022-11-02&ss=b&srt=o&sp=r&se=2027-01-15T09%3A00%3A00Z&sip=1.2.3.4&sig={}",
    "Azure, policy": "sv=2022-11-02&si=readers&sr=b&sig={}",
    "Azure, user": "sv=2022-11-02&se=2027-01-15T09%3A00%3A00Z&sr=b&sp=r&skoid=o&sktid=t&skt=1&ske=2&sks=b"
    "&skv=2022-11-02&saoid=x&scid=y&sdd=1&ses=z&sig={}",
    "CloudFront, canned": "Expires=1800000{}&Signature=nitf~-&Key-Pair-Id=K2JC",
    "CloudFront, custom": "Policy=eyJ{}&Signature=nitf~-&Key-Pair-Id=K2JC&Hash-Algorithm=SHA256",
    "Aliyun, version 1": "OSSAccessKeyId=AK&Expires=1800000{}&Signature=abc&security-token=t",
    "Aliyun, version 4": "x-oss-additional-headers=host&x-oss-credential=AK&x-oss-date=1&x-oss-expires=60"
    "&x-oss-security-token=t&x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-signature={}",
    "Tencent": "q-sign-algorithm=sha1&q-ak=AK&q-sign-time=1;{}&q-key-time=1;2&q-header-list=host&q-url-param-list="
    "&q-signature=abc&x-cos-security-token=t",
}
OTHERS = (
    "Expires=5",
    "Expires=5&Signature=abc",
    "Signature=abc",
    "signature=abc&expires=5&awsaccesskeyid=x",
    "AWSAccessKeyId=AK&Expires=5",
    "Policy=abc&Signature=def",
    "sig=abc",
    "sig=abc&se=1",
    "sv=3&sig=abc&se=1",
    "X-Amz-Date=1&X-Amz-Expires=2",
    "x-oss-process=image/resize,w_300",
    "q-ak=1",
    "token=abc",
    "",
)


@pytest.mark.parametrize("scheme", SIGNATURES)
def test_signature_goes_and_everything_else_stays(scheme: str) -> None:
    signature = SIGNATURES[scheme].format("1")
    assert without_signature(f"{PICTURE}?{signature}") == PICTURE
    assert without_signature(f"{PICTURE}?width=300&{signature}&v=%7e#top") == f"{PICTURE}?width=300&v=%7e#top"
    assert without_signature(f"{PICTURE}?{signature}&x-oss-process=a&versionId=b&response-content-type=c") == (
        f"{PICTURE}?x-oss-process=a&versionId=b&response-content-type=c"
    )


@pytest.mark.parametrize("query", OTHERS)
def test_what_is_no_signature_of_a_store_stays(query: str) -> None:
    for url in (f"{PICTURE}?{query}", f"{PICTURE}?{query}&&=&a", f"{PICTURE}#?X-Amz-Signature=1", PICTURE):
        assert without_signature(url) == url


@pytest.mark.parametrize("scheme", SIGNATURES)
def test_new_signature_makes_no_other_job(scheme: str) -> None:
    old, new = (
        content_of(Job(prompt="She turns", image=f"{PICTURE}?{SIGNATURES[scheme].format(number)}"), str)
        for number in ("111", "222")
    )
    assert old.digest == new.digest
    assert old.text != new.text
    assert recalled(new, {}).image == f"{PICTURE}?{SIGNATURES[scheme].format('222')}", "it is sent as it was given"


def test_other_pictures_prompts_and_parameters_are_other_jobs() -> None:
    signature = SIGNATURES["S3, version 4"].format("1")
    jobs = [
        Job(prompt="She turns", image=f"{PICTURE}?{signature}"),
        Job(prompt="She turns", image=f"{PICTURE}?width=300&{signature}"),
        Job(prompt="She turns", image=f"{PICTURE}2?{signature}"),
        Job(prompt="She stays", image=f"{PICTURE}?{signature}"),
        Job(prompt=f"{PICTURE}?{signature}", image=f"{PICTURE}?{signature}"),
        Job(prompt=PICTURE, image=f"{PICTURE}?{signature}"),
        Job(
            prompt="She turns",
            image=f"{PICTURE}?{signature}",
            end_image=PICTURE,
            model="kling-v2.1-pro-start-end-frame",
        ),
    ]
    contents = [content_of(job, str) for job in jobs]
    assert len({content.digest for content in contents}) == len(jobs)
    for rule in RULES:
        assert not any(same_but_for_signatures(contents[0], other, Identity(rule)) for other in contents[1:])


def test_url_without_a_signature_keeps_the_digest_of_the_first_rule() -> None:
    for image in (PICTURE, f"{PICTURE}?v=3", b"\x89PNG\r\n\x1a\n"):
        job = Job(prompt="She turns", image=image)
        first, second = (content_of(job, lambda _: "d", identity=Identity(rule)) for rule in (1, 2))
        assert first == second


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("?token=1&width=3", "?width=3"),
        ("?width=3&token=&v", "?width=3"),
        ("?token=1&token=2#token=3", "#token=3"),
        ("?to%6Ben=1&a=%7e&&=", "?a=%7e&&="),
        ("?Token=1&token2=1&a=token", "?Token=1&token2=1&a=token"),
        ("?", "?"),
        ("#?token=1", "#?token=1"),
        ("", ""),
    ],
)
def test_named_parameters_go_and_everything_else_stays(query: str, left: str) -> None:
    assert without_parameters(PICTURE + query, ("token", "v")) == PICTURE + left


def test_signature_goes_even_if_a_parameter_of_it_is_ignored() -> None:
    """A parameter that marks the signature must not be removed before the signature is found."""
    urls = (f"{PICTURE}?{SIGNATURES['CloudFront, canned'].format(number)}&v={number}" for number in (1, 2))
    digests = {
        content_of(Job(prompt="a", image=url), str, identity=Identity(ignored=("Signature", "v"))).digest
        for url in urls
    }
    assert digests == {content_of(Job(prompt="a", image=PICTURE), str).digest}


def test_both_pictures_of_a_job_count() -> None:
    found = {
        content_of(
            Job(
                prompt="a",
                image=f"{PICTURE}?v={number}",
                end_image=f"{PICTURE}?v=-{number}",
                model="kling-v2.1-pro-start-end-frame",
            ),
            str,
            identity=Identity(ignored=("v",)),
        ).digest
        for number in (1, 2)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    "names", ["token", 5, ["token=1"], ["?token"], ["a&b"], ["a, b"], [""], [b"token"], [" token"]]
)
def test_what_can_be_no_name_of_a_parameter_is_refused(names: object) -> None:
    """It would match no parameter, and the jobs would be paid for again."""
    with pytest.raises(ConfigurationError, match=r"ignored_parameters: expected .*, got .*; nothing was spent"):
        KlingSession("k", ignored_parameters=names)  # type: ignore[arg-type]  # what is tested


def test_every_mark_has_the_word_that_is_looked_for_first() -> None:
    for scheme in signed_urls._SCHEMES:
        assert all(signed_urls.may_be_signed("?" + "&".join(marks)) for marks in scheme.marks)
