"""Pagination of lists that change while they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from kling_async.errors import ProtocolError, ReplyTooLargeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from kling_async._core.account import Page

T = TypeVar("T")

MAX_PAGE_SIZE = 100
"""Greatest number of items of a page (docs: predictions, billings)."""
MIN_PAGE_SIZE = 20
"""Least page size: some size from 11 to 20 puts any item and the next on one page, in lists of 232,792,558 items."""
MAX_REPEATED_PAGES = 10
"""Consecutive full pages without a new item, after which the list is considered endless."""


class Paginator(Generic[T]):
    """Reads a list, newest first, that may change meanwhile.

    Pages count from the newest item. New items move others to the next page, where they are seen twice; deletions move
    others to the previous page, where they would be missed. Each page is therefore chosen so that it includes the last
    item seen, which costs one page in eight. If it does not include it, the list has shrunk, and earlier pages are read
    until one does.

    Args:
        read: Returns a page by its number, from 1, and size.
        size: Greatest number of items per page. A page that is shorter than requested is the last. Where a page is too
            large to be read, smaller ones are requested from then on.
        key: Returns the identity of an item.
    """

    def __init__(
        self, read: Callable[[int, int], Awaitable[Page[T]]], *, size: int, key: Callable[[T], Hashable]
    ) -> None:
        self._read = read
        self._size = size
        self._key = key
        self._seen: set[Hashable] = set()

    async def items(self, limit: int | None) -> AsyncIterator[T]:
        """Yield the items, each once.

        Args:
            limit: Greatest number of items; None yields all.

        Raises:
            ProtocolError: The list repeats itself.
            ReplyTooLargeError: The smallest page is too large to be read.
        """
        yielded = idle = end = 0
        while True:
            number, size, page = await self._page_from(end - 1)
            while number > 1 and not any(self._key(item) in self._seen for item in page.items):
                number, size, page = await self._page_from(max(0, (number - 1) * size - 1))
            end = number * size
            fresh = [item for item in page.items if self._is_new(item)]
            for item in fresh:
                yield item
                yielded += 1
                if yielded == limit:
                    return
            if page.size < size:
                return
            idle = 0 if fresh else idle + 1
            if idle >= MAX_REPEATED_PAGES:
                raise ProtocolError(
                    f"the list has no end: {MAX_REPEATED_PAGES} full pages in a row repeat earlier items",
                    status=200,
                    request_id=page.request_id,
                )

    async def _page_from(self, index: int) -> tuple[int, int, Page[T]]:
        """Read the page with the item at `index`, or the first page for -1; return its number, its size and itself."""
        while True:
            number, size = (1, self._size) if index < 0 else page_with(index, self._size)
            try:
                return number, size, await self._read(number, size)
            except ReplyTooLargeError:
                if self._size <= MIN_PAGE_SIZE:
                    raise
                self._size = max(self._size // 2, MIN_PAGE_SIZE)

    def _is_new(self, item: T) -> bool:
        key = self._key(item)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def page_with(index: int, max_size: int) -> tuple[int, int]:
    """Return number and size of the page with the item at `index` and as many later items as possible.

    Args:
        index: Index of the item, from 0.
        max_size: Greatest page size; at least `MIN_PAGE_SIZE` is used.
    """
    max_size = max(max_size, MIN_PAGE_SIZE)
    size = max(range(max_size // 2 + 1, max_size + 1), key=lambda size: (size - index % size, size))
    return index // size + 1, size
