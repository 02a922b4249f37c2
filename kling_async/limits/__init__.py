"""Limits on starts per time and on running predictions.

Three limits with three names: a `RateLimiter` bounds *starts per time*, the session's slots bound *running predictions*
(`max_in_flight`), the transport bounds *sockets*.

`kling_async.limits.shared` has the limiter for many processes on one account; it needs the extra `redis`.
"""

from __future__ import annotations

from .callers import CallerLimits, Callers
from .capacity import Capacity
from .gate import Gate
from .pause import Pause
from .protocol import ListeningRateLimiter, RateLimiter
from .refusal import Limit, which_limit
from .slots import Slot, Slots
from .window import NoLimit, StartsPerWindow

__all__ = [
    "CallerLimits",
    "Callers",
    "Capacity",
    "Gate",
    "Limit",
    "ListeningRateLimiter",
    "NoLimit",
    "Pause",
    "RateLimiter",
    "Slot",
    "Slots",
    "StartsPerWindow",
    "which_limit",
]
