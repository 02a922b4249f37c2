"""Session-wide back-off after a 429."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kling_async._core.clock import Clock

FIRST_PAUSE_S = 4.0
"""Length of the first pause without a `Retry-After`; each following one is twice as long."""
MAX_PAUSE_S = 65.0
"""Longest pause without a `Retry-After`; longer than any rate window of the service."""
MAX_RETRY_AFTER_S = 300.0
"""Longest `Retry-After` that is honoured in full: it holds every job back, and one request every 5 minutes is cheap."""


class Pause:
    """Pause before all starts of a session, after a 429 that waiting can resolve.

    The service sends no `Retry-After`, and its rate windows are minutes. So the pause doubles from `FIRST_PAUSE_S` to
    `MAX_PAUSE_S`, which outlasts a window; an accepted job resets it.

    Args:
        clock: The session's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0
        self._next_s = FIRST_PAUSE_S

    @property
    def remaining(self) -> float:
        """Seconds until the pause ends; 0 without one."""
        return max(0.0, self._until - self._clock.monotonic())

    @property
    def closed(self) -> bool:
        """True while starts have to wait."""
        return self.remaining > 0

    async def wait(self) -> None:
        """Return when the pause is over."""
        while (remaining := self.remaining) > 0:
            # A timer may fire slightly early; the extra millisecond keeps this from spinning.
            await self._clock.sleep(remaining + 0.001)

    def close(self, retry_after: float | None, jitter: float) -> float:
        """Begin or extend the pause after a 429.

        Args:
            retry_after: Seconds that the service asked for, or None.
            jitter: Uniform in [0, 1); lengthens the pause by up to 10 percent.

        Returns:
            Seconds until the pause ends.
        """
        now = self._clock.monotonic()
        if retry_after is None:
            if self._until > now:
                # Further refusals of the same burst do not extend it.
                return self._until - now
            retry_after = self._next_s
            self._next_s = min(self._next_s * 2, MAX_PAUSE_S)
        # At least a second, also when the service sends `Retry-After: 0`.
        retry_after = min(max(retry_after, 1.0), MAX_RETRY_AFTER_S)
        self._until = max(self._until, now + retry_after * (1 + 0.1 * jitter))
        return self._until - now

    def reset(self) -> None:
        """Let the next pause begin at `FIRST_PAUSE_S` again, after an accepted job."""
        self._next_s = FIRST_PAUSE_S
