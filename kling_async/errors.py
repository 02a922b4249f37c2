"""All errors of this package, as one tree.

```text
KlingError
├── ConfigurationError (ValueError)      the session cannot be built from its options
├── InvalidJobError (ValueError)         bad input, refused before anything was sent; `problems` has field paths
├── ManifestError (ValueError)           bad rows in a manifest, nothing was sent; `problems` has every line
├── UnsupportedError                     the provider lacks the endpoint or the model
├── SessionClosedError                   the session is not open; nothing was sent
├── WrongLoopError (RuntimeError)        used from another event loop, thread or library; nothing was sent
├── SkippedError                         never submitted: its batch had stopped or was drained, or a parent has no video
├── QueueFullError                       too many jobs are queued; nothing was sent; `retry_after`
│   └── CallerLimitError                 ... of this caller; `caller`
├── UnknownJobError                      no job has this key
├── BudgetExceededError                  the job costs more than the budget has left
│   └── CallerBudgetExceededError        ... of its caller; other callers go on; `caller`
├── PriceUnknownError                    there is a budget, and no price to reserve
├── AlreadyPaidError                     another batch of the ledger has paid for the job; nothing was sent; `batch`
│   └── InDoubtElsewhereError            another batch's job with the same content is in doubt, so it cannot be reused
├── TransportError                       no usable HTTP reply; `sent` is False if the request cannot have arrived
│   ├── ConnectFailedError               no connection was made: nothing was sent
│   ├── ConnectionLostError              the connection broke after something may have been sent
│   ├── ReplyTooLargeError               the reply is larger than the session reads
│   └── TransportTimeoutError (TimeoutError)  no reply came in time
├── ApiError                             the service answered with an error
│   ├── AuthenticationError              the key is missing, wrong or not activated
│   ├── PermissionDeniedError            the key lacks the permission
│   ├── InsufficientBalanceError         the account needs a top-up
│   ├── RateLimitedError                 too many starts, or too many running; `retry_after`
│   ├── RequestRejectedError             a parameter, a path or a size was refused
│   ├── NotFoundError                    no such prediction or model (predictions are kept for 7 days)
│   ├── ModerationError                  the content was refused
│   ├── ServerError                      5xx
│   └── ProtocolError                    the reply is not in the documented form
├── SubmissionUncertainError             the paid request was sent and its outcome is unknown
│   └── LineLostError                    and so were the replies to many others in a row
├── PredictionError                      a paid prediction exists and gave no video
│   ├── PredictionFailedError            it ended as failed, cancelled, timeout or deleted
│   ├── PredictionTimeoutError (TimeoutError)  the wait ended; the prediction still runs
│   ├── PredictionExpiredError           the service has deleted it: it keeps predictions for 7 days
│   └── NoOutputError                    it completed without an output
├── LedgerError                          the ledger cannot be used, so nothing was sent
│   ├── KeyReusedError (ValueError)      the key belongs to a job with other content
│   ├── OtherAccountError                another account runs the job: this one cannot read it
│   ├── UnknownPredictionError           the account has this job's prediction, and the ledger does not know it
│   └── NotInHandError                   another worker of a shared ledger has the job, or may soon claim it
├── RateLimiterError                     the shared rate limiter cannot be reached: nothing was sent
├── StorageError                         an output could not be downloaded, checked or written
│   └── OutputGoneError                  the output is older than 7 days and has been deleted
├── VideoError (ValueError)              a video on this computer gives no frame, or cannot be joined; `path`
└── WebhookRefusedError                  a webhook is not authentic or cannot be read; `reason`
```

Class attributes classify the errors, so that no caller needs a list of classes of its own. Each is False but for:

```text
account_wide        every other job of the account fails likewise, so a batch stops admission
                    AuthenticationError BudgetExceededError InsufficientBalanceError LineLostError RateLimiterError
                    UnknownPredictionError
insufficient_funds  jobs cannot be sent for lack of money; running predictions can still be followed
                    BudgetExceededError InsufficientBalanceError
permanent           the same job fails likewise whenever it is submitted again
                    AlreadyPaidError InvalidJobError KeyReusedError ModerationError NotFoundError
                    PermissionDeniedError RequestRejectedError UnsupportedError
refused             the service answered that it did not carry out the request, so nothing was accepted
                    AuthenticationError InsufficientBalanceError ModerationError NotFoundError
                    PermissionDeniedError RateLimitedError RequestRejectedError
transient           the same request may succeed after a pause; only reads and refused submits are sent again
                    ConnectFailedError ConnectionLostError ProtocolError RateLimitedError ServerError
                    TransportError TransportTimeoutError
```

Every error has its subject (`job`, `key`, `prediction_id`, `request_id`), `spent` (whether money was spent) and
`advice`. `str(error)` shows them in one line; no message, `repr` or attribute contains a secret.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from kling_async._core.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from decimal import Decimal
    from pathlib import Path

    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction


class Spent(Enum):
    """Statement on whether the service charged for the job of an error."""

    NO = "nothing was spent"
    YES = "the job was paid for"
    UNKNOWN = "it is not known whether the job was paid for"
    REFUNDABLE = "the service refunds a failed prediction, usually within 3 hours"


class KlingError(Exception):
    """Base of all errors that this package raises deliberately.

    Attributes:
        message: One sentence that describes the failure.
        job: The job concerned, or None.
        key: Key of the job within its batch, or None.
        prediction_id: Id of the paid prediction, or None if there is none.
        request_id: The service's id of the HTTP request, or None.
        spent: Whether money was spent.
        advice: The next step; empty if there is none.
    """

    default_spent: ClassVar[Spent] = Spent.NO
    default_advice: ClassVar[str] = ""
    account_wide: ClassVar[bool] = False
    """True if every other job of the account fails likewise, so that a batch stops admission."""
    insufficient_funds: ClassVar[bool] = False
    """True for a lack of money: jobs cannot be sent, but running predictions can still be followed."""
    permanent: ClassVar[bool] = False
    """True if the same job fails likewise whenever it is submitted again."""
    transient: ClassVar[bool] = False
    """True if the same request may succeed after a pause; for a paid request, `judge` decides."""

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
        # It may quote a service, a file or a user.
        message = one_line(message)
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
        return one_line("; ".join(parts)) + "."

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[KlingError], args: tuple[object, ...], state: dict[str, object]) -> KlingError:
    error = cls.__new__(cls, *args)
    # `OSError`, the base of `TimeoutError`, sets `args` in `__init__`, which is not called here.
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(KlingError, ValueError):
    """The session cannot be built from its options: no key, an unknown provider or level, a bad number."""


@attrs.frozen
class Problem:
    """One problem of a job.

    Attributes:
        path: Field path as the caller writes it: `prompt`, `image`, `extra.seed`; empty for the whole job or row.
        message: The expected value and the actual one.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidJobError(KlingError, ValueError):
    """The job has invalid fields; it was not sent.

    Attributes:
        problems: All problems, each with its field path.
    """

    permanent = True
    default_advice = "correct the fields and submit again"

    def __init__(self, problems: Sequence[Problem], **about: Any) -> None:
        self.problems = tuple(problems)
        super().__init__("invalid job: " + "; ".join(map(str, self.problems)), **about)


@attrs.frozen
class RowProblem:
    """One problem of a manifest.

    Attributes:
        file: The manifest, as the caller named it.
        line: First line of the row, from 1, or the row number in formats without lines; None for the whole file.
        path: Field path; empty for the whole row.
        message: The expected value and the actual one.
    """

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where} {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


@attrs.frozen
class ProblemGroup:
    """Equal problems of several rows; those that differ only in quoted values, such as names of files, are alike.

    Attributes:
        problems: The problems, in the order of the lines.
    """

    problems: tuple[RowProblem, ...]
    _MAX_SHOWN: ClassVar[int] = 3

    def __str__(self) -> str:
        """Return the message with the first rows: `jobs.csv duration: expected 5, got 6: rows 3, 9, 14 and 97 more`."""
        first = self.problems[0]
        if len(self.problems) == 1:
            return str(first)
        shown = [problem.file if problem.line is None else str(problem.line) for problem in self.problems]
        more = len(shown) - self._MAX_SHOWN
        places = ", ".join(shown[: self._MAX_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        head = f"{first.path}: {first.message}" if first.path else first.message
        alike = "" if all(problem.message == first.message for problem in self.problems) else ", and the like"
        if first.line is None:
            return f"{head}{alike}: {places}"
        return f"{first.file}{' ' if first.path else ': '}{head}{alike}: rows {places}"


def group_problems(problems: Iterable[RowProblem]) -> list[ProblemGroup]:
    """Return problems in groups, in the order of the first of each."""
    groups: dict[tuple[str, str, str], list[RowProblem]] = {}
    for problem in problems:
        file = "" if problem.line is None else problem.file
        groups.setdefault((file, problem.path, _QUOTED.sub("''", problem.message)), []).append(problem)
    return [ProblemGroup(tuple(group)) for group in groups.values()]


_QUOTED = re.compile(r"'[^']*'")


class ManifestError(KlingError, ValueError):
    """A manifest has invalid rows or cannot be read; no job of it was sent.

    Attributes:
        problems: All problems, in the order of the lines.
    """

    default_advice = "correct the lines and run it again, or leave them out with skip_invalid=True (--skip-invalid)"
    _MAX_SHOWN: ClassVar[int] = 20

    def __init__(self, problems: Sequence[RowProblem], **about: Any) -> None:
        self.problems = tuple(problems)
        groups = group_problems(self.problems)
        more = sum(len(group.problems) for group in groups[self._MAX_SHOWN :])
        said = "; ".join(map(str, groups[: self._MAX_SHOWN])) + (f"; and {more:,} more" if more > 0 else "")
        if all(problem.line is None and not problem.path for problem in self.problems):
            # Of a list that is not there, or cannot be read, no rows can be left out.
            about.setdefault("advice", "correct it and run it again")
        super().__init__(f"invalid manifest: {said}", **about)


class UnsupportedError(KlingError):
    """The provider lacks the endpoint or the model; the message names both."""

    permanent = True


class SessionClosedError(KlingError):
    """The session is not open, or is closing. Jobs that were submitted before are not affected."""

    default_advice = "use it inside `async with KlingSession() as kling:`"


class WrongLoopError(KlingError, RuntimeError):
    """A session, or another object that belongs to an event loop, was used outside of that loop; nothing was sent."""

    default_advice = (
        "from other threads call asyncio.run_coroutine_threadsafe(coroutine, loop), with the loop that it was opened "
        "in, or open a session in each event loop"
    )


class SkippedError(KlingError):
    """The job was never submitted: its batch was drained, or had stopped, or the job that it continues has no video.

    Unless the batch was drained, `__cause__` has the error.
    """

    default_advice = "run the batch again once the cause is fixed"


class QueueFullError(KlingError):
    """The queue is full; the job was not accepted.

    Attributes:
        retry_after: Seconds after which to try again.
    """

    default_advice = "try again later"

    def __init__(self, message: str, *, retry_after: float, **about: Any) -> None:
        super().__init__(message, **about)
        self.retry_after = retry_after


class CallerLimitError(QueueFullError):
    """A caller has as many jobs waiting as `CallerLimits.queued` allows; the job was not accepted.

    Attributes:
        caller: Name of the caller.
        queued: Number of jobs that may wait.
    """

    default_advice = "try again once some of them have started; other callers are not affected"

    def __init__(self, message: str, *, caller: str, queued: int, retry_after: float, **about: Any) -> None:
        super().__init__(message, retry_after=retry_after, **about)
        self.caller = caller
        self.queued = queued


class UnknownJobError(KlingError):
    """No job has this key: it never existed, or its ledger no longer has it."""


class BudgetExceededError(KlingError):
    """The job costs more than the budget has left; it was not sent.

    Attributes:
        budget: The cap in USD.
        used: USD of the cap that were spent, or may have been.
        price: Price of the job in USD.
    """

    account_wide = True
    insufficient_funds = True
    default_advice = "raise the budget and run again: jobs that were paid for are not paid for again"

    def __init__(self, message: str, *, budget: Decimal, used: Decimal, price: Decimal, **about: Any) -> None:
        super().__init__(message, **about)
        self.budget = budget
        self.used = used
        self.price = price


class CallerBudgetExceededError(BudgetExceededError):
    """The job's price exceeds what is left of the budget of its caller (`CallerLimits.usd`); other callers go on.

    Attributes:
        caller: Name of the caller.
    """

    account_wide = False
    insufficient_funds = False
    default_advice = "raise the caller's budget and run again: jobs that were paid for are not paid for again"

    def __init__(self, message: str, *, caller: str, **about: Any) -> None:
        super().__init__(message, **about)
        self.caller = caller


class PriceUnknownError(KlingError):
    """The price of a job under a budget is unknown or only estimated; it was not sent."""

    default_advice = "pass Budget(..., allow_estimate=True) to use the catalogue's estimate, if it has one"


class AlreadyPaidError(KlingError):
    """Another batch of the same ledger has paid for the job, or may have; it was not sent.

    Attributes:
        batch: Name of the other batch; empty for jobs outside of batches.
        jobs: Number of jobs concerned.
        cost: USD to pay for them again, by the price list; None if a price is unknown.
    """

    permanent = True
    default_advice = (
        "to continue that batch, run it under its name (--name); to get its videos without paying, use "
        'seen="reuse" (--seen reuse); to pay for other videos, seen="pay" (--seen pay), or give the jobs other keys'
    )

    def __init__(self, message: str, *, batch: str, jobs: int, cost: Decimal | None, **about: Any) -> None:
        super().__init__(message, **about)
        self.batch = batch
        self.jobs = jobs
        self.cost = cost


class InDoubtElsewhereError(AlreadyPaidError):
    """A job of another batch has the same content and is in doubt, so there is no video to reuse; nothing was sent."""

    permanent = False
    default_advice = (
        "settle it (kling-async ledger), and run this again; or pay for another video, "
        'which may be a second payment: seen="pay" (--seen pay)'
    )


class TransportError(KlingError):
    """No usable HTTP reply was received."""

    transient = True
    sent: ClassVar[bool] = True
    """False if no byte of the request can have reached the service."""
    default_spent = Spent.UNKNOWN


class ConnectFailedError(TransportError):
    """No connection was made (DNS, refused, TLS, proxy, connect timeout): nothing was sent."""

    sent = False
    default_spent = Spent.NO
    default_advice = "check the network, the proxy and the base URL"


class ConnectionLostError(TransportError):
    """The connection broke before the reply was complete."""


class ReplyTooLargeError(TransportError):
    """The reply is larger than the session reads; the rest of it was not read."""

    transient = False
    default_advice = "if the service sends such replies, raise max_reply_bytes of the session (--max-reply-bytes)"


class TransportTimeoutError(TransportError, TimeoutError):
    """The connection was made, and the service did not answer in time."""


class ApiError(KlingError):
    """The service answered with an error.

    Attributes:
        status: HTTP status.
        code: `code` of the reply's envelope, or None.
        retry_after: Seconds to wait, from `Retry-After`, or None.
        raw: The decoded body, or its beginning as text.
    """

    refused: ClassVar[bool] = False
    """True if the service certainly did not carry out the request: after a paid one, nothing was accepted."""

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
    refused = True
    default_advice = "check the API key; a new WaveSpeed key works only after the first top-up"


class PermissionDeniedError(ApiError):
    """The key's role lacks the permission, or the account is suspended."""

    permanent = True
    refused = True
    default_advice = "check the role of the key and the state of the account"


class InsufficientBalanceError(ApiError):
    """The account cannot pay for the job."""

    account_wide = True
    insufficient_funds = True
    refused = True
    default_advice = "top up the account"


class RateLimitedError(ApiError):
    """Too many starts per minute, or too many predictions running: the request was not accepted."""

    refused = True
    transient = True
    default_advice = "lower max_in_flight, or set level to the account's level"


class RequestRejectedError(ApiError):
    """The service refused the request; sending the same one again does not help."""

    permanent = True
    refused = True


class NotFoundError(ApiError):
    """The service has no such prediction or model. It keeps predictions and outputs for 7 days."""

    permanent = True
    refused = True


class ModerationError(ApiError):
    """The content was refused. Never send it again unchanged."""

    permanent = True
    refused = True
    default_advice = "change the prompt or the image"


class ServerError(ApiError):
    """The service or a gateway in front of it failed."""

    transient = True


class ProtocolError(ApiError):
    """The reply is not in the documented form."""

    transient = True


class SubmissionUncertainError(KlingError):
    """The paid request was sent, and its outcome is unknown. It was not sent again; `__cause__` has the reason.

    Attributes:
        sent_at: Time of the request in seconds since the epoch, to find it in the account's history; None if unknown.
        candidates: Ids of the predictions that may have come from it.
        given_up: True if it was given up by hand: it is neither looked for nor sent again.
    """

    default_spent = Spent.UNKNOWN
    default_advice = "check the account's prediction history before submitting again"

    def __init__(
        self,
        message: str,
        *,
        sent_at: float | None = None,
        candidates: Sequence[str] = (),
        given_up: bool = False,
        **about: Any,
    ) -> None:
        super().__init__(message, **about)
        self.sent_at = sent_at
        self.candidates = tuple(candidates)
        self.given_up = given_up


class LineLostError(SubmissionUncertainError):
    """The replies to many jobs in a row were lost, and this one stays in doubt too: no more of its batch is sent."""

    account_wide = True
    default_advice = "check the line to the service, and the account's prediction history, before anything more is sent"


class PredictionError(KlingError):
    """A paid prediction exists and gave no video.

    Attributes:
        prediction: The last known record, or None if none was read.
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
        code: Task error code (docs/error-codes), or None: 1200 moderation, 1400 and 1401 parameters, 1402 media
            access, 1403 and 1405 task failed, 5000, 5003 and 5004 failures of the service itself.
    """

    default_spent = Spent.REFUNDABLE

    def __init__(self, message: str, *, code: int | None = None, **about: Any) -> None:
        super().__init__(message, **about)
        self.code = code


class PredictionTimeoutError(PredictionError, TimeoutError):
    """The deadline of the wait passed. The prediction has not failed: it still runs and can be waited for again."""

    default_advice = "wait(prediction_id) continues to wait for it"


class PredictionExpiredError(PredictionError):
    """The service has deleted the prediction before its video was saved: it keeps predictions for 7 days."""

    default_advice = "to generate, and pay for, it again, give the job another key"


class NoOutputError(PredictionError):
    """The service reports the prediction as completed and lists no output."""

    default_advice = "try get(prediction_id) later, or ask the service's support for a refund"


class LedgerError(KlingError):
    """The ledger cannot be opened or written, so nothing was sent."""

    default_advice = "free disk space, or use another file"


class NotInHandError(LedgerError):
    """Another worker of a shared ledger owns the job, or this worker's lease on it has expired."""

    default_advice = "nothing is lost: another worker continues it"


class RateLimiterError(KlingError):
    """The shared rate limiter cannot be reached, so nothing was sent."""

    account_wide = True
    default_advice = "check that its server is running and reachable, then run the jobs again"


class OtherAccountError(LedgerError):
    """The job runs in another account: its ledger was opened with another provider, base URL or API key."""

    default_spent = Spent.YES
    default_advice = (
        "run it with the provider, base URL and key of that account; if this key is of the same account: "
        "kling-async ledger LEDGER same-account"
    )


class UnknownPredictionError(LedgerError):
    """The account has a prediction with the job's input, and the ledger does not know it; the job was not sent."""

    account_wide = True
    default_advice = (
        "open the newest copy of the ledger; if another program made the prediction, run it with "
        'seen="pay" (--seen pay) to pay for another video'
    )


class KeyReusedError(LedgerError, ValueError):
    """The key belongs to a job with other content in this ledger; an edited image file counts as other content."""

    permanent = True
    default_advice = (
        "use a new key or another batch name for the new content, or pay for it under this key: "
        "kling-async run --redo KEY"
    )

    def __init__(self, key: str, **about: Any) -> None:
        super().__init__(f"the key {key!r} belongs to a job with other content in the ledger", key=key, **about)


class StorageError(KlingError):
    """An output could not be downloaded, checked or written. The service keeps it for 7 days.

    Attributes:
        target: Target file, or target URL in an object store.
    """

    default_spent = Spent.YES
    default_advice = "save(prediction_id, ...) downloads it again at no cost"

    def __init__(self, message: str, *, target: str = "", **about: Any) -> None:
        super().__init__(message, **about)
        self.target = target


class OutputGoneError(StorageError):
    """The output is older than 7 days, and its host reported repeatedly that it is gone."""

    default_advice = "to get the video, it has to be generated and paid for again"


class VideoError(KlingError, ValueError):
    """A video on this computer gives no frame, or cannot be joined with others; nothing was sent or written.

    Attributes:
        path: The video; None if it is not about a single one.
    """

    default_advice = "play the file to see whether it is whole; one that is paid for can be saved again at no cost"

    def __init__(self, message: str, *, path: Path | None = None, **about: Any) -> None:
        super().__init__(message, **about)
        self.path = path


class WebhookRefusal(Enum):
    """Reason for which a webhook was refused."""

    UNSIGNED = "unsigned"
    """A signature header is missing."""
    MALFORMED = "malformed"
    """A signature header is malformed."""
    STALE = "stale"
    """Its timestamp is too far in the past or future: a replay, or a wrong clock."""
    FORGED = "forged"
    """No signature matches an accepted secret."""
    REPLAYED = "replayed"
    """The webhook is authentic and was received before."""
    TOO_LARGE = "too large"
    """The body exceeds the size limit."""
    TOO_SLOW = "too slow"
    """The body was not received in time."""
    UNREADABLE = "unreadable"
    """The webhook is authentic and contains no prediction."""


class WebhookRefusedError(KlingError):
    """A webhook is not authentic, or cannot be read. The error contains neither signature nor secret nor body.

    Attributes:
        reason: Machine-readable reason.
    """

    default_spent = Spent.UNKNOWN

    def __init__(self, message: str, *, reason: WebhookRefusal, **about: Any) -> None:
        super().__init__(message, **about)
        self.reason = reason
