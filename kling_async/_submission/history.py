"""Read the account's history and bill since a time: completely, or raise."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from kling_async._core.answers import Kind
from kling_async._http.pagination import MAX_PAGE_SIZE, Paginator
from kling_async._http.retry import pause
from kling_async.errors import ProtocolError
from kling_async.providers.protocol import account_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from kling_async._core.account import Billing, Page
    from kling_async._core.clock import Clock
    from kling_async._core.http import HttpResponse
    from kling_async._core.prediction import Prediction
    from kling_async._http.reads import Reads
    from kling_async.providers import Provider

T = TypeVar("T")

MAX_PAGE_ATTEMPTS = 6
"""Reads of one page, after which an incomplete one is an error."""


class History:
    """Reads the account's history and bill.

    Args:
        provider: Builds the requests and parses the replies.
        reads: Reads pages.
        clock: The session's clock.
        rng: Draws jitter.
    """

    def __init__(
        self,
        provider: Provider,
        reads: Reads,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._provider = provider
        self._reads = reads
        self._clock = clock
        self._rng = rng

    async def predictions(self, since: float | None) -> tuple[list[Prediction], float]:
        """Return all predictions created since a time, and the seconds by which the service's clock is ahead of ours.

        Args:
            since: Seconds since the epoch by the service's clock; None for all that the service keeps.

        Raises:
            UnsupportedError: The provider has no history.
            ApiError: A page could not be read completely.
            TransportError: There was no reply.
        """
        ahead = 0.0
        start = None if since is None else datetime.fromtimestamp(since, UTC)
        provider = account_of(self._provider, "predictions")

        def parse(response: HttpResponse) -> Page[Prediction]:
            nonlocal ahead
            ahead = response.ahead(self._clock.now()) or ahead
            return provider.read_predictions(response)

        async def read(page: int, size: int) -> Page[Prediction] | ProtocolError:
            request = provider.predictions(page=page, page_size=size, created_after=start)
            listed = await self._reads.read(request, parse, Kind.PAGE)
            if listed.size < size and await self._has_next_page(page, size, start):
                return ProtocolError(
                    f"page {page} of the predictions: expected {size}, because more follow, got {listed.size}",
                    status=200,
                )
            return _complete(listed, "predictions")

        paginator = Paginator(self._retried(read), size=MAX_PAGE_SIZE, key=lambda prediction: prediction.id)
        return [prediction async for prediction in paginator.items(None)], ahead

    async def newest(self, limit: int) -> list[Prediction]:
        """Return the newest predictions.

        Args:
            limit: Greatest number of them.

        Raises:
            UnsupportedError: The provider has no history.
            ApiError: A page could not be read completely.
            TransportError: There was no reply.
        """
        provider = account_of(self._provider, "predictions")

        async def read(page: int, size: int) -> Page[Prediction] | ProtocolError:
            request = provider.predictions(page=page, page_size=size)
            return _complete(await self._reads.read(request, provider.read_predictions, Kind.PAGE), "predictions")

        paginator = Paginator(self._retried(read), size=MAX_PAGE_SIZE, key=lambda prediction: prediction.id)
        return [prediction async for prediction in paginator.items(limit)]

    async def bill(self, since: float) -> list[Billing]:
        """Return all deductions since a time.

        Args:
            since: Seconds since the epoch by the service's clock.

        Raises:
            UnsupportedError: The provider has no bill.
            ApiError: A page could not be read completely.
            TransportError: There was no reply.
        """
        start = datetime.fromtimestamp(since, UTC)
        provider = account_of(self._provider, "billings")

        async def read(page: int, size: int) -> Page[Billing] | ProtocolError:
            request = provider.billings(page=page, page_size=size, kind="deduct", start=start)
            return _complete(await self._reads.read(request, provider.read_billings, Kind.PAGE), "bill lines")

        paginator = Paginator(
            self._retried(read), size=MAX_PAGE_SIZE, key=lambda line: line.id or (line.prediction_id, line.created_at)
        )
        return [line async for line in paginator.items(None)]

    def _retried(
        self, read: Callable[[int, int], Awaitable[Page[T] | ProtocolError]]
    ) -> Callable[[int, int], Awaitable[Page[T]]]:
        """Return `read` with retries of incomplete pages, which it returns as an error."""

        async def again(page: int, size: int) -> Page[T]:
            attempt = 0
            while True:
                attempt += 1
                found = await read(page, size)
                if not isinstance(found, ProtocolError):
                    return found
                if attempt == MAX_PAGE_ATTEMPTS:
                    raise found
                await self._clock.sleep(pause(attempt, self._rng.random))

        return again

    async def _has_next_page(self, page: int, size: int, start: datetime | None) -> bool:
        """Return whether items follow a page that was shorter than requested."""
        provider = account_of(self._provider, "predictions")
        request = provider.predictions(page=page + 1, page_size=size, created_after=start)
        return (await self._reads.read(request, provider.read_predictions, Kind.PAGE)).size > 0


def _complete(page: Page[T], what: str) -> Page[T] | ProtocolError:
    """Return a page if all of its items were parsed, else an error.

    One that was not may be the one that is looked for, so absence from the page proves nothing.
    """
    if page.unread:
        return ProtocolError(f"{page.unread} of {page.size} {what} of a page could not be parsed", status=200)
    return page
