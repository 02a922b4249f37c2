"""Reading a long list while it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from ._core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from ._core.account import Page

T = TypeVar("T")

MAX_PAGE = 100
"""Items of a page at most (docs: predictions, billings)."""
LEAST_PAGE = 20
"""Of pages of up to 20 there is always one that has a given item and one more after it, for the first 232,792,558."""
IDLE_PAGES = 10
"""Full pages in a row without anything new, after which the list is taken to repeat itself."""


class Walk(Generic[T]):
    """Reads a list, newest first, to its end, while it changes.

    Pages count from the newest item, so what arrives pushes items onto the next page, where they are seen twice, and
    what is deleted or no longer passes the filter pulls items onto the page before, where they would be missed. So
    every page reaches back to the border, the last item that was seen: page and size are chosen that way, which costs
    one page in eight. Where the border is not on the page, it has moved up, and earlier pages are read until it is
    found.

    Args:
        read: A page by its number and size.
        size: Items of a page at most; a page that is shorter than was asked for is the last.
        key: What tells one item from another.
    """

    def __init__(
        self, read: Callable[[int, int], Awaitable[Page[T]]], *, size: int, key: Callable[[T], Hashable]
    ) -> None:
        self._read = read
        self._size = size
        self._key = key
        self._seen: set[Hashable] = set()

    async def items(self, limit: int | None) -> AsyncIterator[T]:
        """The items, each once."""
        given = idle = end = 0
        while True:
            number, size = covering(end - 1, self._size) if end else (1, self._size)
            page = await self._read(number, size)
            while number > 1 and not any(self._key(item) in self._seen for item in page.items):
                number, size = covering(max(0, (number - 1) * size - 1), self._size)
                page = await self._read(number, size)
            end = number * size
            fresh = [item for item in page.items if self._is_new(item)]
            for item in fresh:
                yield item
                given += 1
                if given == limit:
                    return
            if page.size < size:
                return
            idle = 0 if fresh else idle + 1
            if idle >= IDLE_PAGES:
                raise ProtocolError("the list repeats itself and has no end", status=200, request_id=page.request_id)

    def _is_new(self, item: T) -> bool:
        key = self._key(item)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def covering(index: int, most: int) -> tuple[int, int]:
    """The number and the size of the page that has the item at `index` (from 0) and the most items after it.

    Args:
        index: What the page must have.
        most: The greatest size; taken for `LEAST_PAGE` when it is smaller.
    """
    most = max(most, LEAST_PAGE)
    size = max(range(most // 2 + 1, most + 1), key=lambda size: (size - index % size, size))
    return index // size + 1, size
