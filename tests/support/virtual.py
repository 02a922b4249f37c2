"""Event loop in virtual time that waits for its threads."""

from __future__ import annotations

import asyncio
from typing import Any

import looptime


def new_event_loop(**options: Any) -> asyncio.AbstractEventLoop:
    """Return a new loop in virtual time; options are those of looptime."""
    loop: asyncio.AbstractEventLoop = looptime.new_event_loop(**options)
    shutdown = loop.shutdown_default_executor

    async def without_timeout(timeout: float | None = None) -> None:  # noqa: ASYNC109 -- as of the method that it replaces
        """Join the executor's threads. Python 3.12 gives them 300 s of the loop, which pass at once in virtual time."""
        await shutdown()

    loop.shutdown_default_executor = without_timeout  # type: ignore[method-assign]  # of this loop alone
    return loop
