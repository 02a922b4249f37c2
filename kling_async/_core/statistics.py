"""Statistics of a session."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import attrs

from .polling import WatchStatistics


@attrs.frozen(kw_only=True)
class Concurrency:
    """State of a limit on the requests of one kind.

    Attributes:
        limit: Requests that may be under way at once now.
        taken: Requests under way.
        waiting: Requests that wait until others have ended.
        seconds: Mean duration of the latest ones in seconds; 0 before the first.
    """

    limit: int
    taken: int
    waiting: int
    seconds: float


@attrs.frozen(kw_only=True)
class SessionStatistics:
    """A snapshot of a session: running and waiting jobs, refusals, polling and cost.

    Attributes:
        running: Predictions known to be running.
        slots: Predictions that may run at once now: `max_in_flight`, or fewer while the service refuses jobs.
        waiting_for_window: Batches that read no input until their consumer takes an outcome.
        waiting_for_slot: Jobs that wait for a running prediction to end.
        waiting_for_rate: Jobs that wait for the rate limiter.
        waiting_for_pause: Jobs that wait out a pause after a 429.
        pause_left: Remaining seconds of that pause.
        refusals: Number of 429 replies by limit: "starts" per time, predictions "running", or "unknown".
        uploads: Uploads of pictures, their tickets included.
        submits: Paid requests without a reply: a crash leaves as many jobs in doubt.
        downloads: Downloads of videos.
        connections: Requests under way to the host with the most, of any kind; None for a transport of your own.
        watch: Status requests, and the delay until ends were known.
        spent: USD of the jobs accepted since the session was opened, by the price list.
    """

    running: int
    slots: int
    waiting_for_window: int
    waiting_for_slot: int
    waiting_for_rate: int
    waiting_for_pause: int
    pause_left: float
    refusals: Mapping[str, int]
    uploads: Concurrency
    submits: Concurrency
    downloads: Concurrency
    connections: Concurrency | None
    watch: WatchStatistics
    spent: Decimal
