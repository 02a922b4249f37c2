"""Retry reads. A paid request is never retried here."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from kling_async._core.http import Effect
from kling_async._core.polling import Backoff
from kling_async.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.clock import Clock
    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.transport import Transport

BACKOFF = Backoff()
"""Pauses between two attempts, in seconds."""
RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
"""HTTP statuses after which a read is sent again."""


def pause(failures: int, rng: Callable[[], float], retry_after: float | None = None) -> float:
    """Return the seconds to wait after consecutive failures.

    Args:
        failures: Number of failed attempts, from 1.
        rng: Draws jitter from [0, 1), so that jobs that failed together do not retry together.
        retry_after: Seconds of `Retry-After`, which are the least pause; None without one.
    """
    return max(BACKOFF.delay(failures, rng()), retry_after or 0.0)


async def send_read(
    transport: Transport,
    request: HttpRequest,
    clock: Clock,
    *,
    attempts: int = 5,
    rng: Callable[[], float] = random.random,
) -> HttpResponse:
    """Send a read, and retry it after transport errors and the statuses in `RETRIED_STATUSES`.

    Args:
        transport: Sends the request.
        request: A request with `Effect.READ`.
        clock: The session's clock.
        attempts: Greatest number of attempts.
        rng: Draws jitter from [0, 1).

    Returns:
        The first reply with another status, or the last reply.

    Raises:
        TransportError: The last attempt had no reply.
        ValueError: The request is a paid one.
    """
    if request.effect is not Effect.READ:
        raise ValueError(f"expected a read, got {request!r}")
    for attempt in itertools.count(1):
        retry_after = None
        try:
            response = await transport.send(request)
        except TransportError:
            if attempt >= attempts:
                raise
        else:
            if response.status not in RETRIED_STATUSES or attempt >= attempts:
                return response
            retry_after = response.retry_after(clock.now())
        await clock.sleep(pause(attempt, rng, retry_after))
    raise AssertionError  # pragma: no cover -- the count has no end
