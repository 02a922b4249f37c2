"""Running predictions: watch each until its end is recorded, whether or not a caller waits for it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from kling_async._core.budget import Reservation
from kling_async._core.clock import Clock
from kling_async._core.prediction import Prediction, Status
from kling_async._core.states import Entry, Row, State
from kling_async.ledger import Ledger
from kling_async.ledger._recall import prediction_of
from kling_async.limits import Slot, Slots

if TYPE_CHECKING:
    from kling_async._watching.watcher import Watcher

    from .pending import PendingSubmission


class RunningPredictions:
    """Starts watching predictions. Each occupies a slot until it ends.

    Args:
        watcher: Polls them.
        slots: The session's slots.
        ledger: Records their ends.
        clock: The session's clock.

    Attributes:
        spent: USD of the jobs accepted since the session was opened, by the price list.
    """

    def __init__(self, *, watcher: Watcher, slots: Slots, ledger: Ledger, clock: Clock) -> None:
        self.spent = Decimal(0)
        self._watcher = watcher
        self._slots = slots
        self._ledger = ledger
        self._clock = clock

    def start(self, prediction: Prediction, pending: PendingSubmission) -> None:
        """Watch a prediction that was just accepted, in the slot of its submission."""
        for reservation in pending.reserved:
            reservation.commit()
        pending.slot.mark_running()
        self.spent += pending.cost or 0
        end = _End(self._ledger, self._clock, pending.batch, pending.key, pending.slot, pending.reserved)
        self._watcher.add(prediction, batch=pending.batch, on_end=end, job=pending.job)

    def follow(self, row: Row, reserved: tuple[Reservation, ...] = ()) -> None:
        """Watch a prediction that the ledger has as running, in another slot."""
        if self._watcher.seen(row.prediction_id or "") is not None:
            return
        end = _End(self._ledger, self._clock, row.batch, row.key, self._slots.take(), reserved)
        self._watcher.add(prediction_of(row), batch=row.batch, on_end=end, submitted_at=row.submitted_at)

    def follow_adopted(self, row: Row, reserved: tuple[Reservation, ...]) -> None:
        """Watch the prediction of a submission that was in doubt."""
        self.spent += row.cost or 0
        self.follow(row, reserved)


@attrs.define(eq=False)
class _End:
    """Callback that releases the slot of a prediction and records its end. Smaller than a closure."""

    ledger: Ledger
    clock: Clock
    batch: str
    key: str
    slot: Slot
    reserved: tuple[Reservation, ...]

    def __call__(self, last: Prediction) -> None:
        """Handle the last state of the prediction: ended, or no longer watched."""
        self.slot.release()
        if not last.status.ended:
            return
        if last.status is not Status.COMPLETED:
            for reservation in self.reserved:
                reservation.fail(last.id)
        self.ledger.note(
            Entry(
                batch=self.batch,
                key=self.key,
                state=State.COMPLETED if last.failure() is None else State.FAILED,
                at=self.clock.now(),
                prediction_id=last.id,
                output=last.output,
                code=last.code,
                error=last.error,
            )
        )
