"""One vocabulary of what happens, read by progress, logs, gallery and traces. Nothing else tells them anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from kling_async._core.job import Job
from kling_async._core.prediction import Outcome, Prediction, SavedFile
from kling_async.errors import KlingError


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened to a job.

    Attributes:
        at: Seconds since the epoch, by the session's clock.
        key: The job's name.
        batch: The batch's name; empty outside a batch.
    """

    at: float
    key: str
    batch: str = ""


@attrs.frozen(kw_only=True)
class Admitted(Event):
    """A batch took the job from its input."""

    job: Job


@attrs.frozen(kw_only=True)
class Begun(Event):
    """A job was taken in hand: its row is in the ledger, its images come next.

    Attributes:
        known: The id of its prediction, when the ledger has it as accepted before: it is not paid for again.
        ended: Whether that has ended, by the ledger.
    """

    job: Job
    known: str | None = None
    ended: bool = False


@attrs.frozen(kw_only=True)
class Uploaded(Event):
    """The job's images are where the service can read them.

    Attributes:
        since: When they began to be brought there; seconds since the epoch.
    """

    since: float


@attrs.frozen(kw_only=True)
class Submitting(Event):
    """The paid request is about to be sent; the intent is on disk."""

    job: Job
    attempt: int


@attrs.frozen(kw_only=True)
class Accepted(Event):
    """The service accepted the job: it is paid for."""

    job: Job
    prediction: Prediction


@attrs.frozen(kw_only=True)
class Refused(Event):
    """The service certainly did not accept the job.

    Attributes:
        error: Why.
        again: Seconds until it is sent again, or None when it is not.
    """

    job: Job
    error: KlingError
    again: float | None


@attrs.frozen(kw_only=True)
class Uncertain(Event):
    """Whether the service accepted the job is not known."""

    job: Job
    error: KlingError


@attrs.frozen(kw_only=True)
class Left(Event):
    """Nobody has the job in hand any more: it was accepted, or it will not be.

    Attributes:
        error: What its caller was told, when it was not accepted or nobody knows.
    """

    error: KlingError | None = None


@attrs.frozen(kw_only=True)
class Changed(Event):
    """A prediction has another status than before; the last one is an end."""

    prediction: Prediction


@attrs.frozen(kw_only=True)
class Retrying(Event):
    """The service failed the prediction by its own fault, and the job is going to be paid for again.

    Attributes:
        again: Seconds until then.
    """

    job: Job
    prediction: Prediction
    again: float


@attrs.frozen(kw_only=True)
class Saved(Event):
    """An output is on the disk.

    Attributes:
        since: When its download began; seconds since the epoch.
    """

    file: SavedFile
    since: float | None = None


@attrs.frozen(kw_only=True)
class Finished(Event):
    """A batch has the outcome of a job."""

    outcome: Outcome


Observer: TypeAlias = Callable[[Event], None]
"""Is called with every event, on the event loop; it must be quick, and what it raises is logged and dropped."""
