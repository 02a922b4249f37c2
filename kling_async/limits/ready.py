"""Ready queue: jobs that wait for a slot, in the order in which they get one."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import OrderedDict


class ReadyQueue:
    """Futures of jobs that wait, served by rank, and among equal ranks in the order of arrival.

    A job with a rank continues what has begun, and goes before all that have none; of these, the one with the smallest
    rank is first. The order is decided in `pop` alone: a rule that shares what is free among several callers belongs
    there, with a queue of this kind for each of them.

    Attributes:
        count: Number of jobs that wait.
    """

    def __init__(self) -> None:
        # The usual case: nothing has a rank. Leaving the middle of it takes constant time.
        self._first_come: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._ranked: list[tuple[float, int, asyncio.Future[None]]] = []
        # Those in the heap that still wait: what is cancelled leaves the heap only when it is its turn.
        self._with_rank: set[asyncio.Future[None]] = set()
        self._arrivals = itertools.count()
        self.count = 0

    def add(self, rank: float | None = None) -> asyncio.Future[None]:
        """Return the future of a job that waits from now on.

        Args:
            rank: Its rank; None for a job that begins something new.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.count += 1
        if rank is None:
            self._first_come[waiter] = None
        else:
            self._with_rank.add(waiter)
            heapq.heappush(self._ranked, (rank, next(self._arrivals), waiter))
        return waiter

    def discard(self, waiter: asyncio.Future[None]) -> bool:
        """Remove a job that does not wait any more; return False if it was served before."""
        if waiter in self._first_come:
            del self._first_come[waiter]
        elif waiter in self._with_rank:
            self._with_rank.remove(waiter)
        else:
            return False
        self.count -= 1
        return True

    def pop(self) -> asyncio.Future[None]:
        """Remove and return the job that is served next.

        Raises:
            KeyError: None waits.
        """
        self.count -= 1
        while self._ranked:
            waiter = heapq.heappop(self._ranked)[2]
            if waiter in self._with_rank:
                self._with_rank.remove(waiter)
                return waiter
        return self._first_come.popitem(last=False)[0]
