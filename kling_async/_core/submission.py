"""What the end of a paid request means.

Three ends, and only one of them may be followed by another request:

* **accepted**: the service gave an id. The job is paid for.
* **rejected**: the service certainly did not accept it, because nothing was sent, or because it said so. Where waiting
  can help (no connection, 429) it may be sent again.
* **uncertain**: everything else. A reply was lost, cut, late, a 5xx, or makes no sense: the job may run and be charged.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from kling_async.errors import (
    ApiError,
    AuthenticationError,
    InsufficientBalanceError,
    KlingError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    TransportError,
)

from .prediction import Prediction


@attrs.frozen
class Accepted:
    """The service gave an id."""

    prediction: Prediction


@attrs.frozen
class Rejected:
    """Nothing was accepted, for certain.

    Attributes:
        error: Why.
        again: Whether sending it again after a while can help.
    """

    error: KlingError
    again: bool


@attrs.frozen
class Uncertain:
    """It may have been accepted.

    Attributes:
        error: What came instead of an answer.
    """

    error: KlingError


Verdict: TypeAlias = Accepted | Rejected | Uncertain

_REFUSALS = (
    AuthenticationError,
    InsufficientBalanceError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    RequestRejectedError,
)
_UNCLEAR = frozenset({*range(300, 400), 408, 409, 425, 499})
"""Redirects, which may follow an accepted POST; request timeout, conflict, too early, closed by the client."""


def judge(end: Prediction | TransportError | ApiError) -> Verdict:
    """What the end of a paid request means.

    Args:
        end: The prediction that the provider read from the reply, or the error that came instead.
    """
    match end:
        case Prediction():
            return Accepted(end)
        case TransportError():
            return Uncertain(end) if end.sent else Rejected(end, again=True)
        # Said of the connection or of a later place, not of the job.
        case ApiError(status=status, code=code) if not _UNCLEAR.isdisjoint({status, code}):
            return Uncertain(end)
        case RateLimitedError():
            return Rejected(end, again=True)
        case ApiError() if isinstance(end, _REFUSALS):
            return Rejected(end, again=False)
        case _:
            return Uncertain(end)
