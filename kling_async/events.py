"""Events of jobs: the only source of progress displays, logs, the gallery and traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from kling_async._core.job import Job
from kling_async._core.prediction import Outcome, Prediction, SavedFile
from kling_async.errors import KlingError


@attrs.frozen(kw_only=True)
class Event:
    """Base of all events; each concerns one job.

    Attributes:
        at: Time in seconds since the epoch, by the session's clock.
        key: Key of the job.
        batch: Name of the batch; empty outside a batch.
    """

    at: float
    key: str
    batch: str = ""


@attrs.frozen(kw_only=True)
class Admitted(Event):
    """A batch has read the job from its input."""

    job: Job


@attrs.frozen(kw_only=True)
class Begun(Event):
    """Work on the job has begun: its row is in the ledger, and its images are uploaded next.

    Attributes:
        job: The job.
        known: Id of its prediction if the ledger shows it as accepted, so that it is not paid for again; or None.
        ended: Whether that prediction has ended, by the ledger.
    """

    job: Job
    known: str | None = None
    ended: bool = False


@attrs.frozen(kw_only=True)
class Uploaded(Event):
    """The job's images are uploaded.

    Attributes:
        since: Start of the upload in seconds since the epoch.
    """

    since: float


@attrs.frozen(kw_only=True)
class Submitting(Event):
    """The paid request is about to be sent; its intent is on disk.

    Attributes:
        job: The job.
        attempt: Number of paid requests for the job, including this one.
    """

    job: Job
    attempt: int


@attrs.frozen(kw_only=True)
class Accepted(Event):
    """The service has accepted the job: it is paid for."""

    job: Job
    prediction: Prediction


@attrs.frozen(kw_only=True)
class Refused(Event):
    """The service certainly did not accept the job.

    Attributes:
        job: The job.
        error: The reason.
        again: Seconds until it is sent again; None if it is not.
    """

    job: Job
    error: KlingError
    again: float | None


@attrs.frozen(kw_only=True)
class Uncertain(Event):
    """The outcome of the submission is unknown: the job may be paid for.

    Attributes:
        job: The job.
        error: The reason.
    """

    job: Job
    error: KlingError


@attrs.frozen(kw_only=True)
class Left(Event):
    """This process has released the job, whether it was accepted, refused, skipped or left in doubt.

    Attributes:
        error: The error raised to the caller; None if the job was accepted.
    """

    error: KlingError | None = None


@attrs.frozen(kw_only=True)
class Changed(Event):
    """The status of a prediction has changed; the last such event has a final status."""

    prediction: Prediction


@attrs.frozen(kw_only=True)
class Retrying(Event):
    """The prediction failed by a fault of the service, and the job will be submitted and paid for again.

    Attributes:
        job: The job.
        prediction: The failed prediction.
        again: Seconds until the next submission.
    """

    job: Job
    prediction: Prediction
    again: float


@attrs.frozen(kw_only=True)
class Saved(Event):
    """An output has been saved.

    Attributes:
        file: The saved output.
        since: Start of saving it, in seconds since the epoch, the wait for one of the session's `max_saving` included;
            None if it was saved before.
    """

    file: SavedFile
    since: float | None = None


@attrs.frozen(kw_only=True)
class Finished(Event):
    """The outcome of a job is available."""

    outcome: Outcome


Observer: TypeAlias = Callable[[Event], None]
"""A callback for events, called on the event loop. It must be fast; exceptions are logged and dropped."""
