"""What the account's history and its bill show since a time: whole, or an error."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from ._core.errors import ApiError, ProtocolError, RateLimitedError, ServerError
from ._retry import pause
from ._walk import MAX_PAGE, Walk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from ._core.account import Billing, Page
    from ._core.clock import Clock
    from ._core.http import HttpRequest, HttpResponse
    from ._core.prediction import Prediction
    from .providers import Provider

T = TypeVar("T")

BEHIND = 3600.0
"""Seconds by which the service's clock may be behind ours without hiding a prediction from its history."""
ATTEMPTS = 6
"""How often a page is asked for that does not come whole."""
_BLIPS: tuple[type[ApiError], ...] = (ServerError, ProtocolError, RateLimitedError)


class History:
    """Reads the pages of the account's history and of its bill.

    Args:
        provider: Phrases the reads.
        ask: Sends one.
        clock: The session's clock.
        rng: For jitter.
    """

    def __init__(
        self,
        provider: Provider,
        ask: Callable[[HttpRequest], Awaitable[HttpResponse]],
        clock: Clock,
        rng: Random,
    ) -> None:
        self._provider = provider
        self._ask = ask
        self._clock = clock
        self._rng = rng

    async def predictions(self, since: float) -> tuple[list[Prediction], float]:
        """All predictions created since a time, and by how many seconds the service's clock is ahead of ours.

        Raises:
            UnsupportedError: The provider has no history.
            ApiError: It does not come whole.
            TransportError: The service could not be asked.
        """
        ahead = 0.0
        start = _start(since)

        async def read(page: int, size: int) -> Page[Prediction]:
            nonlocal ahead
            response = await self._ask(self._provider.predictions(page=page, page_size=size, created_after=start))
            ahead = response.ahead(self._clock.now()) or ahead
            listed = self._provider.read_predictions(response)
            if listed.size < size and await self._goes_on(page, size, start):
                raise ProtocolError("the pages of the list are shorter than was asked for", status=200)
            return _whole(listed, "predictions")

        walk = Walk(self._patient(read), size=MAX_PAGE, key=lambda prediction: prediction.id)
        return [prediction async for prediction in walk.items(None)], ahead

    async def bill(self, since: float) -> list[Billing]:
        """All that was deducted since a time.

        Raises:
            UnsupportedError: The provider shows no bill.
            ApiError: It does not come whole.
            TransportError: The service could not be asked.
        """
        start = _start(since)

        async def read(page: int, size: int) -> Page[Billing]:
            request = self._provider.billings(page=page, page_size=size, kind="deduct", start=start)
            return _whole(self._provider.read_billings(await self._ask(request)), "lines")

        walk = Walk(
            self._patient(read), size=MAX_PAGE, key=lambda line: line.id or (line.prediction_id, line.created_at)
        )
        return [line async for line in walk.items(None)]

    def _patient(self, read: Callable[[int, int], Awaitable[Page[T]]]) -> Callable[[int, int], Awaitable[Page[T]]]:
        """The same, asked again when a page does not come whole."""

        async def again(page: int, size: int) -> Page[T]:
            attempt = 0
            while True:
                attempt += 1
                try:
                    return await read(page, size)
                except _BLIPS as error:
                    if attempt == ATTEMPTS:
                        raise
                    await self._clock.sleep(max(pause(attempt, self._rng.random), error.retry_after or 0.0))

        return again

    async def _goes_on(self, page: int, size: int, start: datetime) -> bool:
        """Whether there is something after a page that was shorter than was asked for."""
        request = self._provider.predictions(page=page + 1, page_size=size, created_after=start)
        return self._provider.read_predictions(await self._ask(request)).size > 0


def _start(since: float) -> datetime:
    # The service's clock may be behind ours: what it calls earlier may be later.
    return datetime.fromtimestamp(since - BEHIND, UTC)


def _whole(page: Page[T], what: str) -> Page[T]:
    """The page, when all of it was understood.

    Raises:
        ProtocolError: An orphan may be among what was not: nothing may be concluded from such a page.
    """
    if page.unread:
        raise ProtocolError(f"{page.unread} {what} of a page cannot be read", status=200)
    return page
