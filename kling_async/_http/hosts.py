"""Turns of requests, by host: how many connections each has is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async._clock import SystemClock
from kling_async._core.adaptive import AdaptiveLimit
from kling_async._core.http import HttpResponse
from kling_async._files import max_open_files
from kling_async._turns import Turns
from kling_async.errors import ConnectFailedError

if TYPE_CHECKING:
    from yarl import URL

    from kling_async._core.statistics import Concurrency

INITIAL_CONNECTIONS = 256
"""Requests that may be under way to a host at once at first."""
MAX_CONNECTIONS = 2048
"""Requests that may be under way to a host at once at most; half of the files that the process may open, if fewer."""


class Hosts:
    """The turns of every host that requests were sent to."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._hosts: dict[tuple[str | None, int | None], Turns] = {}

    def turns(self, url: URL) -> Turns:
        """Return the turns of the host of a URL."""
        host = url.host, url.port
        if host not in self._hosts:
            most = max(INITIAL_CONNECTIONS, min(MAX_CONNECTIONS, max_open_files() // 2))
            self._hosts[host] = Turns(AdaptiveLimit(INITIAL_CONNECTIONS, most), self._clock)
        return self._hosts[host]

    def statistics(self) -> Concurrency | None:
        """Return where the limit of the host with the most requests stands; None before the first request."""
        return max((turns.statistics() for turns in self._hosts.values()), key=lambda one: one.taken, default=None)


def learn(turns: Turns, epoch: int, reply: HttpResponse | BaseException, seconds: float) -> None:
    """Teach the turns of a host what came of a request.

    Args:
        turns: The turns.
        epoch: The epoch in which the request was given its turn.
        reply: The reply, or the error.
        seconds: How long it took.
    """
    if isinstance(reply, HttpResponse):
        turns.limit.record_done(1.0, seconds, full=turns.full)
    elif isinstance(reply, ConnectFailedError):
        turns.limit.record_refused(epoch)
