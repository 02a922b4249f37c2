"""Errors as HTTP answers: one table of statuses, and the problem details of RFC 9457."""

from __future__ import annotations

import math
from typing import Any, Final

import attrs

from kling_async._core.prediction import INPUT_CODES
from kling_async.errors import (
    AuthenticationError,
    BudgetExceededError,
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

RETRY_AFTER: Final = 30.0
"""Seconds to wait, where nobody said how long."""


@attrs.frozen
class _Said:
    """How a kind of error is told.

    Attributes:
        status: The HTTP status.
        title: What it is, for everybody.
        ours: Whether it is the operator's concern: its message is then logged, and not told.
        again: Whether asking again later may help.
    """

    status: int
    title: str
    ours: bool = False
    again: bool = False


_SAID: dict[type[KlingError], _Said] = {
    InvalidJobError: _Said(422, "The job is not valid"),
    ManifestError: _Said(422, "The manifest is not valid"),
    RequestRejectedError: _Said(422, "The service refused the job"),
    ModerationError: _Said(422, "The content was refused"),
    BudgetExceededError: _Said(402, "The budget is used up", ours=True),
    InsufficientBalanceError: _Said(402, "The account cannot pay for the job", ours=True),
    PriceUnknownError: _Said(402, "The job has no price that the budget can reserve"),
    KeyReusedError: _Said(409, "The key names another job"),
    UnknownJobError: _Said(404, "There is no such job"),
    NotFoundError: _Said(404, "The service has no such prediction or model"),
    OutputGoneError: _Said(410, "The video has expired"),
    WebhookRefusedError: _Said(400, "The webhook was refused"),
    RateLimitedError: _Said(429, "The service takes no more jobs at the moment", again=True),
    QueueFullError: _Said(503, "Too many jobs are waiting", again=True),
    RateLimiterError: _Said(503, "Jobs cannot be started at the moment", ours=True, again=True),
    LedgerError: _Said(503, "Jobs cannot be written down at the moment", ours=True, again=True),
    SessionClosedError: _Said(503, "The application is closing", ours=True, again=True),
    SkippedError: _Said(503, "Jobs cannot be started at the moment", ours=True, again=True),
    UnsupportedError: _Said(501, "The provider does not offer this"),
    AuthenticationError: _Said(502, "The service does not accept this application", ours=True),
    PermissionDeniedError: _Said(502, "The service does not accept this application", ours=True),
    ConnectFailedError: _Said(502, "The service cannot be reached", ours=True),
    TransportTimeoutError: _Said(504, "The service did not answer in time", ours=True),
    TransportError: _Said(502, "The connection to the service broke", ours=True),
    ServerError: _Said(502, "The service failed"),
    SubmissionUncertainError: _Said(502, "It is not known whether the service accepted the job"),
    PredictionFailedError: _Said(502, "The service could not make the video"),
    PredictionTimeoutError: _Said(504, "The video is not ready yet"),
    StorageError: _Said(502, "The video could not be saved", ours=True),
}
_SERVICE: Final = _Said(502, "The service gave no video")
_OTHER: Final = _Said(500, "The job could not be handled", ours=True)


@attrs.frozen
class Answer:
    """An error as an HTTP answer.

    Attributes:
        status: The HTTP status.
        headers: `Retry-After`, where asking again may help.
        body: The problem details.
    """

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def answer(error: KlingError) -> Answer:
    """What the caller of a web application is told of an error.

    What concerns the caller's job is told as it is. What concerns the operator (key, balance, budget, disk, network) is
    told by its title alone; the error itself is for the log. Candidates of a submission in doubt are never told: they
    may be somebody else's.
    """
    said = _said(error)
    body: dict[str, Any] = {
        "type": f"urn:kling-async:{type(error).__name__}",
        "title": said.title,
        "status": said.status,
    }
    if not said.ours:
        body["detail"] = error.message
        if error.advice:
            body["advice"] = error.advice
    if isinstance(error, InvalidJobError):
        body["errors"] = [{"path": problem.path, "message": problem.message} for problem in error.problems]
    known = {"key": error.key, "prediction_id": error.prediction_id, "request_id": error.request_id}
    body |= {name: value for name, value in known.items() if value}
    body["spent"] = error.spent.name.lower()
    headers = {"Cache-Control": "no-store"}
    if said.again:
        headers["Retry-After"] = str(math.ceil(getattr(error, "retry_after", None) or RETRY_AFTER))
    return Answer(said.status, headers, body)


def _said(error: KlingError) -> _Said:
    if isinstance(error, PredictionFailedError) and error.code in INPUT_CODES:
        return _Said(422, "The service refused the job")
    known = next((_SAID[kind] for kind in type(error).__mro__ if kind in _SAID), None)
    if known is not None:
        return known
    return _SERVICE if error.prediction_id is not None else _OTHER
