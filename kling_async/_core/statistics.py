"""What a session tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import attrs

from .polling import WatchStatistics


@attrs.frozen(kw_only=True)
class SessionStatistics:
    """Where the jobs of a session are, and what they wait for, at one moment.

    Attributes:
        running: Predictions that run, as far as is known.
        slots: How many may run at once now: `max_in_flight`, or fewer while the service refuses them.
        waiting_for_window: Batches whose input waits until their consumer has taken an outcome.
        waiting_for_slot: Jobs that wait for a prediction to end.
        waiting_for_rate: Jobs that wait for the rate limiter.
        waiting_for_pause: Jobs that wait because the service refused one by 429.
        pause_left: Seconds of that.
        refusals: How often the service refused by 429: for its "starts" per time, for what was "running", or "unknown".
        watch: Status requests, their number per finished prediction, and how late ends were found out.
        spent: USD of what was accepted since the session was opened, by the price list.
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
