"""Queue of the jobs that are ready for a slot: fair between callers, ordered within each."""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T", bound="Hashable")

_ROUNDING = 1e-9
"""Sums of 1/weight that differ by less are equal."""
_KEPT_LINES = 64
"""Callers with nothing waiting, and outdated turns, that are kept at least before they are looked for."""


@attrs.frozen
class Place:
    """Place of a job among those that wait.

    Attributes:
        caller: Name of the caller who shares the slots with others; empty for nobody in particular.
        priority: Among the caller's own jobs, higher ones go first.
        rank: Among equal priorities, lower ones go first; then it is the order of arrival. Jobs that continue a film
            have one, and so go before those that begin something new.
    """

    caller: str = ""
    priority: int = 0
    rank: float = math.inf


ANYWHERE = Place()
"""Place of a job without caller, priority and rank."""


@attrs.define(eq=False)
class _Line:
    """Waiting items of one caller.

    Attributes:
        caller: Name of the caller.
        weight: Share of the starts, relative to other callers'.
        start: Virtual time from which its next item is due.
        finish: Virtual time by which its next item is to be served.
        heap: Items by (-priority, rank, number); items that were discarded are still among them.
        live: Number of items that were not discarded.
        turn: Number of its entry among the turns; other entries are outdated. None while it has none.
        parked: Whether the caller has items, and may take none now.
    """

    caller: str
    weight: float
    start: float = 0.0
    finish: float = 0.0
    heap: list[tuple[int, float, int, object]] = attrs.field(factory=list)
    live: int = 0
    turn: int | None = None
    parked: bool = False


_Turn = tuple[float, int, _Line]


class ReadyQueue(Generic[T]):
    """Items that wait, each at a place. Callers take turns by their weights, however much each has waiting.

    The rule is worst-case fair weighted fair queueing (WF2Q+, Bennett and Zhang, 1996): of the callers whose next item
    is due by virtual time, the one goes first whose item is to be served earliest. Nobody is thereby ahead of or behind
    their share by more than about one start, and who comes later is served within one round, without credit for the time
    before. A caller alone gets everything.

    Args:
        weight: Returns the weight of a caller, above 0.
        may_take: Returns whether a caller may take one more item now. When that becomes true again, call `unpark`.
    """

    def __init__(self, weight: Callable[[str], float], may_take: Callable[[str], bool]) -> None:
        self._weight = weight
        self._may_take = may_take
        self._arrivals = count()
        self._lines: dict[str, _Line] = {}
        self._items: dict[T, _Line] = {}
        self._turn_numbers = count()
        self._virtual = 0.0
        self._active_weight = 0.0
        self._look_again_at = _KEPT_LINES
        # By finish, and by start.
        self._due: list[_Turn] = []
        self._future: list[_Turn] = []

    def __len__(self) -> int:
        return len(self._items)

    def waiting(self, caller: str) -> int:
        """Return the number of a caller's items."""
        line = self._lines.get(caller)
        return 0 if line is None else line.live

    def push(self, item: T, place: Place = ANYWHERE) -> None:
        """Add an item at a place."""
        line = self._lines.get(place.caller)
        if line is None:
            self._forget_idle()
            line = self._lines[place.caller] = _Line(place.caller, self._weight(place.caller))
        number = next(self._arrivals)
        heapq.heappush(line.heap, (-place.priority, place.rank, number, item))
        self._items[item] = line
        line.live += 1
        if line.live == 1:
            self._activate(line)

    def pop(self) -> tuple[T, str] | None:
        """Remove and return the item whose turn it is, and its caller; None if no caller may take one."""
        while (line := self._next_line()) is not None:
            if self._may_take(line.caller):
                self._virtual += 1 / self._active_weight
                self._deactivate(line)
                line.start = line.finish
                return self._take(line), line.caller
            line.parked = True
            self._deactivate(line)
        return None

    def discard(self, item: T) -> bool:
        """Remove an item, and return whether it was there."""
        line = self._items.pop(item, None)
        if line is None:
            return False
        line.live -= 1
        if not line.live:
            self._deactivate(line)
            self._empty(line)
        elif len(line.heap) > 2 * line.live:
            line.heap = [entry for entry in line.heap if entry[3] in self._items]
            heapq.heapify(line.heap)
        return True

    def clear(self) -> list[tuple[T, str]]:
        """Remove and return all items and their callers, also of those who may take none now, in order of arrival."""
        items = [(item, line.caller) for item, line in self._items.items()]
        self._items.clear()
        self._reset()
        return items

    def unpark(self, caller: str) -> None:
        """Let a caller take items again."""
        line = self._lines.get(caller)
        if line is not None and line.parked:
            line.parked = False
            self._activate(line)

    def _take(self, line: _Line) -> T:
        """Remove and return the first item of a line, which has one."""
        while True:
            item: T = heapq.heappop(line.heap)[3]  # type: ignore[assignment]  # all of them are of this type
            if self._items.pop(item, None) is not None:
                break
        line.live -= 1
        if line.live:
            self._activate(line)
        else:
            self._empty(line)
        return item

    def _activate(self, line: _Line) -> None:
        """Give a caller with items its next turn."""
        line.start = max(line.start, self._virtual)
        line.finish = line.start + 1 / line.weight
        line.turn = next(self._turn_numbers)
        self._active_weight += line.weight
        heapq.heappush(self._future, (line.start, line.turn, line))

    def _deactivate(self, line: _Line) -> None:
        """Take away a caller's turn, if it has one."""
        if line.turn is not None:
            line.turn = None
            self._active_weight -= line.weight

    def _next_line(self) -> _Line | None:
        """Return the line whose turn it is, and remove that turn from the heaps; None if no line has one."""
        while True:
            while self._future and self._future[0][0] <= self._virtual + _ROUNDING:
                _, turn, line = heapq.heappop(self._future)
                if line.turn == turn:
                    heapq.heappush(self._due, (line.finish, turn, line))
            while self._due:
                _, turn, line = heapq.heappop(self._due)
                if line.turn == turn:
                    return line
            if not self._future:
                return None
            # Nobody is due: time goes on to the first who will be.
            start, turn, line = self._future[0]
            if line.turn == turn:
                self._virtual = start
            else:
                heapq.heappop(self._future)

    def _empty(self, line: _Line) -> None:
        """Tidy up after the last item of a line was removed."""
        line.heap.clear()
        line.parked = False
        if not self._items:
            # Whoever comes next has neither debts nor credit.
            self._reset()
        elif len(self._future) + len(self._due) > 2 * len(self._lines) + _KEPT_LINES:
            self._future = [each for each in self._future if each[2].turn == each[1]]
            self._due = [each for each in self._due if each[2].turn == each[1]]
            heapq.heapify(self._future)
            heapq.heapify(self._due)

    def _reset(self) -> None:
        self._lines.clear()
        self._due.clear()
        self._future.clear()
        self._virtual = self._active_weight = 0.0

    def _forget_idle(self) -> None:
        """Forget callers who have nothing waiting and are not ahead of their shares, if there may be many of them."""
        if len(self._lines) > self._look_again_at:
            self._lines = {
                caller: line
                for caller, line in self._lines.items()
                if line.live or line.start > self._virtual + _ROUNDING
            }
            self._look_again_at = 2 * len(self._lines) + _KEPT_LINES
