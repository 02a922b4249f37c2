"""Recorded responses of the services, one file each, parsed by the built-in providers."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kling_async import (
    ApiError,
    AuthenticationError,
    GPTProto,
    HttpResponse,
    InsufficientBalanceError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    Prediction,
    ProtocolError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    Status,
    WaveSpeed,
)
from kling_async._core.media import UploadTicket
from kling_async.providers import _wire

SAMPLES = Path(__file__).parent / "samples"
KEY = "wsk_a-key/of+the=test"
WAVESPEED = WaveSpeed(api_key=KEY)
PROVIDERS: dict[str, WaveSpeed | GPTProto] = {"wavespeed": WAVESPEED, "gptproto": GPTProto(api_key=KEY)}


def sample(name: str) -> HttpResponse:
    """Load a recorded response as the transport returns it."""
    recorded = json.loads((SAMPLES / f"{name}.json").read_text())
    body = recorded["text"] if "text" in recorded else json.dumps(recorded["body"])
    return HttpResponse(
        status=recorded["status"],
        headers={name.lower(): value for name, value in recorded["headers"].items()},
        body=body.encode(),
    )


def provider_of(name: str) -> WaveSpeed | GPTProto:
    return PROVIDERS[name.partition("/")[0]]


# ---- predictions ----

OUTPUT = "https://d2p7pge43lyniu.cloudfront.net/output/18058184-5df8-4d05-9e1b-7ad84c8b963e-u1_9bfd4537.mp4"
CREATED = Prediction(
    id="45b392b22c3b449fa935bd4dc2219dfe",
    model="kwaivgi/kling-v2.1-i2v-pro",
    status=Status.CREATED,
    raw_status="created",
    created_at=datetime(2025, 9, 25, 9, 12, 48, 239112, UTC),
)
PROCESSING = attrs.evolve(CREATED, status=Status.PROCESSING, raw_status="processing")
COMPLETED = attrs.evolve(
    CREATED,
    status=Status.COMPLETED,
    raw_status="completed",
    outputs=(OUTPUT,),
    nsfw=(False,),
    inference=118.304,
)
FAILED = attrs.evolve(CREATED, status=Status.FAILED, raw_status="failed")
MINIMAL = Prediction(id=CREATED.id)
G_CREATED = attrs.evolve(CREATED, id="abc", created_at=datetime(2026, 1, 1, tzinfo=UTC))
G_COMPLETED = attrs.evolve(G_CREATED, status=Status.COMPLETED, raw_status="completed")

PREDICTIONS = {
    "wavespeed/submit-created": attrs.evolve(CREATED, request_id="req-1"),
    "wavespeed/submit-processing": PROCESSING,
    "wavespeed/submit-minimal": MINIMAL,
    "wavespeed/submit-capital-message": CREATED,
    "wavespeed/result-processing": PROCESSING,
    "wavespeed/result-completed": attrs.evolve(COMPLETED, request_id="req-2"),
    "wavespeed/result-bare": COMPLETED,
    "wavespeed/result-data-list": COMPLETED,
    "wavespeed/result-outputs-string": COMPLETED,
    "wavespeed/result-outputs-null": PROCESSING,
    "wavespeed/result-outputs-objects": COMPLETED,
    "wavespeed/result-completed-without-output": attrs.evolve(COMPLETED, outputs=()),
    "wavespeed/result-nsfw-null": attrs.evolve(COMPLETED, nsfw=()),
    "wavespeed/result-nsfw-true": attrs.evolve(COMPLETED, nsfw=(True,)),
    "wavespeed/result-missing-optional": attrs.evolve(
        MINIMAL, status=Status.COMPLETED, raw_status="completed", outputs=(OUTPUT,)
    ),
    "wavespeed/result-unknown-status": attrs.evolve(CREATED, status=Status.PROCESSING, raw_status="post_processing"),
    "wavespeed/result-unreadable-optional": attrs.evolve(
        MINIMAL,
        status=Status.COMPLETED,
        raw_status="completed",
        outputs=(OUTPUT,),
        error='{"text": "odd"}',
        code=1402,
    ),
    "wavespeed/result-sync-timeout": attrs.evolve(
        PROCESSING,
        code=5004,
        error="Sync mode timed out after 90 seconds. The prediction is still processing asynchronously.",
    ),
    "wavespeed/result-failed-1402": attrs.evolve(
        FAILED, code=1402, error="Failed to download image from the provided URL."
    ),
    "wavespeed/result-failed-1200": attrs.evolve(
        FAILED, code=1200, error="The content contains sensitive information."
    ),
    "wavespeed/result-failed-5000": attrs.evolve(FAILED, code=5000, error="Internal error"),
    "wavespeed/result-failed-without-code": attrs.evolve(FAILED, error="something went wrong"),
    "wavespeed/result-cancelled": attrs.evolve(CREATED, status=Status.CANCELLED, raw_status="cancelled"),
    "wavespeed/result-canceled": attrs.evolve(CREATED, status=Status.CANCELLED, raw_status="canceled"),
    "wavespeed/result-timeout": attrs.evolve(CREATED, status=Status.TIMEOUT, raw_status="timeout"),
    "wavespeed/result-deleted": attrs.evolve(CREATED, status=Status.DELETED, raw_status="deleted"),
    "gptproto/submit-camel-case": attrs.evolve(
        CREATED, id="7c9e6679-7425-40de-944b-e07fc1f90ae7", created_at=datetime(2026, 6, 16, 8, 23, 58, tzinfo=UTC)
    ),
    "gptproto/submit-data-list": G_CREATED,
    "gptproto/result-completed": attrs.evolve(
        G_COMPLETED, outputs=("https://cdn.gptproto.example/abc.mp4",), inference=61.0
    ),
    "gptproto/result-completed-without-output": G_COMPLETED,
    "gptproto/result-urls-list": attrs.evolve(G_CREATED, status=Status.PROCESSING, raw_status="processing"),
    "gptproto/result-failed": attrs.evolve(
        G_CREATED, status=Status.FAILED, raw_status="failed", error="generation failed"
    ),
}


@pytest.mark.parametrize(("name", "expected"), PREDICTIONS.items(), ids=PREDICTIONS)
def test_predictions(name: str, expected: Prediction) -> None:
    reply = sample(name)
    prediction = provider_of(name).read_prediction(reply)
    assert prediction == expected
    body: Any = reply.json()
    data = body.get("data", body)
    assert prediction.raw == (data[0] if isinstance(data, list) else data), "the record is kept unchanged"


# ---- errors ----

# Name: class, status, code, end of the message, further attributes.
ERRORS: dict[str, tuple[type[ApiError], int, int | None, str, dict[str, object]]] = {
    "wavespeed/envelope-403": (PermissionDeniedError, 200, 403, "(HTTP 200, code 403): insufficient role", {}),
    "wavespeed/envelope-429": (RateLimitedError, 200, 429, "You have reached your concurrency limit", {}),
    "wavespeed/envelope-500": (ServerError, 200, 500, "failed (HTTP 200, code 500): Internal server error", {}),
    "wavespeed/envelope-string-code": (AuthenticationError, 200, 401, "(HTTP 200, code 401): Unauthorized", {}),
    "wavespeed/error-400": (RequestRejectedError, 400, 400, "refused (HTTP 400): prompt is required", {}),
    "wavespeed/error-400-task-code": (
        RequestRejectedError,
        400,
        1401,
        "(HTTP 400, code 1401): Invalid parameter: duration",
        {},
    ),
    "wavespeed/error-400-text": (RequestRejectedError, 400, None, "use the normal API to use base64 output", {}),
    "wavespeed/error-400-errors": (RequestRejectedError, 400, None, '["image is required", "prompt is required"]', {}),
    "wavespeed/error-400-credits": (InsufficientBalanceError, 400, 1407, "insufficient_credits", {}),
    "wavespeed/error-401": (AuthenticationError, 401, 401, "invalid API key", {"request_id": "req-3"}),
    "wavespeed/error-402": (InsufficientBalanceError, 402, 402, "Payment required", {}),
    "wavespeed/error-403-role": (
        PermissionDeniedError,
        403,
        None,
        "this key may not run models [insufficient_role]",
        {},
    ),
    "wavespeed/error-403-suspended": (PermissionDeniedError, 403, 403, "Account suspended", {}),
    "wavespeed/error-403-balance": (InsufficientBalanceError, 403, 403, "Insufficient credits, please top up", {}),
    "wavespeed/error-404": (NotFoundError, 404, 404, "prediction not found", {}),
    "wavespeed/error-413": (
        RequestRejectedError,
        413,
        None,
        "413 Request Entity Too Large 413 Request Entity Too Large nginx",
        {},
    ),
    "wavespeed/error-422-detail": (RequestRejectedError, 422, None, '"msg": "field required"}]', {}),
    "wavespeed/error-429-concurrency": (RateLimitedError, 429, 429, "concurrency limit", {"retry_after": None}),
    "wavespeed/error-429-retry-after": (RateLimitedError, 429, 429, "per 1 minute", {"retry_after": 17.0}),
    "wavespeed/error-429-date": (RateLimitedError, 429, 429, "slow down", {"retry_after": 42.0}),
    "wavespeed/error-500": (ServerError, 500, 500, "failed (HTTP 500): Internal server error", {}),
    "wavespeed/error-500-data": (ServerError, 500, None, "worker crashed", {}),
    "wavespeed/error-500-empty": (ServerError, 500, None, "failed (HTTP 500): no text", {"raw": ""}),
    "wavespeed/error-502-html": (
        ServerError,
        502,
        None,
        "failed (HTTP 502): 502 Bad Gateway Bad gateway The web server reported a bad gateway error.",
        {},
    ),
    "wavespeed/error-503": (ServerError, 503, 503, "Service unavailable", {"retry_after": 3.0}),
    "wavespeed/error-504-text": (
        ServerError,
        504,
        None,
        "upstream request timeout",
        {"raw": "upstream request timeout"},
    ),
    "wavespeed/error-308": (RequestRejectedError, 308, None, "refused (HTTP 308): no text", {}),
    "wavespeed/reply-truncated": (ProtocolError, 200, None, "the response is not JSON", {}),
    "wavespeed/reply-html": (ProtocolError, 200, None, "the response is not JSON", {"raw": "Please sign in"}),
    "wavespeed/reply-empty": (ProtocolError, 200, None, "the response is not JSON", {"raw": ""}),
    "wavespeed/reply-no-id": (ProtocolError, 200, None, "the record has no id", {}),
    "wavespeed/reply-null": (ProtocolError, 200, None, "expected an object, got NoneType", {}),
    "wavespeed/reply-empty-list": (ProtocolError, 200, None, "expected an object, got list", {}),
    "gptproto/error-401": (AuthenticationError, 401, 401, "refused (HTTP 401): Invalid signature", {}),
    "gptproto/error-401-unified": (AuthenticationError, 401, 401, "Token cannot be empty", {}),
    "gptproto/error-403": (PermissionDeniedError, 403, 403, "Forbidden", {}),
    "gptproto/error-403-token": (AuthenticationError, 403, 403, "Invalid Token", {}),
    "gptproto/error-403-balance": (InsufficientBalanceError, 403, 403, "Insufficient balance", {}),
    "gptproto/error-429": (RateLimitedError, 429, 429, "Too many requests", {}),
    "gptproto/error-429-generic": (RateLimitedError, 429, None, "Rate limit reached", {}),
    "gptproto/error-500": (ServerError, 500, 500, "Internal server error", {}),
    "gptproto/error-502-html": (ServerError, 502, None, "502 Bad Gateway cloudflare", {}),
    "gptproto/error-503": (ServerError, 503, 503, "Service Unavailable", {}),
    "gptproto/error-503-content": (ModerationError, 503, 503, "Please adjust and try again.", {}),
    "gptproto/error-400-content": (ModerationError, 400, 503, "Please adjust and try again.", {}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    kind, status, code, message, more = ERRORS[name]
    reply = sample(name)
    with pytest.raises(ApiError) as caught:
        provider_of(name).read_prediction(reply)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code) == (status, code)
    assert error.message.endswith(message)
    assert {attribute: getattr(error, attribute) for attribute in more} == more
    if error.code is not None:
        assert error.raw == reply.json(), "the body is kept unchanged"


# ---- upload tickets ----

TICKET = UploadTicket(
    url="https://storage.example/media/a.png?X-Amz-Signature=c2lnbmF0dXJl",
    headers={"Content-Type": "image/png", "If-None-Match": "*"},
    method="PUT",
    download_url="https://d2g64w682n9w0w.cloudfront.net/media/images/1749521540283047966_dqzyvrnl.png",
)
TICKETS = {"wavespeed/ticket": TICKET, "wavespeed/ticket-least": attrs.evolve(TICKET, headers={})}
TICKET_ERRORS = {
    "wavespeed/ticket-envelope-500": (ServerError, "Upload failed: invalid file type"),
    "wavespeed/ticket-without-url": (ProtocolError, "incomplete upload ticket"),
    "wavespeed/ticket-without-upload": (ProtocolError, "no upload ticket in it"),
    "wavespeed/ticket-headers-list": (ProtocolError, "incomplete upload ticket"),
}


@pytest.mark.parametrize("name", TICKETS)
def test_tickets(name: str) -> None:
    ticket = WAVESPEED.read_ticket(sample(name))
    assert ticket == TICKETS[name]
    assert "c2lnbmF0dXJl" not in repr(ticket), "the query is a credential"


@pytest.mark.parametrize("name", TICKET_ERRORS)
def test_ticket_errors(name: str) -> None:
    kind, message = TICKET_ERRORS[name]
    with pytest.raises(ApiError) as caught:
        WAVESPEED.read_ticket(sample(name))
    assert type(caught.value) is kind
    assert caught.value.message.endswith(message)


@pytest.mark.parametrize("name", [name for name in ERRORS if not name.startswith("wavespeed/reply-")])
def test_ticket_parser_raises_same_errors(name: str) -> None:
    with pytest.raises(ERRORS[name][0]):
        WAVESPEED.read_ticket(sample(name))


def test_samples_and_rows_match() -> None:
    files = {path.relative_to(SAMPLES).with_suffix("").as_posix() for path in SAMPLES.rglob("*.json")}
    rows = [*PREDICTIONS, *ERRORS, *TICKETS, *TICKET_ERRORS]
    assert sorted(rows) == sorted(files)


# ---- the key ----

ECHOES = {
    "as it is": KEY,
    "in a sentence": f"the key {KEY} is wrong",
    "as a header": f"Authorization: Bearer {KEY}",
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 429, 500, 502])
@pytest.mark.parametrize("shape", ["message", "error", "nested", "detail", "text", "html", "escaped", "failed"])
@pytest.mark.promise(8)
def test_echoed_key_is_redacted_in_errors(echo: str, status: int, shape: str) -> None:
    record = {"id": "p1", "status": "failed", "error": echo}
    body = {
        "message": json.dumps({"code": 401, "message": echo}),
        "error": json.dumps({"error": echo}),
        "nested": json.dumps({"error": {"message": echo, "type": "401"}}),
        "detail": json.dumps({"detail": [{"input": {"authorization": echo}}], "code": 400}),
        "text": echo,
        "html": f"<html><body>{echo}</body></html>",
        "escaped": json.dumps({"code": 401, "message": echo}).replace("/", "\\/").replace("+", "\\u002B"),
        "failed": json.dumps({"code": 200, "data": record}),
    }[shape]
    provider = WAVESPEED
    reply = HttpResponse(status=status, body=body.encode())
    try:
        prediction = provider.read_prediction(reply)
    except ApiError as error:
        shown = [str(error), repr(error), repr(vars(error)), str(error.raw), str(pickle.dumps(error))]
    else:
        failure = prediction.failure()
        assert failure is not None
        shown = [str(failure), repr(failure), repr(vars(failure)), str(prediction.raw), str(pickle.dumps(failure))]
    assert not [text for text in shown if KEY in text]


# ---- hostile responses ----

HOSTILE = {
    "time too large for a float": b'{"data": {"id": "p1", "executionTime": 1%s}}' % (b"0" * 400),
    "inference too large for a float": b'{"data": {"id": "p1", "timings": {"inference": 1%s}}}' % (b"0" * 400),
    "times that are no numbers": b'{"data": {"id": "p1", "executionTime": NaN, "timings": {"inference": Infinity}}}',
    "code that looks like a number": b'{"code": "--5", "data": {"id": "p1"}}',
    "code of thousands of digits": b'{"code": "%s", "data": {"id": "p1"}}' % (b"9" * 5000),
    "code in a superscript": '{"code": "²", "data": {"id": "p1"}}'.encode(),
    "error nested as deep as can be read": b'{"data": {"id": "p1", "error": %s}}' % (b"[" * 900 + b"]" * 900),
    "year beyond years": b'{"data": {"id": "p1", "created_at": "99999-01-01T00:00:00Z"}}',
    "zone beyond zones": b'{"data": {"id": "p1", "created_at": "2026-01-01T00:00:00+99:99"}}',
    "half of a pair of surrogates": b'{"data": {"id": "p1", "error": "\\ud83d", "model": "\\ud83d"}}',
    "utf-16": '{"data": {"id": "p1"}}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"data": {"id": "p1"}}',
}


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("word", ["error", 500, "", None, ["failed"]])
@pytest.mark.promise(6)
def test_error_with_an_id_and_a_status_of_its_own_is_no_prediction(word: object, status: int) -> None:
    """Its id may be that of the request."""
    body = {"code": 500, "message": "Overloaded", "id": "r1", "status": word}
    with pytest.raises(ApiError) as caught:
        WAVESPEED.read_prediction(HttpResponse(status=status, body=json.dumps(body).encode()))
    assert caught.value.prediction_id is None


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.promise(6)
def test_flat_prediction_beside_an_error_is_one(status: int) -> None:
    body = {"code": 500, "message": "Overloaded", "id": "p1", "status": "Created"}
    assert WAVESPEED.read_prediction(HttpResponse(status=status, body=json.dumps(body).encode())).id == "p1"


def test_flat_prediction_with_a_new_word_is_one() -> None:
    """A new word must not end a paid job."""
    body = b'{"id": "p1", "status": "warming", "error": ""}'
    assert WAVESPEED.read_prediction(HttpResponse(status=200, body=body)).id == "p1"


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_id_is_parsed_beside_hostile_fields(body: bytes) -> None:
    """A response with an id is a paid job, whatever its other fields contain."""
    prediction = WAVESPEED.read_prediction(HttpResponse(status=200, body=body))
    assert prediction.id == "p1"
    assert prediction.inference is None
    assert prediction.created_at is None
    assert prediction.code is None


@pytest.mark.parametrize("value", ["{}", "[]", "[1]", "true", "1.5", "null", '""', '"  "'])
def test_invalid_id_raises_protocol_error(value: str) -> None:
    with pytest.raises(ProtocolError):
        WAVESPEED.read_prediction(HttpResponse(status=200, body=b'{"data": {"id": %s}}' % value.encode()))


def test_numeric_id_is_accepted() -> None:
    assert WAVESPEED.read_prediction(HttpResponse(status=200, body=b'{"data": {"id": 7}}')).id == "7"


# ---- anything ----

json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=10,
)
words = st.sampled_from(["completed", "failed", "created", "--5", "5", "401", "9" * 5000, "\ud83d", "2026-01-01", "x"])
values = st.one_of(json_values, words)
records = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        (
            *("id", "model", "status", "outputs", "error", "code", "has_nsfw_contents", "created_at", "createdAt"),
            *("executionTime", "execution_time", "timings", "urls", "upload", "download_url"),
        ),
        values,
    ),
)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(values, records, st.lists(records, max_size=2))
        for name in ("code", "message", "data", "error", "detail", "errors", "error_code", "id", "status")
    },
)
bodies = st.one_of(
    st.binary(),
    st.text().map(lambda text: text.encode("utf-8", "replace")),
    st.one_of(envelopes, json_values).map(lambda body: json.dumps(body).encode()),
    st.sampled_from(
        [b"[" * 100_000, b'{"data":' * 3000, b'{"code":' + b"9" * 5000 + b"}", b"\xff\xfe", b"\xef\xbb\xbf{}"]
    ),
)
statuses = st.one_of(st.just(200), st.sampled_from([200, 400, 401, 403, 404, 429, 500, 503]), st.integers(0, 999))
headers = st.dictionaries(st.sampled_from(["retry-after", "date", "x-request-id", "content-type"]), st.text())


@settings(max_examples=400)
@given(statuses, headers, bodies, st.sampled_from(sorted(PROVIDERS)))
@pytest.mark.promise(10)
def test_any_response_parses_or_raises_api_error(status: int, sent: dict[str, str], body: bytes, provider: str) -> None:
    """Promise 10: unknown server vocabulary never crashes."""
    reply = HttpResponse(status=status, headers=sent, body=body)
    try:
        prediction = PROVIDERS[provider].read_prediction(reply)
    except ApiError as error:
        assert error.status == status  # noqa: PT017 -- either end is right
        assert str(error)  # noqa: PT017 -- the same
    else:
        assert prediction.id.strip()
        assert all(prediction.outputs)
        # Everything that the session does with it next works.
        assert isinstance(prediction.status.ended, bool)
        assert str(prediction.failure())
        assert PROVIDERS[provider].result(prediction.id).url.isascii()
        assert hash(prediction) == hash(attrs.evolve(prediction))


@given(statuses, headers, bodies)
def test_any_ticket_response_parses_or_raises_api_error(status: int, sent: dict[str, str], body: bytes) -> None:
    try:
        ticket = WAVESPEED.read_ticket(HttpResponse(status=status, headers=sent, body=body))
    except ApiError as error:
        assert error.status == status  # noqa: PT017 -- either end is right
    else:
        assert ticket.url
        assert ticket.download_url
        assert all(isinstance(text, str) for pair in ticket.headers.items() for text in pair)


def test_long_texts_are_not_kept_in_memory() -> None:
    def read(created_at: str, name: str) -> int:
        body = {"data": {"id": "p1", "created_at": created_at, name: 1}}
        prediction = WAVESPEED.read_prediction(HttpResponse(status=200, body=json.dumps(body).encode()))
        assert prediction.created_at is None
        return _wire._cached_snake.cache_info().currsize

    kept = read("no time", "someName")
    assert read("2026-01-01T00:00:00." + "0" * 10**6 + "Z", "x" * 10**6) == kept
    before = _wire._parse_moment.cache_info().currsize
    for end in "abc":
        read("9" * 10**6 + end, end * 10**6)
    assert _wire._parse_moment.cache_info().currsize <= before + 1, "cut, they are one"
    assert _wire._cached_snake.cache_info().currsize == kept
