"""Everything that can go wrong, as one tree.

::

    KlingError
    ├── ConfigurationError (ValueError)      the session cannot be built as asked
    ├── InvalidJobError (ValueError)         bad input, refused before a byte was sent; `problems` has field paths
    ├── ManifestError (ValueError)           rows of a manifest are wrong, nothing was sent; `problems` has every line
    ├── UnsupportedError                     this provider has no such endpoint or model
    ├── SessionClosedError                   the session is not open (any more); nothing was sent
    ├── SkippedError                         never submitted: its batch had stopped or was drained
    ├── QueueFullError                       too many jobs wait already; nothing was sent; `retry_after`
    ├── UnknownJobError                      no job has this key
    ├── BudgetExceededError                  it would cost more than the budget has left         (account-wide)
    ├── PriceUnknownError                    it has no price that a budget could reserve
    ├── TransportError                       no usable HTTP reply; `sent` tells whether the request may have arrived
    │   ├── ConnectFailedError               no connection was made: nothing was sent
    │   ├── ConnectionLostError              the connection broke after something may have been sent
    │   └── TransportTimeoutError (TimeoutError)
    ├── ApiError                             the service answered, and said no
    │   ├── AuthenticationError              the key is missing, wrong or not activated      (account-wide)
    │   ├── PermissionDeniedError            the key may not do this
    │   ├── InsufficientBalanceError         top up                                          (account-wide)
    │   ├── RateLimitedError                 too many starts, or too many running; `retry_after`
    │   ├── RequestRejectedError             a parameter, a path or a size was refused
    │   ├── NotFoundError                    no such prediction or model (predictions live 7 days)
    │   ├── ModerationError                  the content was refused
    │   ├── ServerError                      5xx
    │   └── ProtocolError                    a reply that is not in the documented shape
    ├── SubmissionUncertainError             the paid request was sent and its end is not known
    ├── PredictionError                      a paid id exists and it did not bring a video
    │   ├── PredictionFailedError            the service ended it as failed, cancelled, timeout or deleted
    │   ├── PredictionTimeoutError (TimeoutError)  our waiting ended; the prediction goes on
    │   └── NoOutputError                    completed without an output
    ├── LedgerError                          the ledger cannot be used, so nothing was sent
    │   ├── KeyReusedError (ValueError)      the key names a job with other content
    │   └── NotInHandError                   another worker of a shared ledger has the job, or soon will
    ├── RateLimiterError                     the shared rate limiter cannot be asked: nothing was sent (account-wide)
    ├── StorageError                         an output could not be downloaded, checked or written
    │   └── OutputGoneError                  it is older than the 7 days that outputs are kept, and not there any more
    └── WebhookRefusedError                  a webhook that is not to be believed or cannot be read; `reason` says why

Every error carries what it is about: `job`, `key`, `prediction_id`, `request_id`, whether money was spent (`spent`) and
what to do next (`advice`). `str(error)` says all of it in one line; no message, `repr` or attribute holds a secret.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction


class Spent(Enum):
    """Whether the service charged for the job that an error is about."""

    NO = "nothing was spent"
    YES = "the job was paid for"
    UNKNOWN = "it is not known whether the job was paid for"
    REFUNDABLE = "the service refunds a failed prediction, usually within 3 hours"


class KlingError(Exception):
    """The base of every error that this package raises on purpose.

    Attributes:
        message: What happened, one sentence.
        job: The job it happened to, if there is one.
        key: The job's name within its batch.
        prediction_id: The id of the paid prediction, if one exists.
        request_id: The service's own id of the HTTP request, if it sent one.
        spent: Whether money was spent.
        advice: What to do next.
    """

    default_spent: ClassVar[Spent] = Spent.NO
    default_advice: ClassVar[str] = ""
    account_wide: ClassVar[bool] = False
    """Whether every other job of the account would meet the same error, so that a batch stops admission."""

    def __init__(
        self,
        message: str,
        *,
        job: Job | None = None,
        key: str | None = None,
        prediction_id: str | None = None,
        request_id: str | None = None,
        spent: Spent | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.job = job
        self.key = key
        self.prediction_id = prediction_id
        self.request_id = request_id
        self.spent = self.default_spent if spent is None else spent
        self.advice = self.default_advice if advice is None else advice

    def __str__(self) -> str:
        about = [
            f"{name} {value}"
            for name, value in (
                ("job", self.key),
                ("prediction", self.prediction_id),
                ("request", self.request_id),
            )
            if value
        ]
        parts = [self.message.rstrip(".") + (f" ({', '.join(about)})" if about else "")]
        parts.append(self.spent.value)
        if self.advice:
            parts.append(self.advice.rstrip("."))
        return "; ".join(parts) + "."

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[KlingError], args: tuple[object, ...], state: dict[str, object]) -> KlingError:
    error = cls.__new__(cls, *args)
    # `OSError`, the base of `TimeoutError`, leaves them to an `__init__` that is not called here.
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(KlingError, ValueError):
    """The session cannot be built as asked: no key, an unknown provider or level, a bad number."""


@attrs.frozen
class Problem:
    """One thing that is wrong with a job.

    Attributes:
        path: The field, as the caller names it: `prompt`, `image`, `extra.seed`.
        message: What was expected and what was got.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidJobError(KlingError, ValueError):
    """The job cannot be sent as it is. All of its problems are listed, each with its field path."""

    default_advice = "correct the fields and ask again"

    def __init__(self, problems: Sequence[Problem], **about: Any) -> None:
        self.problems = tuple(problems)
        super().__init__("invalid job: " + "; ".join(map(str, self.problems)), **about)


@attrs.frozen
class RowProblem:
    """One thing that is wrong with a manifest.

    Attributes:
        file: The manifest, as it was named.
        line: The line on which the row begins, from 1, or the number of the row where there are no lines; None when it
            is about the whole file.
        path: The field; empty when it is about the whole row.
        message: What was expected and what was got.
    """

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where} {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class ManifestError(KlingError, ValueError):
    """Rows of a manifest cannot be sent as they are, or the file cannot be read; no job of it was sent.

    Attributes:
        problems: All of them, in the order of the lines.
    """

    default_advice = "correct the lines and run it again"
    _SHOWN: ClassVar[int] = 20

    def __init__(self, problems: Sequence[RowProblem], **about: Any) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - self._SHOWN
        said = "; ".join(map(str, self.problems[: self._SHOWN])) + (f"; and {more} more" if more > 0 else "")
        super().__init__(f"invalid manifest: {said}", **about)


class UnsupportedError(KlingError):
    """The provider has no such endpoint or model; the message names both."""


class SessionClosedError(KlingError):
    """The session is not open, or is closing. What was already submitted is not affected."""

    default_advice = "use it inside `async with KlingSession() as kling:`"


class SkippedError(KlingError):
    """The job was never submitted: its batch was drained, or had stopped admission; then `__cause__` says why."""

    default_advice = "run the batch again when the cause is mended"


class QueueFullError(KlingError):
    """As many jobs wait as may; this one was not taken.

    Attributes:
        retry_after: Seconds after which to ask again.
    """

    default_advice = "ask again later"

    def __init__(self, message: str, *, retry_after: float, **about: Any) -> None:
        super().__init__(message, **about)
        self.retry_after = retry_after


class UnknownJobError(KlingError):
    """No job has this key: there never was one, or its ledger has forgotten it."""


class BudgetExceededError(KlingError):
    """The job would cost more than the budget has left; it was not sent.

    Attributes:
        budget: The cap in USD.
        used: USD of it that was spent, or may have been.
        price: USD that the job costs.
    """

    account_wide = True
    default_advice = "raise the budget and ask again: what was paid for is not paid for again"

    def __init__(self, message: str, *, budget: Decimal, used: Decimal, price: Decimal, **about: Any) -> None:
        super().__init__(message, **about)
        self.budget = budget
        self.used = used
        self.price = price


class PriceUnknownError(KlingError):
    """There is a budget, and nobody tells what the job costs, or not for sure; it was not sent."""

    default_advice = "Budget(..., allow_estimate=True) takes the catalogue's estimate, where it has one"


class TransportError(KlingError):
    """No usable HTTP reply came. `sent` is False only when no byte of the request can have reached the service."""

    sent: ClassVar[bool] = True
    default_spent = Spent.UNKNOWN


class ConnectFailedError(TransportError):
    """No connection could be made (DNS, refused, TLS, proxy, connect timeout): nothing was sent."""

    sent = False
    default_spent = Spent.NO
    default_advice = "check the network, the proxy and the base URL"


class ConnectionLostError(TransportError):
    """The connection broke before the reply was complete."""


class TransportTimeoutError(TransportError, TimeoutError):
    """The service was connected and did not answer in time."""


class ApiError(KlingError):
    """The service answered with an error.

    Attributes:
        status: The HTTP status.
        code: The `code` of the reply's envelope, or None.
        retry_after: Seconds that the service asked to wait, or None.
        raw: The decoded body as it came, or its beginning as text.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: int | None = None,
        retry_after: float | None = None,
        raw: object = None,
        **about: Any,
    ) -> None:
        super().__init__(message, **about)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.raw = raw


class AuthenticationError(ApiError):
    """The key is missing, wrong, or not yet activated by a first top-up (docs-authentication)."""

    account_wide = True
    default_advice = "check the API key; a new WaveSpeed key works only after the first top-up"


class PermissionDeniedError(ApiError):
    """The key's role lacks the permission, or the account is suspended."""

    default_advice = "check the role of the key and the state of the account"


class InsufficientBalanceError(ApiError):
    """The account cannot pay for the job."""

    account_wide = True
    default_advice = "top up the account"


class RateLimitedError(ApiError):
    """Too many starts per minute, or too many running: the request was not accepted."""

    default_advice = "lower max_in_flight or name the account's level"


class RequestRejectedError(ApiError):
    """The service refused the request as it is; sending it again would not help."""


class NotFoundError(ApiError):
    """No such prediction or model. Predictions and outputs are kept for 7 days."""


class ModerationError(ApiError):
    """The content was refused. Change the prompt or the image; never send it again as it is."""

    default_advice = "change the prompt or the image"


class ServerError(ApiError):
    """The service or a gateway before it failed."""


class ProtocolError(ApiError):
    """The reply is not in the documented shape."""


class SubmissionUncertainError(KlingError):
    """The paid request was sent, and whether it was accepted is not known. It was not sent again; `__cause__` says why.

    Attributes:
        sent_at: When the request was sent, seconds since the epoch: the place to look in the account's history.
        candidates: Ids of the predictions that it may have become.
    """

    default_spent = Spent.UNKNOWN
    default_advice = "look for it in the account's prediction history before asking again"

    def __init__(
        self, message: str, *, sent_at: float | None = None, candidates: Sequence[str] = (), **about: Any
    ) -> None:
        super().__init__(message, **about)
        self.sent_at = sent_at
        self.candidates = tuple(candidates)


class PredictionError(KlingError):
    """A prediction exists and was paid for, and it did not bring a video.

    Attributes:
        prediction: The last state that was seen, or None when it was never seen.
    """

    default_spent = Spent.YES

    def __init__(self, message: str, *, prediction: Prediction | None = None, **about: Any) -> None:
        if prediction is not None:
            about.setdefault("prediction_id", prediction.id)
            about.setdefault("request_id", prediction.request_id)
        super().__init__(message, **about)
        self.prediction = prediction


class PredictionFailedError(PredictionError):
    """The service ended the prediction without a video.

    Attributes:
        code: The task's error code (docs/error-codes), or None: 1200 moderation, 1400 and 1401 parameters, 1402 media
            access, 1403 and 1405 task failed, 5000, 5003 and 5004 the service's own trouble.
    """

    default_spent = Spent.REFUNDABLE

    def __init__(self, message: str, *, code: int | None = None, **about: Any) -> None:
        super().__init__(message, **about)
        self.code = code


class PredictionTimeoutError(PredictionError, TimeoutError):
    """The deadline of the waiting passed. The prediction is not failed: it still runs and can be waited for again."""

    default_advice = "wait(prediction_id) follows it further"


class NoOutputError(PredictionError):
    """The service says completed and gives no output."""

    default_advice = "get(prediction_id) may show an output later; else ask the service's support for a refund"


class LedgerError(KlingError):
    """The ledger cannot be opened or written, so nothing was sent."""

    default_advice = "make room on the disk, or name another file"


class NotInHandError(LedgerError):
    """Another worker of a shared ledger has the job in hand, or the lease on it has ended."""

    default_advice = "nothing is lost: another worker goes on with it"


class RateLimiterError(KlingError):
    """The rate limiter that is shared with others cannot be asked, so nothing was sent."""

    account_wide = True
    default_advice = "see that its server runs and can be reached, then run the jobs again"


class KeyReusedError(LedgerError, ValueError):
    """The key names a job with other content in this ledger; an edited image file counts as other content."""

    default_advice = "give the new content a new key, or another batch name"

    def __init__(self, key: str, **about: Any) -> None:
        super().__init__(f"the key {key!r} names a job with other content in the ledger", key=key, **about)


class StorageError(KlingError):
    """An output could not be downloaded, checked or written. It stays on the service for 7 days.

    Attributes:
        target: The file, or the URL in an object store, that it was meant for.
    """

    default_spent = Spent.YES
    default_advice = "save(prediction_id, ...) downloads it again, without paying again"

    def __init__(self, message: str, *, target: str = "", **about: Any) -> None:
        super().__init__(message, **about)
        self.target = target


class OutputGoneError(StorageError):
    """The output has expired: its host has it no more, asked repeatedly, and its 7 days are over."""

    default_advice = "only a new, paid generation brings the video again"


class WebhookRefusal(Enum):
    """Why a webhook was refused."""

    UNSIGNED = "unsigned"
    """A header of the signature is missing."""
    MALFORMED = "malformed"
    """A header of the signature is not in its form."""
    STALE = "stale"
    """It was sent too long ago, or will be: a replay, or a wrong clock."""
    FORGED = "forged"
    """No signature is of an accepted secret."""
    REPLAYED = "replayed"
    """It is genuine, and was taken before."""
    TOO_LARGE = "too large"
    """The body has more bytes than are read."""
    TOO_SLOW = "too slow"
    """The body did not come in time."""
    UNREADABLE = "unreadable"
    """It is genuine, and there is no prediction in it."""


class WebhookRefusedError(KlingError):
    """A webhook is not to be believed, or cannot be read. Neither signature nor secret nor body is in the error.

    Attributes:
        reason: Why, for programs.
    """

    default_spent = Spent.UNKNOWN

    def __init__(self, message: str, *, reason: WebhookRefusal, **about: Any) -> None:
        super().__init__(message, **about)
        self.reason = reason
