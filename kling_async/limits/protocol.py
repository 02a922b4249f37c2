"""What a session needs of a rate limiter."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class RateLimiter(Protocol):
    """Starts per time. `aiolimiter.AsyncLimiter` is one as it is."""

    async def acquire(self) -> None:
        """Return when one more job may start. A waiter that is cancelled takes nothing."""
        ...


@runtime_checkable
class ListeningRateLimiter(RateLimiter, Protocol):
    """A rate limiter that is told when the service says that there were too many starts all the same."""

    async def penalize(self, retry_after: float | None) -> None:
        """The service refused a start. The session itself pauses; this is for the others who share the limiter.

        Args:
            retry_after: Seconds that the service asked to wait, or None when it did not say.
        """
        ...
