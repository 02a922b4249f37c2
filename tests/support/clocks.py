"""Session clocks that differ from the service's."""

from __future__ import annotations

import attrs

from support.service import Service


@attrs.define
class AdjustedClock:
    """Clock of a session over `Service`.

    Attributes:
        service: the service, whose clock is right.
        ahead: seconds by which `now` is later.
        pace: factor of the duration of sleeps.
    """

    service: Service
    ahead: float = 0.0
    pace: float = 1.0

    def now(self) -> float:
        return self.service.clock.now() + self.ahead

    def monotonic(self) -> float:
        return self.service.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.service.clock.sleep(seconds * self.pace)


@attrs.define
class FastClock(AdjustedClock):
    """Clock of a session over `Service` whose monotonic time passes faster, by the inverse of `pace`."""

    def monotonic(self) -> float:
        return super().monotonic() / self.pace
