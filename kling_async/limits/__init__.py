"""How fast jobs start, and how many run.

Three knobs with three names: a `RateLimiter` bounds *starts per time*, the session's slots bound *running predictions*
(`max_in_flight`), the transport's limit bounds *sockets*.
"""

from __future__ import annotations

from typing import Protocol

from .pause import Pause
from .slots import Slot, Slots
from .window import NoLimit, StartsPerWindow

__all__ = ["NoLimit", "Pause", "RateLimiter", "Slot", "Slots", "StartsPerWindow"]


class RateLimiter(Protocol):
    """Starts per time. `aiolimiter.AsyncLimiter` is one as it is."""

    async def acquire(self) -> None:
        """Return when one more job may start. A waiter that is cancelled takes nothing."""
        ...
