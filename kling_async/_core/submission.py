"""Verdict on the end of a paid request: promise 1 as one table.

* **accepted**: the service returned an id, be it in an error. The job is paid for, unless its record denies it.
* **rejected**: the service certainly did not accept the job, because nothing was sent, or because it refused. Only then
  may the request be sent again, and only if a pause can help (no connection, 429, a gateway's page).
* **uncertain**: everything else: a lost, cut or late reply, a 5xx, or nonsense. The job may run and be charged.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from kling_async.errors import ApiError, KlingError, TransportError, WrongLoopError

from .answers import is_of_service
from .prediction import Prediction


@attrs.frozen
class Accepted:
    """The service returned an id."""

    prediction: Prediction


@attrs.frozen
class Rejected:
    """The service certainly did not accept the job.

    Attributes:
        error: The reason.
        again: Whether to send the request again after a pause.
    """

    error: KlingError
    again: bool


@attrs.frozen
class Uncertain:
    """The service may have accepted the job.

    Attributes:
        error: The failure that came instead of an answer.
    """

    error: KlingError


Verdict: TypeAlias = Accepted | Rejected | Uncertain

_AMBIGUOUS_STATUSES = frozenset({*range(300, 400), 408, 409, 425, 499})
"""Redirects, which may follow an accepted POST, request timeout, conflict, too early and client closed request.

Their error classes are refusals, but they concern the connection or another place, not the job.
"""


def judge(end: Prediction | TransportError | ApiError | WrongLoopError) -> Verdict:
    """Return the verdict on the end of a paid request.

    Args:
        end: The prediction that the provider read from the reply, or the error.
    """
    match end:
        case Prediction():
            return Accepted(end)
        case WrongLoopError():
            return Rejected(end, again=False)
        case ApiError(prediction_id=str(prediction_id)):
            return Accepted(Prediction(id=prediction_id, request_id=end.request_id))
        case TransportError():
            return Uncertain(end) if end.sent else Rejected(end, again=end.transient)
        case ApiError(status=status, code=code) if not _AMBIGUOUS_STATUSES.isdisjoint({status, code}):
            return Uncertain(end)
        case ApiError():
            return Rejected(end, again=end.transient or not is_of_service(end)) if end.refused else Uncertain(end)
