"""Classification of a 429 by the limit that it reports."""

from __future__ import annotations

import re
from enum import Enum


class Limit(Enum):
    """Limit that a 429 reports."""

    STARTS = "starts"
    """Too many starts per time: waiting helps."""
    RUNNING = "running"
    """Too many running predictions: the end of one helps."""
    ELSEWHERE = "elsewhere"
    """None of the account's: GPTProto has 429 also for failures of its supplier, or without one at the moment."""
    UNKNOWN = "unknown"
    """Too many starts, or too many running."""


_ELSEWHERE = re.compile(r"upstream|\bno (available )?channel", re.IGNORECASE)
_RUNNING = re.compile(r"concurren|simultaneous|in parallel|at once|too many running", re.IGNORECASE)
_STARTS = re.compile(r"per\b.{0,9}\b(second|minute|hour|day)|rate limit", re.IGNORECASE)


def which_limit(message: str, *, running: int, quiet: bool) -> Limit:
    """Return the limit that a 429 reports, by its message, else by the state of the session.

    The wording is not part of any contract: it decides how a job waits, never whether it is sent or paid for.

    Args:
        message: The service's message.
        running: Number of the session's running predictions.
        quiet: Whether the session's last start is longer ago than any rate window.
    """
    if _ELSEWHERE.search(message):
        return Limit.ELSEWHERE
    if _RUNNING.search(message):
        return Limit.RUNNING
    # If nothing runs, no end can help.
    if _STARTS.search(message) or not running:
        return Limit.STARTS
    return Limit.RUNNING if quiet else Limit.UNKNOWN
