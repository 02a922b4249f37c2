"""Answers that are no success: which are final, how often and over how many seconds they must be said.

All other answers pass: proxies, captive portals, lagging replicas and deployments of the service cause them, and
nothing is lost by asking again. `RULES` is the only place that decides it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import attrs

from kling_async.errors import (
    ApiError,
    AuthenticationError,
    ConnectFailedError,
    KlingError,
    ReplyTooLargeError,
    ServerError,
    TransportTimeoutError,
)

MAX_READ_PAUSE_S = 60.0
"""Longest `Retry-After` that is honoured for unpaid requests; it pauses the requests of one kind."""


class Kind(Enum):
    """Kind of a request: each has its own final answers and its own pauses."""

    STATUS = "status"
    """The state of a paid prediction."""
    PAGE = "page"
    """A page of the account's predictions or bill, read by the session itself."""
    CALL = "call"
    """A call of the user, such as `balance` or `get`, or the price of a job."""
    UPLOAD = "upload"
    """A request of the upload of an image."""
    OUTPUT = "output"
    """A GET of an output from its host."""
    SUBMIT = "submit"
    """A paid request that was refused in a form that is not the service's; `submission.judge` decides on all others."""


@attrs.frozen
class Final:
    """Answers that end a request when they are repeated.

    Attributes:
        statuses: HTTP statuses, or codes of the envelope in an HTTP 200.
        times: Least number of such answers in a row.
        over: Least number of seconds from the first of them to the last.
    """

    statuses: frozenset[int]
    times: int
    over: float


@attrs.frozen
class Rule:
    """Final answers of one kind of request.

    Attributes:
        final: The final answers; all others pass.
        within: Seconds after which the last answer is raised, final or not; infinite if the caller has a deadline.
    """

    final: tuple[Final, ...]
    within: float


_REFUSALS = frozenset({400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 501})

RULES: Mapping[Kind, Rule] = MappingProxyType(
    {
        # A lag of half a minute after a submit, or a minute of a wrong route, loses no paid job.
        Kind.STATUS: Rule(
            (
                Final(frozenset({404, 410}), times=4, over=60.0),
                Final(frozenset({401}), times=6, over=300.0),
            ),
            within=math.inf,
        ),
        Kind.PAGE: Rule((Final(_REFUSALS, times=3, over=10.0),), within=120.0),
        Kind.CALL: Rule((Final(_REFUSALS, times=3, over=1.0),), within=30.0),
        # Only once the output is past its lifetime: before, a host may not have it yet.
        Kind.OUTPUT: Rule((Final(frozenset({404, 410}), times=3, over=60.0),), within=math.inf),
        Kind.UPLOAD: Rule((Final(_REFUSALS, times=3, over=1.0),), within=120.0),
        Kind.SUBMIT: Rule((), within=120.0),
    }
)
"""Final answers, by the kind of request."""


def final_answer(kind: Kind, error: KlingError) -> Final | None:
    """Return the rule by which an error is final once it is repeated; None for one that passes.

    Only an error of the service itself can be final.
    """
    if not isinstance(error, ApiError) or not is_of_service(error):
        return None
    # One service refuses keys with 403.
    status = _UNAUTHORIZED if isinstance(error, AuthenticationError) else _status(error)
    return next((final for final in RULES[kind].final if status in final.statuses), None)


def is_of_service(error: ApiError) -> bool:
    """Return whether an error has the form of the service's own: an object with `code` or `error`.

    Others come from proxies and gateways before the service.
    """
    return isinstance(error.raw, Mapping) and not error.raw.keys().isdisjoint(_MARKS)


@attrs.define
class Answers:
    """Failed answers to one request since it last succeeded.

    Attributes:
        kind: Kind of the request.
        counts: Number of answers by their description.
    """

    kind: Kind
    counts: Counter[str] = attrs.Factory(Counter)
    _first_at: float = attrs.field(default=0.0, init=False)
    _last_at: float = attrs.field(default=0.0, init=False)
    _final: Final | None = attrs.field(default=None, init=False)
    _repeated: int = attrs.field(default=0, init=False)
    _repeated_since: float = attrs.field(default=0.0, init=False)

    def add(self, error: KlingError, now: float) -> bool:
        """Add an answer, and return whether it is final.

        Args:
            error: The error that was read from it, or that came instead of it.
            now: Monotonic time in seconds.
        """
        if not self.counts:
            self._first_at = now
        self._last_at = now
        self.counts[_description(error)] += 1
        final = final_answer(self.kind, error)
        if final is not self._final:
            self._final, self._repeated, self._repeated_since = final, 0, now
        self._repeated += 1
        return final is not None and self._repeated >= final.times and now - self._repeated_since >= final.over

    @property
    def count(self) -> int:
        """Number of answers."""
        return self.counts.total()

    @property
    def seconds(self) -> float:
        """Seconds from the first answer to the last."""
        return self._last_at - self._first_at

    def __str__(self) -> str:
        each = ", ".join(f"{count} x {answer}" for answer, count in self.counts.most_common())
        return f"answers within {self.seconds:.0f} s: {each}"

    def raised(self, error: KlingError, *, final: bool) -> KlingError:
        """Return the error to raise after the last answer, with all answers in its text.

        Args:
            error: The error of the last answer.
            final: Whether it is final. Otherwise a refusal is returned as a `ServerError`, which may pass.
        """
        message = error.message if self.count == 1 else f"{error.message.rstrip('.')}; {self}"
        if isinstance(error, ApiError) and not final and not error.transient:
            return ServerError(
                message,
                status=error.status,
                code=error.code,
                retry_after=error.retry_after,
                raw=error.raw,
                request_id=error.request_id,
                advice=error.advice or "try again later; a proxy or a gateway before the service may have answered",
            )
        error.message = message
        error.args = (message,)
        return error


_UNAUTHORIZED = 401
_MARKS = frozenset({"code", "error"})
_SUCCESS = range(200, 300)


def _status(error: ApiError) -> int:
    """Return the HTTP status of an error, or the envelope's code in a successful reply."""
    return error.code if error.status in _SUCCESS and error.code is not None else error.status


def _description(error: KlingError) -> str:
    """Return an answer in a few words without data of the reply, so that equal answers are counted together."""
    match error:
        case ApiError(status=status, code=code):
            if code is None or code == status:
                return f"HTTP {status}" + (" in an unknown form" if status in _SUCCESS else "")
            return f"HTTP {status} with code {code}"
        case ConnectFailedError():
            return "no connection"
        case TransportTimeoutError():
            return "no reply in time"
        case ReplyTooLargeError():
            return "a reply that is too large"
        case _:
            return "connection lost"
