"""Running predictions: each occupies a slot until its end is in the ledger, whether or not anybody waits for it."""

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
    """Starts the watching of predictions.

    Args:
        watcher: Polls them.
        slots: The session's slots.
        ledger: Records their ends.
        clock: The session's clock.

    Attributes:
        spent: USD of what was accepted since the session was opened, by the price list.
    """

    def __init__(self, *, watcher: Watcher, slots: Slots, ledger: Ledger, clock: Clock) -> None:
        self.spent = Decimal(0)
        self._watcher = watcher
        self._slots = slots
        self._ledger = ledger
        self._clock = clock

    def start(self, prediction: Prediction, pending: PendingSubmission) -> None:
        """Watch a prediction that was accepted just now; it occupies the slot of its submission."""
        for reservation in pending.reserved:
            reservation.commit()
        pending.slot.mark_running()
        self.spent += pending.cost or 0
        end = _End(self._ledger, self._clock, pending.batch, pending.key, pending.slot, pending.reserved)
        self._watcher.add(prediction, batch=pending.batch, on_end=end, job=pending.job)

    def follow(self, row: Row, reserved: tuple[Reservation, ...] = ()) -> None:
        """Watch a prediction that the ledger has as running; it occupies one of the account's slots."""
        if self._watcher.seen(row.prediction_id or "") is not None:
            return
        end = _End(self._ledger, self._clock, row.batch, row.key, self._slots.take(), reserved)
        self._watcher.add(prediction_of(row), batch=row.batch, on_end=end, submitted_at=row.submitted_at)

    def follow_adopted(self, row: Row, reserved: tuple[Reservation, ...]) -> None:
        """Watch a prediction that a submission in doubt turned out to be."""
        self.spent += row.cost or 0
        self.follow(row, reserved)


@attrs.define(eq=False)
class _End:
    """Releases what a running prediction holds and records its end: an object, because it is smaller than a closure."""

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
