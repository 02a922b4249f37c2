"""Values of rows as columns of a database hold them."""

from __future__ import annotations

import json
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.content import Identity
from kling_async._core.reconciliation import Doubt
from kling_async._core.states import Row, State
from kling_async.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kling_async._core.content import Content
    from kling_async._core.states import Entry

MAX_CODE = 2**62
"""Largest absolute value of an error code that is stored."""
_MAX_USD = 10**12
_AMOUNTS = ("cost", "spent", "refunded")
_TEXTS = ("prediction_id", "output", "error", "path")
_texts = attrgetter(*_TEXTS)


def stored(name: str, value: Any) -> Any:
    """Return an attribute of a row as a column of a database holds it; amounts stay decimals."""
    if name == "candidates":
        # ASCII: lone surrogates and NUL, which no text column holds, are escaped.
        return json.dumps(value) if value else None
    return value.value if isinstance(value, (State, Doubt)) else value


def restore(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace the amounts, the state, the doubt and the candidates in the columns of a row by their values.

    Raises:
        LedgerError: A column holds no such value.
    """
    try:
        for name in _AMOUNTS:
            if fields[name] is not None:
                fields[name] = _amount(fields[name])
        fields["state"] = State(fields["state"])
        if fields["doubt"] is not None:
            fields["doubt"] = Doubt(fields["doubt"])
        fields["candidates"] = () if fields["candidates"] is None else tuple(json.loads(fields["candidates"]))
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise LedgerError(
            f"the row of job {fields['key']!r} cannot be read: {type(error).__name__}: {error}",
            advice="continue with a copy of the ledger from before it was damaged",
        ) from None
    return fields


def _amount(column: str | Decimal) -> Decimal:
    """Return an amount in USD.

    Raises:
        ValueError: It is none.
    """
    amount = Decimal(column)
    if not amount.is_finite() or abs(amount) > _MAX_USD:
        raise ValueError(f"expected an amount of USD, got {column!r}")
    return amount


def stored_names(names: tuple[str, ...]) -> str | None:
    """Return names of parameters as a column of a database holds them; ASCII, as candidates."""
    return json.dumps(names) if names else None


def restored_identity(rule: int, ignored: str | None) -> Identity:
    """Return the identity of a batch from its columns."""
    return Identity(rule, restored_names(ignored))


def restored_names(stored: str | None) -> tuple[str, ...]:
    """Return names of parameters from their column."""
    return () if stored is None else tuple(json.loads(stored))


def check_names(*names: str, text: Callable[[str], str]) -> None:
    """Check that names can be stored as they are.

    Args:
        names: The names.
        text: Returns a text as the database can store it.

    Raises:
        LedgerError: One cannot.
    """
    for name in names:
        if not _is_plain(name) and text(name) != name:
            raise LedgerError(f"{name!r} is no text that the ledger can hold", key=ascii(name))


def new_row(batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
    """Return the row of a job that was not in the ledger, without its content.

    Args:
        batch: Name of the batch.
        key: Key of the job.
        content: Its content.
        model: Its model.
        at: Time in seconds since the epoch.
    """
    return Row(
        batch=batch,
        key=key,
        digest=content.digest,
        model=model,
        state=State.PENDING,
        updated_at=at,
        caller=content.caller,
        priority=content.priority,
    )


def after_all(prefix: str) -> str | None:
    """Return the first text after all that begin with a prefix, by code points; None for an empty prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else None


def no_job(batch: str, key: str) -> LedgerError:
    """Return the error for a job that a ledger does not have."""
    return LedgerError(
        f"the ledger has no job {key!r} in the batch {batch!r}",
        key=key,
        advice="kling-async export writes the keys that it has",
    )


def storable(entry: Entry, *, text: Callable[[str], str]) -> Entry:
    """Return the step with texts and numbers that cannot be stored, as a service may send them, replaced.

    Args:
        entry: The step.
        text: Returns a text as the database can store it.
    """
    texts = _texts(entry)
    joined = "".join(filter(None, texts))
    code = None if entry.code is None or abs(entry.code) > MAX_CODE else entry.code
    if code == entry.code and (_is_plain(joined) or text(joined) == joined):
        return entry
    changed: dict[str, Any] = {
        name: text(value) for name, value in zip(_TEXTS, texts, strict=True) if value is not None
    }
    return attrs.evolve(entry, code=code, **changed)


def _is_plain(text: str) -> bool:
    """Return whether every database stores a text as it is: quicker than to encode it."""
    return text.isascii() and "\0" not in text


def quoted(states: Iterable[State]) -> str:
    """Return states as a list for SQL, each in quotes."""
    return ", ".join(f"'{word}'" for word in sorted(state.value for state in states))
