"""Slots: a semaphore on running predictions whose size adapts to the account's limit."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import anyio

from kling_async._core.turns import ANYWHERE, Place
from kling_async.errors import SessionClosedError

from .callers import Callers
from .capacity import Capacity
from .doubts import DoubtWindow
from .ready import ReadyQueue
from .refusal import Limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kling_async._core.adaptive import AdaptiveLimit


class Slot:
    """Permit for one running prediction.

    It is released when the prediction ends, not when its caller stops waiting.

    Attributes:
        caller: Name of the caller who has it; empty for nobody in particular.
        running: Whether the service accepted its prediction.
        doubtful: Whether its submit is in doubt, and being settled.
        round: Number of the refusal round in which it was last admitted.
    """

    __slots__ = ("_slots", "caller", "doubtful", "round", "running")

    def __init__(self, slots: Slots | None, caller: str = "") -> None:
        self._slots = slots
        self.caller = caller
        self.running = False
        self.doubtful = False
        self.round = 0

    def mark_running(self) -> None:
        """Record that the service accepted its prediction."""
        self.end_doubt(known=True)
        if self._slots is not None and not self.running:
            self.running = True
            self._slots.record_accepted()

    def mark_doubtful(self) -> None:
        """Record that the reply to its submit was lost: it keeps the slot, and is not an unanswered submit any more."""
        if self._slots is not None and not self.doubtful:
            self.doubtful = True
            self._slots.record_lost()

    def end_doubt(self, *, known: bool) -> None:
        """Record the end of the settlement of its doubt, if it has one.

        Args:
            known: True if it is known now whether it was accepted.
        """
        if self._slots is not None and self.doubtful:
            self.doubtful = False
            self._slots.record_settled(known=known)

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
    """Slots of a session, shared by every `generate` and every batch.

    They go round the callers by weight, and to each caller's jobs by priority, then first come, first served. A refused
    job keeps its slot and is sent again before all others; while it waits, its slot does not count. When the capacity
    shrinks, running predictions are not affected.

    Args:
        ceiling: Maximum number of slots.
        adaptive: Whether their number shrinks while the service refuses jobs because too many run.
        callers: Weights and limits of the callers. Default: all are equal, without limits.

    Attributes:
        adaptive: The argument `adaptive`.
        doubts: Bound on submits whose replies are lost.
    """

    def __init__(self, ceiling: int, *, adaptive: bool = True, callers: Callers | None = None) -> None:
        self.adaptive = adaptive
        self._callers = callers = Callers() if callers is None else callers
        self._capacity = Capacity(ceiling, adaptive=adaptive)
        self.doubts = DoubtWindow()
        self._taken = 0
        # anyio.CapacityLimiter knows no callers, cannot serve refused jobs first, and is slower.
        self._waiting: ReadyQueue[asyncio.Future[None]] = ReadyQueue(callers.weight, callers.may_take)
        self._refused: dict[Slot, anyio.Event] = {}
        # Jobs that upload pictures, or have done so and wait for a slot; and those that wait to do so.
        self._preparing = 0
        self._ahead = 0
        self._to_prepare: ReadyQueue[asyncio.Future[None]] = ReadyQueue(callers.weight, callers.may_prepare)
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
        """Number of jobs that wait for a slot, for their turn after a refusal, or to be prepared for a slot."""
        return len(self._waiting.items) + len(self._refused) + len(self._to_prepare.items)

    def take(self) -> Slot:
        """Return a slot without waiting, for a prediction that runs already."""
        if self._waiting.items or self._taken - len(self._refused) >= self._capacity.total:
            # More run than is allowed now, since the level was lowered: the surplus is watched and not counted.
            return Slot(None)
        slot = Slot(self)
        self._take(slot.caller)
        slot.mark_running()
        return slot

    def check_queue(self, caller: str, **about: Any) -> None:
        """Raise if a caller may have no more jobs that wait for a slot, or to be prepared for one.

        Args:
            caller: Name of the caller.
            about: The job, its key and `retry_after`, for the error.

        Raises:
            CallerLimitError: As many wait as may.
        """
        waiting = self._waiting.waiting(caller) + self._to_prepare.waiting(caller)
        self._callers.check_queue(caller, waiting, **about)

    @contextlib.asynccontextmanager
    async def preparation(self, ahead: int, place: Place = ANYWHERE) -> AsyncIterator[None]:
        """Wait until a job is among the next to start; the body prepares it and acquires its slot.

        Args:
            ahead: Number of jobs that may be prepared besides those for which slots are free.
            place: Place of the job among those that wait.

        Raises:
            SessionClosedError: The session was closed meanwhile.
        """
        self._ahead = ahead
        if not self._closed and not self._can_prepare(place.caller):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._to_prepare.push(turn, place)
            if self._callers.limited:
                # All who waited before may be at limits of their own.
                self._admit_ahead()
            try:
                await turn
            except BaseException:
                if not self._to_prepare.discard(turn) and not turn.cancelled():
                    self._end_preparation(place.caller)
                raise
        else:
            self._begin_preparation(place.caller)
        try:
            if self._closed:
                raise SessionClosedError("the session closed before the job was prepared, nothing was sent")
            yield
        finally:
            self._end_preparation(place.caller)

    def _begin_preparation(self, caller: str) -> None:
        self._preparing += 1
        self._callers.begin_preparation(caller)

    def _end_preparation(self, caller: str) -> None:
        self._preparing -= 1
        self._callers.end_preparation(caller)
        self._to_prepare.unpark(caller)
        self._admit_ahead()

    def _can_prepare(self, caller: str) -> bool:
        return not self._to_prepare.items and self._has_room_ahead() and self._callers.may_prepare(caller)

    def _has_room_ahead(self) -> bool:
        free = self._capacity.total - (self._taken - len(self._refused))
        return self._closed or self._preparing < max(free, 0) + self._ahead

    def _admit_ahead(self) -> None:
        """Wake as many jobs that wait to be prepared as there is room for."""
        if self._closed:
            for turn, caller in self._to_prepare.clear():
                if not turn.done():
                    self._begin_preparation(caller)
                    turn.set_result(None)
        while self._to_prepare.items and self._has_room_ahead() and (granted := self._to_prepare.pop()) is not None:
            turn, caller = granted
            if not turn.done():
                self._begin_preparation(caller)
                turn.set_result(None)

    async def acquire(self, place: Place = ANYWHERE) -> Slot:
        """Wait for a slot and return it.

        Args:
            place: Place of the job among those that wait.

        Raises:
            SessionClosedError: The session was closed meanwhile.
        """
        slot = Slot(self, place.caller)
        if not self._closed and not self._can_start(place.caller):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.push(turn, place)
            if self._callers.limited:
                # All who waited before may be at limits of their own.
                self._admit()
            try:
                await turn
            except BaseException:
                if not self._waiting.discard(turn) and not turn.cancelled():
                    # It had been admitted.
                    slot.release()
                raise
        else:
            self._take(place.caller)
        if self._closed:
            slot.release()
            raise SessionClosedError("the session closed while the job was waiting for a slot, nothing was sent")
        slot.round = self._round
        return slot

    def close(self) -> None:
        """Wake all waiters; they raise `SessionClosedError`."""
        self._closed = True
        for turn, caller in self._waiting.clear():
            self._wake(turn, caller)
        for event in self._refused.values():
            event.set()
        self._admit_ahead()

    @property
    def unanswered(self) -> AdaptiveLimit:
        """Limit on submits that are unanswered at once."""
        return self._capacity.unanswered

    @property
    def are_held_back(self) -> bool:
        """True while jobs wait although fewer are running or unanswered than may run."""
        return bool(self._waiting.items) and self._taken - len(self._refused) < self._capacity.total

    def record_accepted(self) -> None:
        """Record that one more prediction runs."""
        self._running += 1
        self._capacity.record_accepted(self._running)
        self._admit()

    def record_lost(self) -> None:
        """Record that the reply to a submit was lost."""
        self.doubts.lost()
        self._admit()

    def record_settled(self, *, known: bool) -> None:
        """Record the end of the settlement of a doubt.

        Args:
            known: True if it is known now whether it was accepted.
        """
        self.doubts.settled(known=known)
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
        if slot.doubtful:
            slot.doubtful = False
            self.doubts.settled(known=False)
        if slot.running:
            self._running -= 1
        self._taken -= 1
        if self._callers.limited:
            self._callers.give_back(slot.caller)
            self._waiting.unpark(slot.caller)
            self._to_prepare.unpark(slot.caller)
        self._admit()

    def _admit(self) -> None:
        """Wake as many waiters as there is room for: refused jobs first, then new ones."""
        if self._closed:
            return
        while self._refused and self._has_room():
            first = next(iter(self._refused))
            first.round = self._round
            self._refused.pop(first).set()
        while self._waiting.items and self._has_room() and (granted := self._waiting.pop()) is not None:
            self._wake(*granted)
        self._admit_ahead()

    def _can_start(self, caller: str) -> bool:
        return not self._waiting.items and self._has_room() and self._callers.may_take(caller)

    def _has_room(self) -> bool:
        """Return whether one more job may be sent; refused jobs do not count while they wait."""
        answered = self._running + self.doubts.pending
        return self._closed or self._taken - len(self._refused) < self._capacity.allowed(answered)

    def _wake(self, turn: asyncio.Future[None], caller: str) -> None:
        """Give a slot to a waiter, unless it was just cancelled."""
        if not turn.done():
            self._take(caller)
            turn.set_result(None)

    def _take(self, caller: str) -> None:
        self._taken += 1
        self._callers.take(caller)
