"""Queue of the jobs that are ready for a slot: fair between callers, ordered within each."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from kling_async._core.turns import ANYWHERE, FairTurns, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T", bound="Hashable")


@attrs.define(eq=False)
class _Line:
    """Waiting items of one caller.

    Attributes:
        caller: Name of the caller.
        heap: Items by (-priority, rank, number); items that were discarded are still among them.
        live: Number of items that were not discarded.
        parked: Whether the caller may take none now.
    """

    caller: str
    heap: list[tuple[int, float, int, object]] = attrs.field(factory=list)
    live: int = 0
    parked: bool = False


class ReadyQueue(Generic[T]):
    """Items that wait, each at a place. Callers take turns by their weights, however much each has waiting.

    Args:
        weight: Returns the weight of a caller, above 0.
        may_take: Returns whether a caller may take one more item now. When that becomes true again, call `unpark`.

    Attributes:
        items: The items, in the order of their arrival.
    """

    def __init__(self, weight: Callable[[str], float], may_take: Callable[[str], bool]) -> None:
        self._weight = weight
        self._may_take = may_take
        self._turns = FairTurns()
        self._lines: dict[str, _Line] = {}
        self.items: dict[T, _Line] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self.items)

    def waiting(self, caller: str) -> int:
        """Return the number of a caller's items."""
        line = self._lines.get(caller)
        return 0 if line is None else line.live

    def push(self, item: T, place: Place = ANYWHERE) -> None:
        """Add an item at a place."""
        line = self._lines.get(place.caller)
        if line is None:
            line = self._lines[place.caller] = _Line(place.caller)
            self._turns.enter(place.caller, self._weight(place.caller))
        heapq.heappush(line.heap, (-place.priority, place.rank, next(self._numbers), item))
        self.items[item] = line
        line.live += 1

    def pop(self) -> tuple[T, str] | None:
        """Remove and return the item whose turn it is, and its caller; None if no caller may take one."""
        if len(self._lines) == 1:
            # A caller alone gets everything, and owes nobody.
            (line,) = self._lines.values()
            return (self._take(line), line.caller) if self._may_take(line.caller) else None
        while (caller := self._turns.first()) is not None:
            line = self._lines[caller]
            if self._may_take(caller):
                self._turns.take(caller)
                return self._take(line), caller
            line.parked = True
            self._turns.leave(caller)
        return None

    def discard(self, item: T) -> bool:
        """Remove an item, and return whether it was there."""
        line = self.items.pop(item, None)
        if line is None:
            return False
        self._shorten(line)
        if len(line.heap) > 2 * line.live:
            line.heap = [entry for entry in line.heap if entry[3] in self.items]
            heapq.heapify(line.heap)
        return True

    def clear(self) -> list[tuple[T, str]]:
        """Remove and return all items and their callers, also of those who may take none now, in order of arrival."""
        items = [(item, line.caller) for item, line in self.items.items()]
        self.items.clear()
        self._lines.clear()
        self._turns.reset()
        return items

    def unpark(self, caller: str) -> None:
        """Let a caller take items again."""
        line = self._lines.get(caller)
        if line is not None and line.parked:
            line.parked = False
            self._turns.enter(caller, self._weight(caller))

    def _take(self, line: _Line) -> T:
        """Remove and return the first item of a line, which has one."""
        while True:
            item: T = heapq.heappop(line.heap)[3]  # type: ignore[assignment]  # all of them are of this type
            if self.items.pop(item, None) is not None:
                self._shorten(line)
                return item

    def _shorten(self, line: _Line) -> None:
        """Count one item less of a line, and forget it with the last one."""
        line.live -= 1
        if not line.live:
            del self._lines[line.caller]
            if not line.parked:
                self._turns.leave(line.caller)
            if not self.items:
                # Whoever comes next has neither debts nor credit.
                self._turns.reset()
