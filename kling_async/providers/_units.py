"""Times and amounts, as the service writes them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import NewType

Money = NewType("Money", Decimal)

_MAX_DIGITS = 15
"""Digits before the point of an amount: more is no money, and would take megabytes to print."""


def iso(moment: datetime) -> str:
    """A time as the list and usage endpoints take it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def milliseconds(moment: datetime) -> str:
    """A time as the billing endpoint documents it: milliseconds since the epoch, as text (docs: billings)."""
    return str(round(moment.timestamp() * 1000))


def money(value: object) -> Money | None:
    """A number or a text; JSON's binary floats are taken by their shortest decimal form."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        amount = Decimal(str(value).strip())
    except (InvalidOperation, ValueError):
        return None
    return Money(amount) if amount.is_finite() and amount.adjusted() < _MAX_DIGITS else None


def amount(data: object, name: str) -> Decimal:
    """The amount that `data` holds under that name, or is.

    Raises:
        ValueError: There is none.
    """
    found = money(data.get(name) if isinstance(data, Mapping) else data)
    if found is None:
        raise ValueError(f"there is no {name} in it")
    return found
