"""Conversion of times and amounts to and from the service's formats."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import NewType

Money = NewType("Money", Decimal)

_MAX_MONEY_DIGITS = 15
"""Digits before the decimal point of an amount; longer numbers are rejected: printing them could take megabytes."""


def iso(moment: datetime) -> str:
    """Format a time for the list and usage endpoints: ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def milliseconds(moment: datetime) -> str:
    """Format a time for the billing endpoint: milliseconds since the epoch, as text (docs: billings)."""
    return str(round(moment.timestamp() * 1000))


def money(value: object) -> Money | None:
    """Parse an amount from a number or a string, None if it is neither; floats by their shortest decimal form."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        amount = Decimal(str(value).strip())
    except (InvalidOperation, ValueError):
        return None
    return Money(amount) if amount.is_finite() and amount.adjusted() < _MAX_MONEY_DIGITS else None


def amount(data: object, name: str) -> Decimal:
    """Parse the amount under `name`, or `data` itself when it is not an object.

    Raises:
        ValueError: There is no amount.
    """
    found = money(data.get(name) if isinstance(data, Mapping) else data)
    if found is None:
        raise ValueError(f"no {name} in it")
    return found
