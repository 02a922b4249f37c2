"""What a 429 does to everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kling_async._core.clock import Clock


class Pause:
    """A gate before all starts of a session, closed for a while by a 429 that time helps against.

    The service names no `Retry-After`; its windows are minutes. So the pause grows from a few seconds to a little over
    a minute, which is enough for a window; an accepted job resets it.

    Args:
        clock: The session's clock.
    """

    first = 4.0
    longest = 65.0
    """Of those that the service does not ask for; longer than any of its windows."""
    most = 300.0
    """A longer `Retry-After` is not waited out: it would stand in everybody's way. One job asks every five minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0
        self._next = self.first

    @property
    def left(self) -> float:
        """Seconds until it opens; 0 when it is open."""
        return max(0.0, self._until - self._clock.monotonic())

    @property
    def closed(self) -> bool:
        """Whether starts have to wait."""
        return self.left > 0

    async def wait(self) -> None:
        """Return when the gate is open."""
        while (left := self.left) > 0:
            # A millisecond more: a timer may fire a little early, and this must not spin.
            await self._clock.sleep(left + 0.001)

    def close(self, retry_after: float | None, chance: float) -> float:
        """Close the gate after a 429.

        Args:
            retry_after: Seconds that the service asked for, or None.
            chance: Uniform in [0, 1), for the jitter.

        Returns:
            Seconds until it opens.
        """
        now = self._clock.monotonic()
        if retry_after is None:
            if self._until > now:
                # The refusals of one burst are one piece of news.
                return self._until - now
            retry_after = self._next
            self._next = min(self._next * 2, self.longest)
        # Not even a service that asks for none is asked again at once.
        retry_after = min(max(retry_after, 1.0), self.most)
        self._until = max(self._until, now + retry_after * (1 + 0.1 * chance))
        return self._until - now

    def accepted(self) -> None:
        """A job was accepted: the next refusal is the first one again."""
        self._next = self.first
