"""Sending again what may be sent again: reads, and nothing else."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from ._core.errors import TransportError
from ._core.http import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._core.clock import Clock
    from ._core.http import HttpRequest, HttpResponse
    from ._core.transport import Transport

FIRST_PAUSE = 0.5
"""Seconds before the first repetition; each further pause is twice as long."""
LONGEST_PAUSE = 15.0
"""Seconds."""
PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses that a later request may not meet."""


def pause(failures: int, rng: Callable[[], float], asked: float | None = None) -> float:
    """Seconds to wait after so many failures in a row.

    Half of the time is drawn by lot, so that many jobs that failed together do not come back together.

    Args:
        failures: How many attempts have failed, from 1.
        rng: Draws from [0, 1).
        asked: What the service asked for by `Retry-After`; never waited less than that.
    """
    # The exponent is bounded because a float is not: 2.0**2000 overflows.
    longest = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE)
    return max(longest * (1 + rng()) / 2, asked or 0.0)


async def send_read(
    transport: Transport,
    request: HttpRequest,
    clock: Clock,
    *,
    attempts: int = 5,
    rng: Callable[[], float] = random.random,
) -> HttpResponse:
    """The reply to a read, asked for again after transport errors and passing statuses.

    Args:
        transport: Sends.
        request: Must have `Effect.READ`.
        clock: Tells the time and waits.
        attempts: How often it is sent at most.
        rng: Draws the jitter from [0, 1).

    Returns:
        The first reply with another status than those of `PASSING`, or the last reply.

    Raises:
        TransportError: The last attempt brought no reply.
        ValueError: The request is a paid one: sending that again is never decided here.
    """
    if request.effect is not Effect.READ:
        raise ValueError(f"not a read: {request!r}")
    for attempt in itertools.count(1):
        asked = None
        try:
            response = await transport.send(request)
        except TransportError:
            if attempt >= attempts:
                raise
        else:
            if response.status not in PASSING or attempt >= attempts:
                return response
            asked = response.retry_after(clock.now())
        await clock.sleep(pause(attempt, rng, asked))
    raise AssertionError  # pragma: no cover -- the count has no end
