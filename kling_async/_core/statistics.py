"""Statistics of a session."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import attrs

from .polling import WatchStatistics


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
    watch: WatchStatistics
    spent: Decimal
