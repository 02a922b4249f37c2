"""Pauses between two attempts of an unpaid request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async._core.answers import MAX_READ_PAUSE_S
from kling_async._core.polling import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

BACKOFF = Backoff()
"""Pauses between two attempts, in seconds."""


def pause(
    failures: int, rng: Callable[[], float], retry_after: float | None = None, backoff: Backoff = BACKOFF
) -> float:
    """Return the seconds to wait after consecutive failures.

    Args:
        failures: Number of failed attempts, from 1.
        rng: Draws jitter from [0, 1), so that jobs that failed together do not retry together.
        retry_after: Seconds of `Retry-After`, which are the least pause, up to a minute; None without one.
        backoff: Pauses without `Retry-After`.
    """
    return max(backoff.delay(failures, rng()), min(retry_after or 0.0, MAX_READ_PAUSE_S))
