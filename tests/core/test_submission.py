"""Promise 1 as a table: the verdict on every end of a paid request, and which may be sent again."""

from __future__ import annotations

import json
from typing import TypeAlias

import pytest

from kling_async import ApiError, HttpResponse, Prediction, TransportError, WaveSpeed, errors
from kling_async._core.submission import Accepted, Rejected, Uncertain, judge

ACCEPTED, REJECTED, AGAIN, UNCERTAIN = "accepted", "rejected", "rejected, again", "uncertain"
End: TypeAlias = Prediction | TransportError | ApiError


def kinds(base: type[errors.KlingError]) -> list[type[errors.KlingError]]:
    return [base, *(kind for sub in base.__subclasses__() for kind in kinds(sub))]


def verdict(end: End) -> str:
    judged = judge(end)
    match judged:
        case Accepted(prediction):
            assert prediction is end
            return ACCEPTED
        case Rejected(error, again):
            assert error is end
            return AGAIN if again else REJECTED
        case Uncertain(error):
            assert error is end
            return UNCERTAIN


def reply(status: int, body: bytes | dict[str, object] = b"") -> End:
    """Return the prediction or the error that the WaveSpeed provider reads from a reply."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return WaveSpeed(api_key="wsk_key_of_the_test").read_prediction(HttpResponse(status=status, body=raw))
    except ApiError as error:
        return error


BY_CLASS = {
    errors.ApiError: UNCERTAIN,
    errors.AuthenticationError: REJECTED,
    errors.PermissionDeniedError: REJECTED,
    errors.InsufficientBalanceError: REJECTED,
    errors.RateLimitedError: AGAIN,
    errors.RequestRejectedError: REJECTED,
    errors.NotFoundError: REJECTED,
    errors.ModerationError: REJECTED,
    errors.ServerError: UNCERTAIN,
    errors.ProtocolError: UNCERTAIN,
    errors.TransportError: UNCERTAIN,
    errors.ConnectFailedError: AGAIN,
    errors.ConnectionLostError: UNCERTAIN,
    errors.ReplyTooLargeError: UNCERTAIN,
    errors.TransportTimeoutError: UNCERTAIN,
}


@pytest.mark.parametrize("kind", BY_CLASS, ids=lambda kind: kind.__name__)
def test_judge_decides_every_error_class(kind: type[ApiError | TransportError]) -> None:
    raw = {"code": 400, "message": "no"}
    error = kind("what came", status=400, raw=raw) if issubclass(kind, ApiError) else kind("what came")
    assert verdict(error) == BY_CLASS[kind]


def test_table_covers_every_error_class() -> None:
    assert set(BY_CLASS) == {*kinds(errors.ApiError), *kinds(errors.TransportError)}


@pytest.mark.promise(1)
def test_only_connect_failures_and_429_of_the_service_allow_a_resend() -> None:
    assert {kind for kind, end in BY_CLASS.items() if end == AGAIN} == {
        errors.ConnectFailedError,
        errors.RateLimitedError,
    }


def by_status(status: int, refused: str) -> str:
    """Return the expected verdict for an HTTP status; `refused` is that for a refusal."""
    if status == 429:
        return AGAIN
    if status < 400 or status in {408, 409, 425, 499}:
        # These concern the connection or another place, not the job.
        return UNCERTAIN
    return refused if 300 <= status <= 499 else UNCERTAIN


BODIES: dict[str, bytes | dict[str, object]] = {
    "empty": b"",
    "html": b"<html><title>Bad gateway</title></html>",
    "without a code": {"message": "no"},
    "of the service": {"code": 1, "message": "no"},
}


@pytest.mark.parametrize("form", BODIES)
def test_judge_decides_every_http_status_from_300_to_599(form: str) -> None:
    """A refusal in another form than the service's is a gateway's, which may pass."""
    refused = REJECTED if form == "of the service" else AGAIN
    found = {status: verdict(reply(status, BODIES[form])) for status in range(300, 600)}
    assert found == {status: by_status(status, refused) for status in range(300, 600)}


@pytest.mark.parametrize(
    ("end", "statuses"),
    [
        (REJECTED, (400, 401, 402, 403, 404, 413, 422)),
        (AGAIN, (429,)),
        (UNCERTAIN, (0, 100, 302, 303, 307, 408, 409, 425, 499, 500, 502, 503, 504, 524, 600, 999)),
    ],
)
def test_judge_decides_important_http_statuses(end: str, statuses: tuple[int, ...]) -> None:
    for status in statuses:
        assert (status, verdict(reply(status, {"code": status, "message": "no"}))) == (status, end)


@pytest.mark.parametrize(
    ("end", "codes"),
    [
        (REJECTED, (400, 401, 402, 403, 404, 1200, 1400, 1401, 1402, 1407)),
        (AGAIN, (429,)),
        (UNCERTAIN, (-1, 1, 303, 408, 409, 425, 499, 500, 503, 1403, 1405, 5000, 5003, 5004, 10**9)),
    ],
)
def test_judge_decides_envelope_codes_in_http_200(end: str, codes: tuple[int, ...]) -> None:
    for code in codes:
        assert (code, verdict(reply(200, {"code": code, "message": "no"}))) == (code, end)


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("code", [200, 201, 0, None])
def test_reply_with_id_is_accepted(status: int, code: int | None) -> None:
    assert verdict(reply(status, {"code": code, "data": {"id": "p1", "status": "created"}})) == ACCEPTED


def test_reply_with_failed_prediction_is_accepted() -> None:
    body = {"code": 200, "data": {"id": "p1", "status": "failed", "code": 1401, "error": "bad"}}
    assert verdict(reply(200, dict(body))) == ACCEPTED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"code": 200, "message": "success", "data": {"id": "p',
        b"<html>welcome</html>",
        b"null",
        b"[]",
        {},
        {"code": 200, "data": None},
        {"code": 200, "data": {}},
        {"code": 200, "data": {"id": ""}},
        {"code": 200, "data": {"id": None}},
        {"code": 200, "data": []},
        {"error": "odd"},
    ],
)
@pytest.mark.promise(1, 10)
def test_unreadable_http_200_is_uncertain(body: bytes | dict[str, object]) -> None:
    assert verdict(reply(200, body)) == UNCERTAIN


def test_gptproto_content_refusal_with_503_is_rejected() -> None:
    text = "Input may not meet the guidelines. Please adjust and try again."
    assert verdict(reply(503, {"error": {"message": text, "type": "503"}})) == REJECTED


@pytest.mark.promise(1, 2)
@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
@pytest.mark.parametrize("code", [400, 401, 429, 500, "400"])
@pytest.mark.parametrize("data", [{"id": "p1"}, [{"id": "p1"}], {"id": "p1", "status": "failed"}], ids=str)
def test_error_with_an_id_is_accepted(status: int, code: object, data: object) -> None:
    """Sent again, it would be paid for twice; what became of it is seen by its id."""
    end = judge(reply(status, {"code": code, "message": "Something is wrong", "data": data}))
    assert isinstance(end, Accepted)
    assert end.prediction.id == "p1"
    assert end.prediction.raw_status == ("failed" if "failed" in str(data) else "created")


@pytest.mark.parametrize(
    "body",
    [
        {"code": 400, "message": "no", "id": "request-1"},
        {"code": 400, "message": "no", "data": {"id": None}},
        {"code": 400, "message": "no", "data": {"id": " "}},
        {"code": 400, "message": "no", "data": {"error": "no"}},
        {"code": 400, "message": "no", "data": []},
    ],
    ids=str,
)
def test_error_without_the_id_of_a_prediction_is_a_refusal(body: dict[str, object]) -> None:
    assert verdict(reply(400, body)) == REJECTED
    assert verdict(reply(200, body)) == REJECTED
