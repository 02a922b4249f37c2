"""Sending again what may be sent again: reads, and nothing else."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from ._core.errors import TransportError
from ._core.http import Effect
from ._core.polling import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._core.clock import Clock
    from ._core.http import HttpRequest, HttpResponse
    from ._core.transport import Transport

BACKOFF = Backoff()
"""How the pauses between attempts grow."""
PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses that a later request may not meet."""


def pause(failures: int, rng: Callable[[], float], asked: float | None = None) -> float:
    """Seconds to wait after so many failures in a row.

    Args:
        failures: How many attempts have failed, from 1.
        rng: Draws from [0, 1), so that many jobs that failed together do not come back together.
        asked: What the service asked for by `Retry-After`; never waited less than that.
    """
    return max(BACKOFF.delay(failures, rng()), asked or 0.0)


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
