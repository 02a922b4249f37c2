"""Query parameters that change whenever the URL of the same picture is made again.

The signatures of object stores are known; other parameters are named by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final
from urllib.parse import unquote

import attrs

from kling_async.errors import ConfigurationError


@attrs.frozen
class _Scheme:
    """Query parameters by which a store signs a URL.

    Attributes:
        marks: Sets of names, one of which is complete in a signed URL. Common words mark nothing by themselves.
        names: Names of all parameters that the signature adds.
        any_case: Whether names are compared without regard to case: clients write those of version 4 in both.
        holds: Returns whether the values are those of the scheme.
    """

    marks: tuple[frozenset[str], ...]
    names: frozenset[str]
    any_case: bool = False
    holds: Callable[[Mapping[str, str]], bool] = lambda _: True


def _version_4(prefix: str, *more: str) -> _Scheme:
    """Return a scheme of the form of AWS Signature Version 4."""
    names = ("algorithm", "credential", "date", "expires", "signedheaders", "signature", "security-token", *more)
    return _Scheme(
        marks=(frozenset({f"{prefix}signature"}),), names=frozenset(prefix + name for name in names), any_case=True
    )


def _version_2(key: str, *more: str) -> _Scheme:
    """Return a scheme of the form of AWS Signature Version 2."""
    names = frozenset({key, "Expires", "Signature"})
    return _Scheme(marks=(names,), names=names | {*more})


_AZURE_VERSION: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_AZURE: Final = (
    "sv ss srt sr st se sp si sip spr sig ses scid sdd saoid suoid skoid sktid skt ske sks skv skdutid sduoid"
)

_SCHEMES: Final = (
    # docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html; R2, MinIO, B2, Spaces and Wasabi alike.
    _version_4("x-amz-", "content-sha256", "region-set", "s3session-token"),
    # cloud.google.com/storage/docs/authentication/signatures
    _version_4("x-goog-"),
    # alibabacloud.com/help/oss, "Include a V4 signature in a URL". `x-oss-process` changes the picture, and stays.
    _version_4("x-oss-", "signature-version", "additional-headers"),
    # docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html
    _version_2("AWSAccessKeyId", "x-amz-security-token"),
    # cloud.google.com/storage/docs/access-control/signed-urls-v2
    _version_2("GoogleAccessId"),
    # alibabacloud.com/help/doc-detail/31952.htm
    _version_2("OSSAccessKeyId", "security-token"),
    # docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/private-content-signed-urls.html
    _Scheme(
        marks=(frozenset({"Expires", "Signature", "Key-Pair-Id"}), frozenset({"Policy", "Signature", "Key-Pair-Id"})),
        names=frozenset({"Expires", "Policy", "Signature", "Key-Pair-Id", "Hash-Algorithm"}),
    ),
    # learn.microsoft.com/rest/api/storageservices/create-service-sas, create-account-sas, create-user-delegation-sas
    _Scheme(
        marks=(frozenset({"sv", "sig", "se"}), frozenset({"sv", "sig", "si"})),
        names=frozenset(_AZURE.split()),
        holds=lambda values: _AZURE_VERSION.fullmatch(values["sv"]) is not None,
    ),
    # cloud.tencent.com/document/product/436/7778
    _Scheme(
        marks=(frozenset({"q-ak", "q-signature"}),),
        names=frozenset(
            {
                "q-sign-algorithm",
                "q-ak",
                "q-sign-time",
                "q-key-time",
                "q-header-list",
                "q-url-param-list",
                "q-signature",
                "x-cos-security-token",
            }
        ),
    ),
)


def may_be_signed(text: str) -> bool:
    """Return whether a text may have a signed URL, at a hundredth of the cost of looking: every mark has this word."""
    return "?" in text and "sig" in text.lower()


def without_signature(url: str) -> str:
    """Return a URL without the parameters of a store's signature; everything else stays as it is written."""
    if not may_be_signed(url):
        return url
    values = {name: unquote(part.partition("=")[2]) for name, part in _parameters(url)}
    lower = {name.lower() for name in values}
    dropped: set[str] = set()
    for scheme in _SCHEMES:
        present = lower if scheme.any_case else values.keys()
        if any(marks <= present for marks in scheme.marks) and scheme.holds(values):
            dropped |= {name for name in values if (name.lower() if scheme.any_case else name) in scheme.names}
    return without_parameters(url, dropped)


def without_parameters(url: str, names: Collection[str]) -> str:
    """Return a URL without the parameters of these names; everything else stays as it is written."""
    parameters = _parameters(url)
    if not any(name in names for name, _ in parameters):
        return url
    before, hash_mark, fragment = url.partition("#")
    kept = "&".join(part for name, part in parameters if name not in names)
    return before.partition("?")[0] + ("?" + kept if kept else "") + hash_mark + fragment


def _parameters(url: str) -> list[tuple[str, str]]:
    """Return the parameters of a URL, each as its decoded name and as it is written."""
    query = url.partition("#")[0].partition("?")[2]
    return [(unquote(part.partition("=")[0]), part) for part in query.split("&")] if query else []


_NAME: Final = re.compile(r"[^\s?&=#,;]+")
"""A name of a parameter. Several in one text, or a name with its value, would match no parameter."""


def parameter_names(names: object) -> tuple[str, ...] | None:
    """Return names of query parameters as given by a caller, sorted and each once; None for None.

    Raises:
        ConfigurationError: They are no collection of names.
    """
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ConfigurationError(f'ignored_parameters: expected names such as ("token", "v"), got {names!r}')
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"ignored_parameters: expected the name of one URL parameter, such as token, got {name!r}"
            )
    return tuple(sorted(set(names)))
