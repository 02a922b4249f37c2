"""Errors as HTTP responses: one table of statuses, and problem details (RFC 9457)."""

from __future__ import annotations

import math
from typing import Any, Final

import attrs

from kling_async._core.prediction import INPUT_CODES
from kling_async.errors import (
    AuthenticationError,
    BudgetExceededError,
    CallerBudgetExceededError,
    CallerLimitError,
    ConnectFailedError,
    InsufficientBalanceError,
    InvalidJobError,
    KeyReusedError,
    KlingError,
    LedgerError,
    ManifestError,
    ModerationError,
    NotFoundError,
    OutputGoneError,
    PermissionDeniedError,
    PredictionFailedError,
    PredictionTimeoutError,
    PriceUnknownError,
    QueueFullError,
    RateLimitedError,
    RateLimiterError,
    ReplyTooLargeError,
    RequestRejectedError,
    ServerError,
    SessionClosedError,
    SkippedError,
    StorageError,
    SubmissionUncertainError,
    TransportError,
    TransportTimeoutError,
    UnknownJobError,
    UnsupportedError,
    WebhookRefusedError,
)

MEDIA_TYPE: Final = "application/problem+json"

DEFAULT_RETRY_AFTER_S: Final = 30.0
"""`Retry-After` in seconds, for errors that do not name one."""


@attrs.frozen
class _Kind:
    """HTTP representation of a kind of error.

    Attributes:
        status: HTTP status.
        title: Generic title, shown to every client.
        operator: Whether the error concerns the operator: the client does not see its message then.
        retry: Whether a later attempt may succeed.
    """

    status: int
    title: str
    operator: bool = False
    retry: bool = False


_KINDS: dict[type[KlingError], _Kind] = {
    InvalidJobError: _Kind(422, "The job is not valid"),
    ManifestError: _Kind(422, "The manifest is not valid"),
    RequestRejectedError: _Kind(422, "The service refused the job"),
    ModerationError: _Kind(422, "The content was refused"),
    CallerBudgetExceededError: _Kind(402, "Your budget is used up"),
    BudgetExceededError: _Kind(402, "The budget is used up", operator=True),
    InsufficientBalanceError: _Kind(402, "The account cannot pay for the job", operator=True),
    PriceUnknownError: _Kind(402, "The job has no price that the budget can reserve"),
    KeyReusedError: _Kind(409, "The key names another job"),
    UnknownJobError: _Kind(404, "There is no such job"),
    NotFoundError: _Kind(404, "The service has no such prediction or model"),
    OutputGoneError: _Kind(410, "The video has expired"),
    WebhookRefusedError: _Kind(400, "The webhook was refused"),
    RateLimitedError: _Kind(429, "The service takes no more jobs at the moment", retry=True),
    CallerLimitError: _Kind(429, "Too many of your jobs are waiting", retry=True),
    QueueFullError: _Kind(503, "Too many jobs are waiting", retry=True),
    RateLimiterError: _Kind(503, "Jobs cannot be started at the moment", operator=True, retry=True),
    LedgerError: _Kind(503, "Jobs cannot be recorded at the moment", operator=True, retry=True),
    SessionClosedError: _Kind(503, "The application is closing", operator=True, retry=True),
    SkippedError: _Kind(503, "Jobs cannot be started at the moment", operator=True, retry=True),
    UnsupportedError: _Kind(501, "The provider does not offer this"),
    AuthenticationError: _Kind(502, "The service does not accept this application", operator=True),
    PermissionDeniedError: _Kind(502, "The service does not accept this application", operator=True),
    ConnectFailedError: _Kind(502, "The service cannot be reached", operator=True),
    ReplyTooLargeError: _Kind(502, "The service failed", operator=True),
    TransportTimeoutError: _Kind(504, "The service did not answer in time", operator=True),
    TransportError: _Kind(502, "The connection to the service broke", operator=True),
    ServerError: _Kind(502, "The service failed"),
    SubmissionUncertainError: _Kind(502, "It is not known whether the service accepted the job"),
    PredictionFailedError: _Kind(502, "The service could not make the video"),
    PredictionTimeoutError: _Kind(504, "The video is not ready yet"),
    StorageError: _Kind(502, "The video could not be saved", operator=True),
}
_NO_VIDEO: Final = _Kind(502, "The service produced no video")
_OTHER: Final = _Kind(500, "The job could not be handled", operator=True)


@attrs.frozen
class Answer:
    """HTTP response for an error.

    Attributes:
        status: HTTP status.
        headers: Headers, with `Retry-After` where a later attempt may succeed.
        body: Problem details.
    """

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def answer(error: KlingError) -> Answer:
    """Return the response that the client of a web application gets for an error.

    Errors about the client's job are shown with their message. Errors that concern the operator (key, balance, budget,
    disk, network) show a generic title; log the error itself. Candidates of a submission in doubt are never shown: they
    may be other clients' predictions.
    """
    kind = _kind_of(error)
    body: dict[str, Any] = {
        "type": f"urn:kling-async:{type(error).__name__}",
        "title": kind.title,
        "status": kind.status,
    }
    if not kind.operator:
        body["detail"] = error.message
        if error.advice:
            body["advice"] = error.advice
    if isinstance(error, InvalidJobError):
        body["errors"] = [{"path": problem.path, "message": problem.message} for problem in error.problems]
    ids = {"key": error.key, "prediction_id": error.prediction_id, "request_id": error.request_id}
    body |= {name: value for name, value in ids.items() if value}
    body["spent"] = error.spent.name.lower()
    headers = {"Cache-Control": "no-store"}
    if kind.retry:
        headers["Retry-After"] = str(math.ceil(getattr(error, "retry_after", None) or DEFAULT_RETRY_AFTER_S))
    return Answer(kind.status, headers, body)


def _kind_of(error: KlingError) -> _Kind:
    if isinstance(error, PredictionFailedError) and error.code in INPUT_CODES:
        return _Kind(422, "The service refused the job")
    known = next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), None)
    if known is not None:
        return known
    return _NO_VIDEO if error.prediction_id is not None else _OTHER
