"""Texts of displays: counts, amounts, durations and sizes. Loaded for every command's help, hence without rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from rich.console import Console


def has_cursor(console: Console) -> bool:
    """Return whether the console is a terminal with a movable cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def plural(number: int, word: str, many: Callable[[str], str] = lambda word: word + "s") -> str:
    """Format a count with its noun: `1 job`, `2 jobs`."""
    return f"{number} {word if number == 1 else many(word)}"


def format_usd(amount: Decimal | None) -> str:
    """Format an amount; None is `unknown`."""
    return "unknown" if amount is None else f"${amount:.2f}"


def format_duration(seconds: float) -> str:
    """Format a duration: `0:07`, `12:30`, `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_size(count: int) -> str:
    """Format a number of bytes: `812 KB`, `3.4 MB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} KB"  # noqa: PLR2004 -- a million
