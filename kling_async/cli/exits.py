"""Exit statuses. Apart from the signals, whose module loads asyncio: help is printed without it."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit status of a command."""

    WELL = 0
    SOME_FAILED = 1
    BAD_INPUT = 2
    NOTHING_DONE = 3
    INTERRUPTED = 130
