"""Which of the two limits a 429 is about."""

from __future__ import annotations

import re
from enum import Enum


class Limit(Enum):
    """What a 429 refuses a job for."""

    STARTS = "starts"
    """Too many were started in a while: time helps."""
    RUNNING = "running"
    """Too many run: one that ends helps."""
    UNKNOWN = "unknown"
    """One of the two."""


_RUNNING = re.compile(r"concurren|simultaneous|in parallel|at once|too many running", re.IGNORECASE)
_STARTS = re.compile(r"per\b.{0,9}\b(second|minute|hour|day)|rate limit", re.IGNORECASE)


def which_limit(said: str, *, running: int, quiet: bool) -> Limit:
    """Which limit a 429 is about, by what the service says and else by what is known.

    Its words are no part of any contract: they decide how a job waits, not whether it is sent or paid for.

    Args:
        said: The service's message.
        running: How many of the session's predictions run.
        quiet: Whether the session has started nothing for longer than any window is.
    """
    if _RUNNING.search(said):
        return Limit.RUNNING
    # Where nothing runs, nothing that ends can help.
    if _STARTS.search(said) or not running:
        return Limit.STARTS
    return Limit.RUNNING if quiet else Limit.UNKNOWN
