"""Turns of callers who share something, by weight, and places among what waits for it."""

from __future__ import annotations

import heapq
import math
from itertools import count

import attrs

_ROUNDING = 1e-9
"""Sums of 1/weight that differ by less are equal."""
_KEPT = 64
"""Outdated turns, and callers who left, that are kept at least before they are looked for."""


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


@attrs.frozen(eq=False)
class _Turn:
    """The next turn of a caller.

    Attributes:
        caller: Name of the caller.
        weight: Share of the turns, relative to the others'.
        start: Virtual time from which it is due.
        finish: Virtual time by which it is to be taken.
    """

    caller: str
    weight: float
    start: float
    finish: float = attrs.Factory(lambda self: self.start + 1 / self.weight, takes_self=True)


class FairTurns:
    """Turns that go round the callers who are present, by weight.

    The rule is worst-case fair weighted fair queueing (WF2Q+, Bennett and Zhang, 1996): of the callers whose next turn
    is due by virtual time, the one goes first whose turn is to be taken earliest. Nobody is thereby ahead of or behind
    their share by more than about one turn, and who comes later has the first turn within one round, without credit for
    the time before.

    Args:
        virtual: Virtual time: turns taken so far, each by 1 / weight of all who were present.

    Attributes:
        virtual: The same, now.
    """

    def __init__(self, virtual: float = 0.0) -> None:
        self.virtual = virtual
        self._present: dict[str, _Turn] = {}
        self._weight = 0.0
        # Starts of those who left, while they are ahead of their shares.
        self._debts: dict[str, float] = {}
        # Turns by finish, and by start; those that are not present any more are among them.
        self._due: list[tuple[float, int, _Turn]] = []
        self._future: list[tuple[float, int, _Turn]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._present)

    def enter(self, caller: str, weight: float, start: float | None = None) -> None:
        """Let a caller take turns, who did not so far.

        Args:
            caller: Name of the caller.
            weight: Share of the turns, relative to the others'; above 0.
            start: An earlier result of `start_of` for this caller, in virtual time. Who waited for a turn since then
                is at most two turns late, and keeps it: to begin anew each time would lose a part of the share.
        """
        if start is None or start < self.virtual - 2 / weight:
            start = self.virtual
        self._add(_Turn(caller, weight, max(start, self._debts.pop(caller, start))))

    def first(self) -> str | None:
        """Return the caller whose turn it is; None if nobody is present."""
        while True:
            while self._future and self._future[0][0] <= self.virtual + _ROUNDING:
                _, number, turn = heapq.heappop(self._future)
                if self._present.get(turn.caller) is turn:
                    heapq.heappush(self._due, (turn.finish, number, turn))
            while self._due:
                turn = self._due[0][2]
                if self._present.get(turn.caller) is turn:
                    return turn.caller
                heapq.heappop(self._due)
            if not self._future:
                return None
            # Nobody is due: time goes on to the first who will be.
            start, _, turn = self._future[0]
            if self._present.get(turn.caller) is turn:
                self.virtual = start
            else:
                heapq.heappop(self._future)

    def take(self, caller: str) -> None:
        """Count a turn of a caller, who is present; it is the one that `first` returned."""
        turn = self._present[caller]
        self.virtual += 1 / self._weight
        self._weight -= turn.weight
        self._add(_Turn(caller, turn.weight, turn.finish))

    def leave(self, caller: str) -> None:
        """Let a caller, who is present, take no turns for a while."""
        turn = self._present.pop(caller)
        self._weight -= turn.weight
        if turn.start > self.virtual + _ROUNDING:
            self._debts[caller] = turn.start
        if len(self._debts) > 2 * len(self._present) + _KEPT:
            self._debts = {name: start for name, start in self._debts.items() if start > self.virtual + _ROUNDING}
        if not self._present:
            self._weight = 0.0

    def start_of(self, caller: str) -> float:
        """Return the virtual time from which the next turn of a caller who is present is due."""
        return self._present[caller].start

    def reset(self) -> None:
        """Forget everybody, with what they are ahead of their shares."""
        self._present.clear()
        self._debts.clear()
        self._due.clear()
        self._future.clear()
        self.virtual = self._weight = 0.0

    def _add(self, turn: _Turn) -> None:
        self._present[turn.caller] = turn
        self._weight += turn.weight
        if len(self._future) + len(self._due) > 2 * len(self._present) + _KEPT:
            self._future = [each for each in self._future if self._present.get(each[2].caller) is each[2]]
            self._due = [each for each in self._due if self._present.get(each[2].caller) is each[2]]
            heapq.heapify(self._future)
            heapq.heapify(self._due)
        heapq.heappush(self._future, (turn.start, next(self._numbers), turn))
