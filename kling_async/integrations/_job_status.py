"""States of jobs as clients of a web application see them: from rows of the ledger, events and outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs

from kling_async import events
from kling_async._core.prediction import Status
from kling_async._core.states import State
from kling_async._log import log
from kling_async.errors import KlingError, SubmissionUncertainError

from ._problems import answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kling_async._core.prediction import Prediction
    from kling_async._core.states import Row

JobState: TypeAlias = Literal["waiting", "running", "completed", "failed", "uncertain"]
"""State of a job for its client: a closed set. `uncertain` is final for the client; the operator can settle it."""

_ENDS: Final = frozenset({"completed", "failed", "uncertain"})


# A dataclass, not attrs: FastAPI builds its schema from it.
@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """State of a job.

    Attributes:
        key: Key of the job, by which its client asks for it.
        state: State of the job, one of a closed set: use it in code.
        status: State in more detail, for display; the service's own status while it runs. New values may appear.
        prediction_id: Id of the paid prediction; None before acceptance.
        output: URL of the video, valid for 7 days; None without one.
        error: Problem details (RFC 9457) of a job without a video; None otherwise.
    """

    key: str
    state: JobState
    status: str
    prediction_id: str | None = None
    output: str | None = None
    error: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """True if the state is final."""
        return self.state in _ENDS


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """Part of a list of jobs.

    Attributes:
        jobs: States of the jobs.
        next: The argument `after` for the next page; None on the last one.
    """

    jobs: list[JobStatus]
    next: str | None = None


@attrs.frozen
class Change:
    """One change of a job.

    Attributes:
        id: Id of the change, for `Last-Event-ID`.
        status: State of the job after it.
    """

    id: str
    status: JobStatus


_STATES: Mapping[State, tuple[JobState, str]] = {
    State.PENDING: ("waiting", "waiting"),
    State.CLAIMED: ("waiting", "waiting"),
    State.INTENT: ("waiting", "submitting"),
    State.SUBMITTED: ("running", Status.CREATED.value),
    State.COMPLETED: ("completed", Status.COMPLETED.value),
    State.DOWNLOADED: ("completed", Status.COMPLETED.value),
    State.FAILED: ("failed", "failed"),
    State.REJECTED: ("failed", "failed"),
    State.ABANDONED: ("failed", "failed"),
    State.SKIPPED: ("failed", "failed"),
    State.EXPIRED: ("failed", "expired"),
    State.UNCERTAIN: ("uncertain", "uncertain"),
}


def status_of_row(row: Row) -> JobStatus:
    """Return the state of a job from its row, which does not record the type of its error."""
    # A reused job has the video of another one, or will have it.
    shown = row.state if row.state is not State.REUSED else State.COMPLETED if row.has_video else State.SUBMITTED
    state, status = _STATES[shown]
    error = None
    if state not in {"completed", "running", "waiting"}:
        error = {"type": "about:blank", "title": f"The job is {row.state.value}", "status": 502}
    return JobStatus(
        key=row.key,
        state=state,
        status=status,
        prediction_id=row.reused or row.prediction_id,
        output=row.output if state == "completed" else None,
        error=error,
    )


def status_after(status: JobStatus, event: events.Event) -> JobStatus:
    """Return the state of a job after an event of its course. Its end comes from its outcome instead."""
    match event:
        case events.Begun(known=str(prediction_id), ended=False):
            return replace(status, state="running", status=Status.CREATED.value, prediction_id=prediction_id)
        case events.Submitting():
            return replace(status, status="submitting")
        case events.Refused(again=again) if again is not None:
            return replace(status, status="waiting")
        case events.Uncertain():
            return replace(status, status="in doubt")
        case events.Accepted(prediction=prediction):
            return _running(status, prediction)
        case events.Changed(prediction=prediction) if not prediction.status.ended:
            return _running(status, prediction)
        case events.Retrying():
            return replace(status, state="waiting", status="waiting", prediction_id=None)
        case _:
            return status


def _running(status: JobStatus, prediction: Prediction) -> JobStatus:
    return replace(status, state="running", status=prediction.raw_status, prediction_id=prediction.id)


def completed(status: JobStatus, prediction: Prediction) -> JobStatus:
    """Return the state of a job that has a video."""
    return replace(
        status,
        state="completed",
        status=prediction.raw_status,
        prediction_id=prediction.id,
        output=prediction.output,
    )


def failed(status: JobStatus, error: KlingError) -> JobStatus:
    """Return the state of a job that ended without a video."""
    state: JobState = "uncertain" if isinstance(error, SubmissionUncertainError) else "failed"
    prediction_id = error.prediction_id or status.prediction_id
    return replace(status, state=state, status=state, prediction_id=prediction_id, error=answer(error).body)


def public_error(error: KlingError) -> KlingError:
    """Return an error for the client; an unexpected exception is logged, and its text is not shown to the client."""
    if type(error) is not KlingError or error.__cause__ is None:
        return error
    log.error("job %s failed with an unexpected exception", error.key, exc_info=error.__cause__)
    return KlingError(
        "the job failed with an unexpected exception",
        key=error.key,
        prediction_id=error.prediction_id,
        spent=error.spent,
        advice="see the log of the application",
    )
