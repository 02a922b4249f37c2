"""How many predictions run at once on the account."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import anyio

from kling_async.errors import SessionClosedError

from .capacity import Capacity
from .refusal import Limit


class Slot:
    """The right to have one prediction running.

    It is given back when the prediction ends, not when somebody stops waiting for it.

    Attributes:
        running: Whether its prediction was accepted.
        round: How many refusals had been news when it was last let in.
    """

    __slots__ = ("_slots", "round", "running")

    def __init__(self, slots: Slots | None) -> None:
        self._slots = slots
        self.running = False
        self.round = 0

    def accepted(self) -> None:
        """Its prediction runs."""
        if self._slots is not None and not self.running:
            self.running = True
            self._slots.accepted()

    async def turn(self) -> None:
        """Return when its job may be sent: at once, unless it was refused.

        Raises:
            SessionClosedError: The session was closed while it waited.
        """
        if self._slots is not None:
            await self._slots.turn(self)

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if self._slots is not None:
            slots, self._slots = self._slots, None
            slots.release(self)


class Slots:
    """The slots of a session, first come, first served, shared by every `generate` and every batch.

    Those whose jobs were refused keep theirs and come before all others; as long as they wait they count for nothing.
    What runs is never ended when there are fewer slots than before.

    Args:
        ceiling: How many there are at most.
        adaptive: Whether there are fewer while the service refuses jobs because too many run.

    Attributes:
        adaptive: Whether there are.
    """

    def __init__(self, ceiling: int, *, adaptive: bool = True) -> None:
        self.adaptive = adaptive
        self._capacity = Capacity(ceiling, adaptive=adaptive)
        self._taken = 0
        # In their order. A limiter of anyio's knows none who come first, and costs more.
        self._waiting: OrderedDict[Slot, asyncio.Future[None]] = OrderedDict()
        self._refused: dict[Slot, anyio.Event] = {}
        self._running = 0
        self._round = 0
        self._closed = False

    @property
    def ceiling(self) -> int:
        """How many there are at most."""
        return self._capacity.ceiling

    @property
    def total(self) -> int:
        """How many there are now."""
        return self._capacity.total

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken

    @property
    def running(self) -> int:
        """How many of those have a prediction that runs."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many wait for one, or were refused and wait for their turn."""
        return len(self._waiting) + len(self._refused)

    def take(self) -> Slot:
        """A slot at once, beyond the total if need be: for what runs already."""
        if self._waiting or not self._has_room():
            # More runs than is permitted now: a level was lowered. The surplus is watched, and not counted.
            return Slot(None)
        self._taken += 1
        slot = Slot(self)
        slot.accepted()
        return slot

    async def acquire(self) -> Slot:
        """A slot, when there is one."""
        slot = Slot(self)
        if self._waiting or not self._has_room():
            turn = self._waiting[slot] = asyncio.get_running_loop().create_future()
            try:
                await turn
            except BaseException:
                if self._waiting.pop(slot, None) is None and not turn.cancelled():
                    # It had been let in.
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
        """Send everybody away who waits."""
        self._closed = True
        while self._waiting:
            self._let_in()
        for event in self._refused.values():
            event.set()

    def accepted(self) -> None:
        """One more runs."""
        self._running += 1
        self._capacity.accepted(self._running)
        self._adjust()

    def refused(self, slot: Slot, limit: Limit) -> None:
        """The job of a slot was refused, and is sent again when it is its turn.

        Args:
            slot: The slot, which the job keeps.
            limit: Which limit refused it.
        """
        # The refusals of one burst are one piece of news: what was on its way before it says nothing new.
        if slot.round == self._round:
            self._round += 1
            if limit is Limit.STARTS:
                self._capacity.slow_down()
            else:
                self._capacity.refused(self._running, certain=limit is Limit.RUNNING)
        self._refused[slot] = anyio.Event()
        self._adjust()

    async def turn(self, slot: Slot) -> None:
        """Return when the job of a slot may be sent: at once, unless it was refused.

        Raises:
            SessionClosedError: The session was closed while it waited.
        """
        event = self._refused.get(slot)
        # A refusal that comes while the session closes has nobody left who would call it.
        if event is not None and not self._closed:
            await event.wait()
        if self._closed:
            raise SessionClosedError("the session closed while the job was waiting for its turn, nothing was sent")

    def release(self, slot: Slot) -> None:
        """A slot is given back."""
        self._refused.pop(slot, None)
        if slot.running:
            self._running -= 1
        self._taken -= 1
        self._adjust()

    def _adjust(self) -> None:
        """Let in as many as there are places for: first those who were refused, then those who wait."""
        if self._closed:
            return
        while self._refused and self._has_room():
            first = next(iter(self._refused))
            first.round = self._round
            self._refused.pop(first).set()
        while self._waiting and self._has_room():
            self._let_in()

    def _has_room(self) -> bool:
        """Whether there is a place for one more; those who were refused take none while they wait."""
        return self._closed or self._taken - len(self._refused) < self._capacity.places(self._running)

    def _let_in(self) -> None:
        """Give a slot to the first who waits, unless that one was just cancelled."""
        _, turn = self._waiting.popitem(last=False)
        if not turn.done():
            self._taken += 1
            turn.set_result(None)
