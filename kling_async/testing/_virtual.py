"""Clock that a test advances."""

from __future__ import annotations

from kling_async.emulator import ManualClock

from ._clocks import EPOCH

_TURNS = 20
"""Turns of the event loop in which most woken tasks come to rest; waiting for the others takes real time."""


class VirtualClock(ManualClock):
    """Clock that stands still until `advance` is awaited, on any event loop.

    ```python
    clock = VirtualClock()
    async with KlingSession("key", transport=ScriptedTransport(reply), clock=clock) as kling:
        waiting = asyncio.create_task(kling.generate(job))
        await clock.advance(120)  # every poll in between has happened, at its exact time
    ```

    It is the emulator's `ManualClock` with fewer turns of the loop, since nothing here travels over sockets. Work in
    threads is not waited for.

    Args:
        epoch: Value of `now()` at the start; seconds since 1970.
    """

    def __init__(self, epoch: float = EPOCH) -> None:
        super().__init__(epoch, turns=_TURNS)
