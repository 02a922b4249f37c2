"""Values of rows as columns of a database hold them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kling_async._core.reconciliation import Doubt
from kling_async._core.states import State

if TYPE_CHECKING:
    from collections.abc import Iterable


def stored(name: str, value: Any) -> Any:
    """Return an attribute of a row as a column of a database holds it; amounts stay decimals."""
    if name == "candidates":
        # ASCII: lone surrogates and NUL, which no text column holds, are escaped.
        return json.dumps(value) if value else None
    return value.value if isinstance(value, (State, Doubt)) else value


def restore(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace the state, the doubt and the candidates in the columns of a row by their values."""
    fields["state"] = State(fields["state"])
    if fields["doubt"] is not None:
        fields["doubt"] = Doubt(fields["doubt"])
    fields["candidates"] = () if fields["candidates"] is None else tuple(json.loads(fields["candidates"]))
    return fields


def quoted(states: Iterable[State]) -> str:
    """Return states as a list for SQL, each in quotes."""
    return ", ".join(f"'{word}'" for word in sorted(state.value for state in states))
