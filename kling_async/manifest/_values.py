"""Values of cells as libraries of tables and spreadsheets give them, in plain Python."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, cast

from ._row import CONTINUES_AT, INPUT

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON_FIELDS: Final = frozenset({"extra", "multi_prompt", "element_list", "voice_list", "keyframes", "images", "labels"})
"""Fields that a cell contains as JSON."""
_WHOLE: Final = frozenset({"duration", "key", "caller", "priority"})
"""Fields that are whole numbers or text, never fractions."""
_NUMBERS: Final[Mapping[str, str]] = {
    "guidance_scale": "a number from 0 to 1",
    CONTINUES_AT: "seconds from the beginning, at least 0",
}
"""Fields that are numbers, with or without a fraction, and what is expected in them."""
_NOTHING: Final = frozenset({"nan", "<na>", "nat", "#n/a"})
"""Texts that pandas and spreadsheets write for nothing."""
_BOOLEANS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}


class RepeatedFieldError(ValueError):
    """A JSON object has a field twice."""


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # By default the last of repeated fields would be used silently, and it may cost more.
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise RepeatedFieldError(repeated)
    return fields


# Shared: `json.loads` with a hook creates a decoder per call.
DECODER: Final = json.JSONDecoder(object_pairs_hook=_json_object)


def plain(name: str, value: object) -> object:
    """Return a value in plain Python; None for nothing, such as NaN.

    Args:
        name: Field of the value; empty for a column that travels along.
        value: The value: also a number of numpy, or a missing one of pandas.
    """
    kind = value.__class__
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind.__module__ == "numpy" and (getattr(value, "ndim", 1) == 0 or name in JSON_FIELDS):
        # A number becomes Python's, and an array a list; a picture stays what it is.
        return plain(name, cast("Any", value).tolist())
    if kind.__name__ in {"NAType", "NaTType"}:
        return None
    if isinstance(value, Decimal) and name != "key":
        value = float(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if (name in _WHOLE or not name) and value.is_integer():
            # pandas and spreadsheets make floats of whole numbers.
            return int(value)
        return bool(value) if name == "sound" and value in {0.0, 1.0} else value
    if name in {"image", "end_image"} and isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        # The `Image` feature of Hugging Face's datasets.
        return value["path"] if value["bytes"] is None else value["bytes"]
    return value if name else _label(value)


def _label(value: Any) -> object:
    """Return a value of a column that travels along as JSON has it, as text where JSON does not have it."""
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return None
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def cell(name: str, text: str) -> object:
    """Return the value of a cell with text; None for nothing.

    Raises:
        ValueError: The text is not a value of the field.
    """
    bare = text.strip()
    # A key may be a name such as Nat.
    if not bare or (bare.lower() in _NOTHING and name != "key"):
        return None
    match name:
        case _ if name in _NUMBERS:
            try:
                return float(bare)
            except ValueError:
                raise ValueError(f"expected {_NUMBERS[name]}, got {bare[:40]!r}") from None
        case "sound":
            if bare.lower() not in _BOOLEANS:
                raise ValueError(f"expected true or false, got {bare[:40]!r}")
            return _BOOLEANS[bare.lower()]
        case "priority":
            try:
                return int(bare)
            except ValueError:
                raise ValueError(
                    f"expected a whole number, got {bare[:40]!r}; if the column is not the order in which a caller's "
                    "jobs start, give it another name"
                ) from None
        case "duration" if bare.partition(".")[2].strip("0") == "":
            return bare.partition(".")[0] or bare
        case _ if name in JSON_FIELDS:
            return json_cell(name, bare)
        case _ if name.startswith(INPUT):
            # A number or a truth value, where it is one.
            with contextlib.suppress(ValueError, RecursionError):
                return DECODER.decode(bare)
            return bare
        case "prompt" | "negative_prompt":
            return text
        case _:
            return bare


def json_cell(name: str, text: str) -> object:
    """Return the value of a cell with JSON.

    Raises:
        ValueError: The text is not JSON.
    """
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        kind = "object" if name in {"extra", "labels"} else "list"
        raise ValueError(f"expected a JSON {kind}, got {text[:40]!r}") from None
