"""How many predictions run at once on the account."""

from __future__ import annotations

import math

import anyio

from kling_async._core.errors import SessionClosedError


class Slot:
    """The right to have one prediction running.

    It is given back when the prediction ends, not when somebody stops waiting for it.
    """

    __slots__ = ("_limiter",)

    def __init__(self, limiter: anyio.CapacityLimiter | None) -> None:
        self._limiter = limiter

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if self._limiter is not None:
            limiter, self._limiter = self._limiter, None
            limiter.release_on_behalf_of(self)


class Slots:
    """The slots of a session, first come, first served, shared by every `generate` and every batch.

    Args:
        total: How many there are.
    """

    def __init__(self, total: int) -> None:
        self._limiter = anyio.CapacityLimiter(total)
        self._closed = False

    @property
    def total(self) -> int:
        """How many there are."""
        return int(self._limiter.total_tokens)

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._limiter.borrowed_tokens

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return self._limiter.statistics().tasks_waiting

    def take(self) -> Slot:
        """A slot at once, beyond the total if need be: for what runs already."""
        slot = Slot(self._limiter)
        try:
            self._limiter.acquire_on_behalf_of_nowait(slot)
        except anyio.WouldBlock:
            # More runs than is permitted now: a level was lowered. The surplus is watched, and not counted.
            return Slot(None)
        return slot

    async def acquire(self) -> Slot:
        """A slot, when there is one."""
        slot = Slot(self._limiter)
        await self._limiter.acquire_on_behalf_of(slot)
        if self._closed:
            slot.release()
            raise SessionClosedError("the session closed while the job was waiting for a slot, nothing was sent")
        return slot

    def close(self) -> None:
        """Send everybody away who waits."""
        self._closed = True
        self._limiter.total_tokens = math.inf
