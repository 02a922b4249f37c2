"""Protocols of rate limiters."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class RateLimiter(Protocol):
    """Limit on starts per time. `aiolimiter.AsyncLimiter` satisfies it unchanged."""

    async def acquire(self) -> None:
        """Return when one more job may start. A cancelled waiter consumes nothing."""
        ...


@runtime_checkable
class ListeningRateLimiter(RateLimiter, Protocol):
    """Rate limiter that is notified when the service refuses a start nevertheless."""

    async def penalize(self, retry_after: float | None) -> None:
        """Take note of a refused start; must not wait.

        The session pauses by itself; this call is for other sessions that share the limiter.

        Args:
            retry_after: Seconds that the service asked to wait, or None when it named no time.
        """
        ...
