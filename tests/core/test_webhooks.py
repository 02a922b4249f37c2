"""Webhooks without sockets: verification, parsing, receiver."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import hmac
import json
import logging
import pickle
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kling_async import ConfigurationError, Prediction, Secret, Status, WebhookRefusal, WebhookRefusedError
from kling_async.testing import VirtualClock
from kling_async.webhooks import (
    TOKEN_PARAMETER,
    Delivery,
    HideTokens,
    WebhookReceiver,
    WebhookVerifier,
    new_token,
    parse,
    token_hash,
    url_with,
    verify,
)
from kling_async.webhooks.receiver import _STATUS_BY_REFUSAL
from support.patience import PATIENCE_S
from support.webhooks import body_of, signed

SECRET = "whsec_e9EE3BdyXSxcB4ZyZUKjQUEoQX4sF9P1+eMpb/KluCM="
NOW = 1_800_000_000.0
SAMPLE = (
    b'{"id":"45b392b22c3b449fa935bd4dc","model":"wavespeed-ai/flux-dev","outputs":["https://d2p7pge43lyniu.cloudfront'
    b'.net/output/18058184-5df8-4d05-9e1b-7ad84c8b963e-u1_9bfd4537-e541-4ad0-a0f6-4812b11a37f1.jpeg"],"urls":{"get":"'
    b'https://api.wavespeed.ai/api/v3/predictions/45b392b22c3b449fa935bd4dc2219dfe/result"},"has_nsfw_contents":[false'
    b'],"status":"completed","created_at":"2025-09-25T09:12:48.239112031Z","error":"","executionTime":6710,"timings":'
    b'{"inference":6710}}'
)
VECTORS = [
    (SECRET, "45b392b22c3b449fa935bd4dc", 1758798328, SAMPLE,
     "7a32ef7ef2c0cc05dbf74c9456add530c638730d40b36ecbce282a4251feaba7"),
    (SECRET, "45b392b22c3b449fa935bd4dc", 1758802746, SAMPLE,
     "f8b7bf9947e6c9eae9009baa626b1a91202e0103bce66fbcc516195b6a20c7d9"),
    ("whsec_test_secret", "abc", 1700000000, b'{"id":"abc","status":"completed"}',
     "e8372ddd525edf7672849ea82429e819d69cf30a1665a1e6d5b3648202021c53"),
]  # fmt: skip
BODY = body_of("p1")


def refused(headers: dict[str, str], body: bytes = BODY, *, now: float = NOW, secrets: Any = SECRET) -> WebhookRefusal:
    with pytest.raises(WebhookRefusedError) as caught:
        verify(headers, body, secrets, now=now)
    return caught.value.reason


def verifier(clock: VirtualClock | None = None, **options: Any) -> WebhookVerifier:
    return WebhookVerifier(SECRET, clock=clock or at(NOW), **options)


def at(now: float) -> VirtualClock:
    return VirtualClock(epoch=now)


# ---- the signature ----


@pytest.mark.parametrize(("secret", "webhook_id", "time", "body", "signature"), VECTORS)
def test_vectors_verify(secret: str, webhook_id: str, time: int, body: bytes, signature: str) -> None:
    headers = {"webhook-id": webhook_id, "webhook-timestamp": str(time), "webhook-signature": f"v3,{signature}"}
    for key in (secret, secret.removeprefix("whsec_"), Secret(secret)):
        verified = verify(headers, body, key, now=time)
        assert (verified.webhook_id, verified.sent_at) == (webhook_id, time)
    assert refused(headers, body + b" ", now=time, secrets=secret) is WebhookRefusal.FORGED


def test_sample_body_is_unchanged() -> None:
    assert hashlib.sha256(SAMPLE).hexdigest() == "7c584f15575509feaf34520c00e3fb151ae405a604e194c74c49e3f87ccfaa00"


@pytest.mark.parametrize(
    ("time", "printed"),
    [
        (1758798328, "424a292e812c06273bc4efd6b451010a5f046454ae15e6a7c0834428ca76255d"),
        (1758802746, "cf2866ec96051d73399f0b8627ea7bafd7dbac73725f80b855383a9b64f0c7d8"),
    ],
)
def test_signatures_printed_in_docs_do_not_match_sample(time: int, printed: str) -> None:
    headers = {"webhook-id": "45b392b22c3b449fa935bd4dc", "webhook-timestamp": str(time)}
    headers["webhook-signature"] = f"v3,{printed}"
    assert refused(headers, SAMPLE, now=time) is WebhookRefusal.FORGED


@given(st.binary(max_size=300), st.from_regex(r"[!-\-/-~]{1,40}", fullmatch=True), st.integers(0, 10**11))
def test_any_signed_body_verifies(body: bytes, webhook_id: str, time: int) -> None:
    headers = signed(SECRET, body, webhook_id=webhook_id, at=time)
    assert verify(headers, body, SECRET, now=time).webhook_id == webhook_id


@given(st.data())
def test_any_change_is_refused(data: st.DataObject) -> None:
    headers, body = signed(SECRET, BODY, webhook_id="p1", at=NOW), bytearray(BODY)
    part = data.draw(st.sampled_from(["body", "webhook-id", "webhook-timestamp", "webhook-signature"]))
    text = body if part == "body" else bytearray(headers[part].encode())
    index = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.integers(0, 127).filter(lambda letter: letter != text[index]))
    text[index] = other
    if part != "body":
        headers[part] = text.decode()
    with pytest.raises(WebhookRefusedError):
        verify(headers, bytes(body), SECRET, now=NOW)


@given(st.dictionaries(st.sampled_from(["webhook-id", "Webhook-Timestamp", "webhook-signature", "x"]), st.text()))
def test_arbitrary_headers_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(WebhookRefusedError):
        verify(headers, b"{}", SECRET, now=NOW)


def test_header_names_are_case_insensitive() -> None:
    headers = {name.title(): value for name, value in signed(SECRET, BODY, at=NOW).items()}
    verify(headers, BODY, SECRET, now=NOW)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_missing_header_is_unsigned(missing: str) -> None:
    headers = signed(SECRET, BODY, at=NOW)
    del headers[missing]
    assert refused(headers) is WebhookRefusal.UNSIGNED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", ""),
        ("webhook-id", "a b"),
        ("webhook-id", "ä"),
        ("webhook-id", "x" * 257),
        ("webhook-id", "a\nb"),
        ("webhook-timestamp", ""),
        ("webhook-timestamp", "1_800_000_000"),
        ("webhook-timestamp", " 1800000000"),
        ("webhook-timestamp", "+1800000000"),
        ("webhook-timestamp", "1800000000.0"),
        ("webhook-timestamp", "\u0661\u0668\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660"),
        ("webhook-timestamp", "9" * 5000),
        ("webhook-signature", ""),
        ("webhook-signature", "v3"),
        ("webhook-signature", "v3,"),
        ("webhook-signature", "v3,\ud800"),
        ("webhook-signature", "v3,ä"),
    ],
)
def test_malformed_header_is_refused(name: str, value: str) -> None:
    assert refused(signed(SECRET, BODY, at=NOW) | {name: value}) is WebhookRefusal.MALFORMED


def test_id_with_dot_is_refused_as_ambiguous() -> None:
    """The signed text is `id.time.body`: a valid signature also matches a longer id with a shorter body."""
    body = b'{"a":"x.1800000000.{}"}'
    headers = signed(SECRET, body, webhook_id="p1", at=NOW)
    moved = headers | {"webhook-id": 'p1.1800000000.{"a":"x'}
    text = f"{moved['webhook-id']}.{moved['webhook-timestamp']}.".encode() + b'{}"}'
    assert text == f"p1.{headers['webhook-timestamp']}.".encode() + body, "both sign the same text"
    assert refused(moved, b'{}"}') is WebhookRefusal.MALFORMED


@pytest.mark.parametrize("change", [str.upper, lambda value: value.replace("v3", "v1"), lambda value: value[:-1]])
def test_other_signature_format_is_refused(change: Any) -> None:
    headers = signed(SECRET, BODY, at=NOW)
    headers["webhook-signature"] = change(headers["webhook-signature"])
    assert refused(headers) is WebhookRefusal.MALFORMED


@pytest.mark.parametrize("seconds", [-300, -299.5, 0, 300])
def test_delivery_within_tolerance_verifies(seconds: float) -> None:
    verify(signed(SECRET, BODY, at=NOW), BODY, SECRET, now=NOW + seconds)


@pytest.mark.parametrize("seconds", [-1e9, -301, -300.1, 300.1, 301, 1e9, float("nan"), float("inf")])
def test_delivery_outside_tolerance_is_stale(seconds: float) -> None:
    assert refused(signed(SECRET, BODY, at=NOW), now=NOW + seconds) is WebhookRefusal.STALE


def test_tolerance_is_configurable() -> None:
    headers = signed(SECRET, BODY, at=NOW)
    verify(headers, BODY, SECRET, now=NOW + 30, tolerance=30)
    with pytest.raises(WebhookRefusedError, match="sent 31 s ago, at most 30 s allowed"):
        verify(headers, BODY, SECRET, now=NOW + 31, tolerance=30)
    with pytest.raises(WebhookRefusedError, match="sent 31 s ahead of now"):
        verify(headers, BODY, SECRET, now=NOW - 31, tolerance=30)


def test_one_valid_signature_among_several_verifies() -> None:
    headers = signed(SECRET, BODY, at=NOW)
    good = headers["webhook-signature"]
    others = [f"v3,{'0' * 64}", "v1,YWJj", "v4,x", f"v3,{'f' * 64}"]
    for place in range(5):
        entries = [*others[:place], good, *others[place:]]
        verify(headers | {"webhook-signature": " ".join(entries)}, BODY, SECRET, now=NOW)
    assert refused(headers | {"webhook-signature": " ".join(others)}) is WebhookRefusal.FORGED


def test_all_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr("kling_async.webhooks.verifier.hmac.compare_digest", compare)
    headers = signed(SECRET, BODY, at=NOW)
    headers["webhook-signature"] += f" v3,{'0' * 64}"
    verify(headers, BODY, [SECRET, "whsec_old", "whsec_older"], now=NOW)
    assert len(compared) == 2 * 3


# ---- secrets ----


def test_several_secrets_are_accepted() -> None:
    both = WebhookVerifier([SECRET, "whsec_next"], clock=at(NOW))
    for number, secret in enumerate((SECRET, "whsec_next")):
        both.verify(signed(secret, body_of(f"p{number}"), at=NOW), body_of(f"p{number}"))
    with pytest.raises(WebhookRefusedError) as caught:
        both.verify(signed("whsec_other", BODY, at=NOW), BODY)
    assert caught.value.reason is WebhookRefusal.FORGED


def test_rotate_replaces_secrets_and_keeps_memory() -> None:
    one = verifier()
    one.verify(signed(SECRET, BODY, at=NOW), BODY)
    one.rotate("whsec_next")
    with pytest.raises(WebhookRefusedError, match="no signature matches"):
        one.verify(signed(SECRET, b"{}", at=NOW), b"{}")
    with pytest.raises(WebhookRefusedError, match="received before"):
        one.verify(signed("whsec_next", BODY, at=NOW), BODY)
    with pytest.raises(ConfigurationError):
        one.rotate([])
    # The refused rotation changed nothing.
    one.verify(signed("whsec_next", b"{}", at=NOW), b"{}")


@pytest.mark.parametrize("secrets", ["", "whsec_", "  whsec_  ", [], [SECRET, "whsec_"], ["two words"], ()])
def test_empty_or_invalid_secret_is_refused(secrets: Any) -> None:
    """With an empty secret, anyone who reads the documentation could sign."""
    for make in (WebhookVerifier, lambda given: verify(signed("whsec_", BODY, at=NOW), BODY, given, now=NOW)):
        with pytest.raises(ConfigurationError):
            make(secrets)


@pytest.mark.parametrize("options", [{"tolerance": 0}, {"tolerance": -1}, {"tolerance": float("inf")}, {"remember": 0}])
def test_invalid_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        verifier(**options)
    with pytest.raises(ConfigurationError):
        verifier(tolerance=float("nan"))


def test_errors_and_reprs_hide_secret_signature_and_body() -> None:
    one = WebhookVerifier([SECRET, "whsec_next"], clock=at(NOW))
    one.verify(signed(SECRET, b'{"id": "p-secret-body"}', at=NOW), b'{"id": "p-secret-body"}')
    assert repr(one) == "<WebhookVerifier with 2 secrets, tolerance=300>"
    hidden = [SECRET, SECRET.removeprefix("whsec_"), "whsec_next"]
    body = b'{"id": "p-secret-body"}'
    for secret in (SECRET, "whsec_wrong"):
        headers = signed(secret, body, at=NOW)
        hidden += [headers["webhook-signature"], headers["webhook-signature"][3:], "p-secret-body"]
        for changed in ({}, {"webhook-timestamp": "1"}, {"webhook-signature": headers["webhook-signature"] + "x"}):
            for _ in range(2):
                with pytest.raises(WebhookRefusedError) as caught:
                    one.verify(headers | changed, body)
                error = caught.value
                shown = f"{error} {error!r} {vars(error)} {error.__context__!r} {error.__cause__!r} {error.args}"
                assert not [secret for secret in hidden if secret in shown]
                assert pickle.loads(pickle.dumps(error)).reason is copy.copy(error).reason is error.reason


# ---- duplicates ----


@pytest.mark.anyio
async def test_replay_is_refused_until_it_is_stale() -> None:
    clock = at(NOW)
    one = verifier(clock)
    ahead, body = signed(SECRET, BODY, at=NOW + 300), BODY
    one.verify(ahead, body)
    for _ in range(200):
        await clock.advance(5)
        with pytest.raises(WebhookRefusedError) as caught:
            one.verify(ahead, body)
        assert caught.value.reason is (WebhookRefusal.REPLAYED if clock.now() <= NOW + 600 else WebhookRefusal.STALE)


def test_retry_with_new_time_is_duplicate_and_new_body_is_not() -> None:
    one = verifier()
    one.verify(signed(SECRET, BODY, at=NOW), BODY)
    with pytest.raises(WebhookRefusedError) as caught:
        one.verify(signed(SECRET, BODY, at=NOW + 10), BODY)
    assert caught.value.reason is WebhookRefusal.REPLAYED
    later = body_of("p1", status="failed")
    one.verify(signed(SECRET, later, webhook_id="p1", at=NOW), later)


def test_forged_delivery_is_not_remembered() -> None:
    one = verifier()
    for _ in range(3):
        with pytest.raises(WebhookRefusedError) as caught:
            one.verify(signed("whsec_wrong", BODY, at=NOW), BODY)
        assert caught.value.reason is WebhookRefusal.FORGED
    one.verify(signed(SECRET, BODY, at=NOW), BODY)


def test_forgotten_delivery_is_accepted_again() -> None:
    one = verifier()
    headers = signed(SECRET, BODY, at=NOW)
    one.forget(one.verify(headers, BODY))
    one.forget(one.verify(headers, BODY))


@pytest.mark.anyio
async def test_memory_is_bounded_in_size_and_time() -> None:
    clock = at(NOW)
    one = verifier(clock, remember=100, tolerance=50)
    for number in range(1000):
        one.verify(signed(SECRET, body_of(f"p{number}"), at=NOW), body_of(f"p{number}"))
    assert len(one._expiry_by_digest) == 100
    with pytest.raises(WebhookRefusedError, match="received before"):
        one.verify(signed(SECRET, body_of("p900"), at=NOW), body_of("p900"))
    await clock.advance(101)
    one.verify(signed(SECRET, BODY, at=clock.now()), BODY)
    assert len(one._expiry_by_digest) == 1


# ---- the body ----


@pytest.mark.parametrize(
    "shape",
    [
        lambda record: record,
        lambda record: {"code": 200, "message": "success", "data": record},
        lambda record: [record],
    ],
    ids=["bare", "enveloped", "list"],
)
def test_body_formats_parse(shape: Any) -> None:
    record = json.loads(SAMPLE) | {"input": {"prompt": "a cat"}}
    prediction = parse(json.dumps(shape(record)).encode())
    assert (prediction.id, prediction.status, prediction.inference) == (record["id"], Status.COMPLETED, 6.71)
    assert prediction.output == record["outputs"][0]
    assert prediction.input == {"prompt": "a cat"}
    failed = {"id": "p1", "status": "failed", "code": 1402, "error": "no image"}
    prediction = parse(json.dumps(shape(failed)).encode())
    assert (prediction.status, prediction.code, prediction.error) == (Status.FAILED, 1402, "no image")


@pytest.mark.promise(8)
def test_known_api_key_is_redacted() -> None:
    body = body_of("p1", status="failed", error="the key wsk_12345678 is wrong", headers=[{"key": "wsk_12345678"}])
    assert parse(body).error == "the key wsk_12345678 is wrong"
    known = parse(body, api_key=Secret("wsk_12345678"))
    assert known.error == "the key *** is wrong"
    assert (known.raw["error"], known.raw["headers"]) == (known.error, [{"key": "***"}])
    assert b"wsk_12345678" not in pickle.dumps(known)


NASTY = [
    b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"[[]]", b"{}", b"7", b'"p1"', b"NaN", b'{"id": null}', b'{"id": ""}',
    b'{"id": true}', b'{"data": null}', b'{"data": {"data": {"id": "p1"}}}', b"[" * 100_000, b'{"a":' * 50_000,
    b"1" * 9999, b'{"data": [[{"id": 1}]]}', b'{"id": {"id": "p1"}}', b'{"id": "p1"',
]  # fmt: skip


@pytest.mark.parametrize("body", NASTY, ids=lambda body: repr(body[:20]))
def test_body_without_prediction_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookRefusedError) as caught:
        parse(body)
    assert caught.value.reason is WebhookRefusal.UNREADABLE
    assert caught.value.__context__ is None, "the decoder's error holds the body"


short = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | short | st.just("\ud800") | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    ["id", "data", "status", "outputs", "error", "code", "model", "createdAt", "created_at", "executionTime", "timings",
     "has_nsfw_contents", "hasNsfwContents", "input", "inputs", "urls", "message"]
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.binary()
    | st.dictionaries(names, values | st.dictionaries(names, values, max_size=5), max_size=5)
    .map(json.dumps)
    .map(str.encode)
)
def test_any_body_parses_or_is_refused(body: bytes) -> None:
    with contextlib.suppress(WebhookRefusedError):
        prediction = parse(body)
        assert prediction.id
        assert repr(prediction)


# ---- tokens ----


def test_url_with_adds_token_to_query() -> None:
    token = new_token()
    assert len({new_token() for _ in range(100)}) == 100
    assert len(token) >= 43
    assert url_with("https://me.example/hooks/kling", token) == f"https://me.example/hooks/kling?kling_token={token}"
    assert url_with("https://me.example/h?a=b", "t/&") == "https://me.example/h?a=b&kling_token=t%2F%26"
    assert token_hash("abc") == hashlib.sha256(b"abc").hexdigest()
    assert token_hash("\ud800") != token_hash("\ud801")
    for local in ("http://127.0.0.1:80/h", "http://[::1]/h", "http://localhost:1"):
        assert url_with(local, token).startswith(local)


@pytest.mark.parametrize(
    "base",
    ["", "me.example/h", "http://me.example/h", "ftp://me.example", "https:///h", "https://me.example/h#x", "http://[x",
     "http://127.0.0.1.me.example/", "http://localhost.me.example/"],
)  # fmt: skip
def test_unreachable_webhook_url_is_refused(base: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        url_with(base, "the-token")
    assert "the-token" not in str(caught.value)


def test_hide_tokens_redacts_log_records() -> None:
    record = logging.LogRecord(
        "x", logging.INFO, "x", 1, "%s %d", (f"/h?a=b&{TOKEN_PARAMETER}=abc&c=d HTTP/1.1", 200), None
    )
    vars(record)["first_request_line"] = f"POST /h?{TOKEN_PARAMETER}=abc HTTP/1.1"
    assert HideTokens().filter(record)
    assert record.getMessage() == "/h?a=b&kling_token=***&c=d HTTP/1.1 200"
    assert vars(record)["first_request_line"] == "POST /h?kling_token=*** HTTP/1.1"
    logger = logging.getLogger("test.tokens")
    for _ in range(2):
        logger.addFilter(HideTokens())
    assert len(logger.filters) == 1


# ---- the receiver ----


class Inbox:
    """A receiver with its deliveries; `trouble` is raised instead of accepting one."""

    def __init__(self, **options: Any) -> None:
        self.got: list[Delivery] = []
        self.trouble: BaseException | None = None
        self.gate: anyio.Event | None = None
        self.receiver = WebhookReceiver(verifier(), self.deliver, **options)

    async def deliver(self, delivery: Delivery) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.got.append(delivery)

    async def send(self, body: Any = BODY, *, secret: str = SECRET, sent: float = NOW, **options: Any) -> int:
        content = body if isinstance(body, bytes) else BODY
        return await self.receiver.receive(signed(secret, content, webhook_id="w1", at=sent), body, **options)


async def pieces(*chunks: bytes, then: BaseException | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if then is not None:
        raise then


async def untouchable() -> AsyncIterator[bytes]:
    pytest.fail("the body was read after the headers were refused")
    yield b""  # type: ignore[unreachable]  # makes it a generator


@pytest.mark.anyio
async def test_valid_webhook_is_delivered_once() -> None:
    inbox = Inbox()
    assert await inbox.send(token="the-token") == 200
    [delivery] = inbox.got
    assert delivery.prediction == parse(BODY)
    assert isinstance(delivery.prediction, Prediction)
    assert (delivery.token_hash, delivery.webhook_id) == (token_hash("the-token"), "w1")
    assert delivery.sent_at == NOW
    assert "the-token" not in repr(delivery)
    # A retry, a replay and a replay under another token: the sender need not retry.
    assert [await inbox.send(), await inbox.send(sent=NOW + 9), await inbox.send(token="other")] == [200, 200, 200]
    assert len(inbox.got) == 1
    assert (inbox.receiver.taken, inbox.receiver.failed) == (1, 0)
    assert inbox.receiver.refused == {WebhookRefusal.REPLAYED: 3}


@pytest.mark.anyio
async def test_plain_function_receives_delivery_without_token() -> None:
    got: list[Delivery] = []
    receiver = WebhookReceiver(verifier(), got.append)
    assert await receiver.receive(signed(SECRET, BODY, at=NOW), pieces(BODY[:10], b"", BODY[10:])) == 200
    assert [delivery.token_hash for delivery in got] == [None]


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "post", "OPTIONS"])
async def test_only_post_is_accepted(method: str) -> None:
    inbox = Inbox()
    assert await inbox.send(untouchable(), method=method) == 405
    assert not inbox.got


@pytest.mark.anyio
async def test_bad_headers_are_refused_before_body_is_read() -> None:
    inbox = Inbox()
    assert await inbox.receiver.receive({}, untouchable()) == 401
    assert await inbox.send(untouchable(), sent=NOW - 301) == 401
    assert await inbox.receiver.receive(signed(SECRET, BODY, at=NOW) | {"webhook-id": ""}, untouchable()) == 400
    assert not inbox.got


@pytest.mark.anyio
async def test_forged_body_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kling_async.providers._wire.decode", lambda *_: pytest.fail("it was decoded"))
    assert await Inbox().send(secret="whsec_wrong") == 401


@pytest.mark.anyio
async def test_body_is_not_read_beyond_limit() -> None:
    inbox = Inbox(max_body=len(BODY))
    assert await inbox.send() == 200
    inbox = Inbox(max_body=len(BODY) - 1)
    assert await inbox.send() == 413
    assert await inbox.send(pieces(BODY)) == 413
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 10
            yield b"x" * 10

    assert await inbox.send(endless()) == 413
    assert len(BODY) <= read < len(BODY) + 20
    assert not inbox.got


@pytest.mark.anyio
async def test_stalled_body_times_out() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield BODY[:5]
        await anyio.sleep_forever()

    inbox = Inbox(patience=0.01)
    with anyio.fail_after(PATIENCE_S):
        assert await inbox.send(stuck()) == 408
    assert inbox.receiver.refused == {WebhookRefusal.TOO_SLOW: 1}


@pytest.mark.anyio
async def test_unreadable_body_is_refused_each_time() -> None:
    inbox = Inbox()
    assert [await inbox.send(b"[]"), await inbox.send(b"[]")] == [400, 400]
    assert inbox.receiver.refused == {WebhookRefusal.UNREADABLE: 2}


@pytest.mark.anyio
async def test_failed_delivery_is_accepted_again(caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox()
    inbox.trouble = OSError("disk full")
    assert await inbox.send(token="the-token") == 500
    inbox.trouble = None
    assert await inbox.send() == 200
    assert (len(inbox.got), inbox.receiver.failed, inbox.receiver.taken) == (1, 1, 1)
    assert "disk full" in caplog.text
    assert "the-token" not in caplog.text


@pytest.mark.anyio
async def test_duplicate_during_delivery_gets_409() -> None:
    inbox = Inbox()
    inbox.gate, inbox.trouble = anyio.Event(), OSError("disk full")
    statuses: list[int] = []

    async def send() -> None:
        statuses.append(await inbox.send())

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            assert await inbox.send() == 409
            inbox.gate.set()
    assert statuses == [500]
    inbox.trouble = None
    assert await inbox.send() == 200


@pytest.mark.anyio
async def test_interrupted_delivery_is_accepted_again() -> None:
    inbox = Inbox()
    inbox.gate = anyio.Event()
    with anyio.move_on_after(0.01) as scope:
        await inbox.send()
    assert scope.cancelled_caught
    inbox.gate = None
    with pytest.raises(ConnectionResetError):
        await inbox.send(pieces(BODY[:4], then=ConnectionResetError()))
    assert await inbox.send() == 200
    assert (len(inbox.got), inbox.receiver.taken) == (1, 1)


def test_every_refusal_has_status() -> None:
    assert set(_STATUS_BY_REFUSAL) == set(WebhookRefusal)


@pytest.mark.anyio
async def test_repeated_refusals_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox()
    for number in range(100):
        await inbox.send(body_of(f"evil-{number}"), secret="whsec_wrong", token="the-token")
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == ["a webhook was refused: forged"]
    assert inbox.receiver.refused == {WebhookRefusal.FORGED: 100}
