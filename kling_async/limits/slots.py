"""Slots: a semaphore on running predictions whose size adapts to the account's limit."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import anyio

from kling_async.errors import SessionClosedError

from .capacity import Capacity
from .refusal import Limit


class Slot:
    """Permit for one running prediction.

    It is released when the prediction ends, not when its caller stops waiting.

    Attributes:
        running: Whether the service accepted its prediction.
        round: Number of the refusal round in which it was last admitted.
    """

    __slots__ = ("_slots", "round", "running")

    def __init__(self, slots: Slots | None) -> None:
        self._slots = slots
        self.running = False
        self.round = 0

    def mark_running(self) -> None:
        """Record that the service accepted its prediction."""
        if self._slots is not None and not self.running:
            self.running = True
            self._slots.record_accepted()

    async def turn(self) -> None:
        """Return when its job may be sent: immediately, unless it was refused.

        Raises:
            SessionClosedError: The session was closed meanwhile.
        """
        if self._slots is not None:
            await self._slots.turn(self)

    def release(self) -> None:
        """Release the slot; a second call does nothing."""
        if self._slots is not None:
            slots, self._slots = self._slots, None
            slots.release(self)


class Slots:
    """Slots of a session, first come, first served, shared by every `generate` and every batch.

    A refused job keeps its slot and is sent again before all others; while it waits, its slot does not count. When the
    capacity shrinks, running predictions are not affected.

    Args:
        ceiling: Maximum number of slots.
        adaptive: Whether their number shrinks while the service refuses jobs because too many run.

    Attributes:
        adaptive: The argument `adaptive`.
    """

    def __init__(self, ceiling: int, *, adaptive: bool = True) -> None:
        self.adaptive = adaptive
        self._capacity = Capacity(ceiling, adaptive=adaptive)
        self._taken = 0
        # In order of arrival. anyio.CapacityLimiter cannot serve refused jobs first, and is slower.
        self._waiting: OrderedDict[Slot, asyncio.Future[None]] = OrderedDict()
        self._refused: dict[Slot, anyio.Event] = {}
        self._running = 0
        self._round = 0
        self._closed = False

    @property
    def ceiling(self) -> int:
        """Maximum number of slots."""
        return self._capacity.ceiling

    @property
    def total(self) -> int:
        """Present number of slots."""
        return self._capacity.total

    @property
    def taken(self) -> int:
        """Number of slots that are taken."""
        return self._taken

    @property
    def running(self) -> int:
        """Number of taken slots whose prediction runs."""
        return self._running

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a slot, or for their turn after a refusal."""
        return len(self._waiting) + len(self._refused)

    def take(self) -> Slot:
        """Return a slot without waiting, for a prediction that runs already."""
        if self._waiting or not self._has_room():
            # More run than is allowed now, since the level was lowered: the surplus is watched and not counted.
            return Slot(None)
        self._taken += 1
        slot = Slot(self)
        slot.mark_running()
        return slot

    async def acquire(self) -> Slot:
        """Wait for a slot and return it."""
        slot = Slot(self)
        if self._waiting or not self._has_room():
            turn = self._waiting[slot] = asyncio.get_running_loop().create_future()
            try:
                await turn
            except BaseException:
                if self._waiting.pop(slot, None) is None and not turn.cancelled():
                    # It had been admitted.
                    slot.release()
                raise
        else:
            self._taken += 1
        if self._closed:
            slot.release()
            raise SessionClosedError("the session closed while the job was waiting for a slot, nothing was sent")
        slot.round = self._round
        return slot

    def close(self) -> None:
        """Wake all waiters; they raise `SessionClosedError`."""
        self._closed = True
        while self._waiting:
            self._admit_next()
        for event in self._refused.values():
            event.set()

    def record_accepted(self) -> None:
        """Record that one more prediction runs."""
        self._running += 1
        self._capacity.record_accepted(self._running)
        self._admit()

    def record_refused(self, slot: Slot, limit: Limit) -> None:
        """Record that a slot's job was refused, and queue it for its next turn.

        Args:
            slot: The slot, which the job keeps.
            limit: Limit that the refusal reported.
        """
        # The refusals of one burst count once: a request sent before the first of them carries no new information.
        if slot.round == self._round:
            self._round += 1
            if limit is Limit.STARTS:
                self._capacity.slow_down()
            else:
                self._capacity.record_refused(self._running, certain=limit is Limit.RUNNING)
        self._refused[slot] = anyio.Event()
        self._admit()

    async def turn(self, slot: Slot) -> None:
        """Return when the job of a slot may be sent: immediately, unless it was refused.

        Raises:
            SessionClosedError: The session was closed meanwhile.
        """
        event = self._refused.get(slot)
        # After `close` nothing sets the event any more.
        if event is not None and not self._closed:
            await event.wait()
        if self._closed:
            raise SessionClosedError("the session closed while the job was waiting for its turn, nothing was sent")

    def release(self, slot: Slot) -> None:
        """Return a slot."""
        self._refused.pop(slot, None)
        if slot.running:
            self._running -= 1
        self._taken -= 1
        self._admit()

    def _admit(self) -> None:
        """Wake as many waiters as there is room for: refused jobs first, then new ones."""
        if self._closed:
            return
        while self._refused and self._has_room():
            first = next(iter(self._refused))
            first.round = self._round
            self._refused.pop(first).set()
        while self._waiting and self._has_room():
            self._admit_next()

    def _has_room(self) -> bool:
        """Return whether one more job may be sent; refused jobs do not count while they wait."""
        return self._closed or self._taken - len(self._refused) < self._capacity.allowed(self._running)

    def _admit_next(self) -> None:
        """Give a slot to the first waiter, unless it was just cancelled."""
        _, turn = self._waiting.popitem(last=False)
        if not turn.done():
            self._taken += 1
            turn.set_result(None)
