"""The state in which a run leaves a job, by its outcome: the same that the ledger records.

Displays count by it, so that a job has one word everywhere: rejected is what the service refused, skipped what its
batch never sent, and waiting what could not be sent and is to be sent by the next run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async.errors import (
    AlreadyPaidError,
    ApiError,
    KlingError,
    NoOutputError,
    OutputGoneError,
    PredictionExpiredError,
    PredictionFailedError,
    PredictionTimeoutError,
    SkippedError,
    Spent,
    StorageError,
    SubmissionUncertainError,
)

from .states import State

if TYPE_CHECKING:
    from .prediction import Outcome


def state_of(outcome: Outcome) -> State:
    """Return the state of a job after its outcome."""
    if outcome.error is not None:
        return state_after(outcome.error)
    if outcome.reused:
        return State.REUSED
    return State.COMPLETED if outcome.saved is None else State.DOWNLOADED


def state_after(error: KlingError) -> State:
    """Return the state of a job that ended with an error."""
    match error:
        case SkippedError():
            # Drained, and not stopped by an error: the job stays as it was.
            return State.PENDING if error.__cause__ is None else State.SKIPPED
        case SubmissionUncertainError():
            return State.ABANDONED if error.given_up else State.UNCERTAIN
        case PredictionFailedError():
            return State.FAILED
        case PredictionExpiredError() | OutputGoneError():
            return State.EXPIRED
        case PredictionTimeoutError():
            return State.SUBMITTED
        case NoOutputError() | StorageError():
            return State.COMPLETED
        case _:
            return _unsent(error)


def _unsent(error: KlingError) -> State:
    """Return the state of a job that was not sent, unless an earlier request for it was accepted."""
    if error.prediction_id is not None or error.spent is Spent.YES:
        return State.SUBMITTED
    if stops(error):
        return State.SKIPPED
    refused = isinstance(error, ApiError) and error.refused and not error.transient
    return State.REJECTED if refused or error.permanent else State.PENDING


def stops(error: KlingError) -> bool:
    """Return whether an error stops the batch of the job that it is of, and nothing was sent for the job."""
    unsent = error.spent is Spent.NO and not isinstance(error, SubmissionUncertainError)
    return isinstance(error, AlreadyPaidError) or (error.account_wide and unsent)
