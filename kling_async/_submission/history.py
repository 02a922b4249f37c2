"""Read the account's history and bill since a time: completely, or raise."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from kling_async._http.pagination import MAX_PAGE_SIZE, Paginator
from kling_async._http.retry import pause
from kling_async.errors import ApiError, ProtocolError
from kling_async.providers.protocol import account_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from kling_async._core.account import Billing, Page
    from kling_async._core.clock import Clock
    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.prediction import Prediction
    from kling_async.providers import Provider

T = TypeVar("T")

MAX_CLOCK_LAG_S = 3600.0
"""Seconds by which the service's clock may be behind ours without hiding a prediction from its history."""
MAX_PAGE_ATTEMPTS = 6
"""Reads of one page, after which an incomplete one is an error."""


class History:
    """Reads the account's history and bill.

    Args:
        provider: Builds the requests and parses the replies.
        ask: Sends a read and returns its reply.
        clock: The session's clock.
        rng: Draws jitter.
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
        """Return all predictions created since a time, and the seconds by which the service's clock is ahead of ours.

        Args:
            since: Seconds since the epoch.

        Raises:
            UnsupportedError: The provider has no history.
            ApiError: A page could not be read completely.
            TransportError: There was no reply.
        """
        ahead = 0.0
        start = _start(since)
        provider = account_of(self._provider, "predictions")

        async def read(page: int, size: int) -> Page[Prediction]:
            nonlocal ahead
            response = await self._ask(provider.predictions(page=page, page_size=size, created_after=start))
            ahead = response.ahead(self._clock.now()) or ahead
            listed = provider.read_predictions(response)
            if listed.size < size and await self._has_next_page(page, size, start):
                raise ProtocolError(
                    f"page {page} of the predictions: expected {size}, because more follow, got {listed.size}",
                    status=200,
                )
            return _complete(listed, "predictions")

        paginator = Paginator(self._retried(read), size=MAX_PAGE_SIZE, key=lambda prediction: prediction.id)
        return [prediction async for prediction in paginator.items(None)], ahead

    async def bill(self, since: float) -> list[Billing]:
        """Return all deductions since a time.

        Args:
            since: Seconds since the epoch.

        Raises:
            UnsupportedError: The provider has no bill.
            ApiError: A page could not be read completely.
            TransportError: There was no reply.
        """
        start = _start(since)
        provider = account_of(self._provider, "billings")

        async def read(page: int, size: int) -> Page[Billing]:
            request = provider.billings(page=page, page_size=size, kind="deduct", start=start)
            return _complete(provider.read_billings(await self._ask(request)), "bill lines")

        paginator = Paginator(
            self._retried(read), size=MAX_PAGE_SIZE, key=lambda line: line.id or (line.prediction_id, line.created_at)
        )
        return [line async for line in paginator.items(None)]

    def _retried(self, read: Callable[[int, int], Awaitable[Page[T]]]) -> Callable[[int, int], Awaitable[Page[T]]]:
        """Return `read` with retries after transient errors and incomplete pages."""

        async def again(page: int, size: int) -> Page[T]:
            attempt = 0
            while True:
                attempt += 1
                try:
                    return await read(page, size)
                except ApiError as error:
                    if not error.transient or attempt == MAX_PAGE_ATTEMPTS:
                        raise
                    await self._clock.sleep(max(pause(attempt, self._rng.random), error.retry_after or 0.0))

        return again

    async def _has_next_page(self, page: int, size: int, start: datetime) -> bool:
        """Return whether items follow a page that was shorter than requested."""
        provider = account_of(self._provider, "predictions")
        request = provider.predictions(page=page + 1, page_size=size, created_after=start)
        return provider.read_predictions(await self._ask(request)).size > 0


def _start(since: float) -> datetime:
    """Return a time, less the possible lag of the service's clock."""
    return datetime.fromtimestamp(since - MAX_CLOCK_LAG_S, UTC)


def _complete(page: Page[T], what: str) -> Page[T]:
    """Return a page if all of its items were parsed.

    Raises:
        ProtocolError: One was not. It may be the one that is looked for, so absence from the page proves nothing.
    """
    if page.unread:
        raise ProtocolError(f"{page.unread} of {page.size} {what} of a page could not be parsed", status=200)
    return page
