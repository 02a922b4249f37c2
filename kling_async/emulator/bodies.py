"""What the bodies of all routes but the submits hold: one table each, read by the handlers and shown by the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast

import attrs

from .catalogue import InputError
from .wire import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BILLINGS", "DELETE", "LIST", "PRICE", "TICKET", "USAGE", "Item", "read"]

MAX_PAGE: Final = 100
"""The greatest `page_size`."""


@attrs.frozen
class Item:
    """One key of a body.

    Attributes:
        name: the key.
        kind: `count` is a whole number, `time` an ISO 8601 text or epoch milliseconds, `word` a text, `words` a list of
            them, `object` an object.
        required: whether leaving it out is refused.
        default: what is taken when it is left out.
        low: the least `count`.
        high: the greatest `count`.
        choices: accepted words, when they are a closed set.
    """

    name: str
    kind: Literal["count", "time", "word", "words", "object"]
    required: bool = False
    default: object = None
    low: int = 1
    high: int | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> object:
        """The value as handlers use it; times become Unix seconds.

        Raises:
            InputError: when it is missing, of the wrong type or out of range.
        """
        if value is None or (value == "" and self.kind in {"word", "time"}):
            if self.required:
                raise InputError(f"Missing parameter: {self.name} is required")
            return self.default
        wanted = self._wanted(value)
        if wanted:
            raise InputError(f"Invalid parameter: {self.name} must be {wanted}")
        if self.kind == "count":
            return int(cast("float", value))
        return parse_time(value) if self.kind == "time" else value

    def _wanted(self, value: object) -> str:
        """What should have been sent; empty when it was."""
        match self.kind:
            case "count":
                span = f" to {self.high}" if self.high is not None else ""
                return "" if self._counts(value) else f"an integer from {self.low}{span}"
            case "time":
                return "" if _is_time(value) else "an ISO 8601 time"
            case "word":
                if isinstance(value, str) and (not self.choices or value in self.choices):
                    return ""
                return f"one of {', '.join(self.choices)}" if self.choices else "a string"
            case "words":
                good = isinstance(value, list) and all(isinstance(word, str) for word in value)
                return "" if good else "an array of strings"
            case "object":
                return "" if isinstance(value, dict) else "an object"

    def _counts(self, value: object) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        # To JSON, 31.0 is a whole number too.
        if isinstance(value, float) and value.is_integer():
            whole = True
        return whole and self.low <= cast("float", value) and (self.high is None or cast("float", value) <= self.high)

    def schema(self) -> dict[str, object]:
        """JSON schema of what is accepted."""
        schema: dict[str, object] = self._schema()
        if not self.required:
            empty: list[object] = [{"type": "null"}]
            if self.kind in {"word", "time"}:
                empty.append({"const": ""})
            schema = {"anyOf": [schema, *empty]}
        return schema if self.default is None else schema | {"default": self.default}

    def _schema(self) -> dict[str, object]:
        match self.kind:
            case "count":
                schema: dict[str, object] = {"type": "integer", "minimum": self.low}
                return schema if self.high is None else schema | {"maximum": self.high}
            case "time":
                milliseconds = {"type": "string", "pattern": "^[0-9]{11,14}$", "description": "epoch milliseconds"}
                return {"anyOf": [{"type": "string", "format": "date-time"}, milliseconds]}
            case "word":
                return {"enum": list(self.choices)} if self.choices else {"type": "string", "minLength": 1}
            case "words":
                return {"type": "array", "items": {"type": "string"}}
            case "object":
                return {"type": "object"}


def _is_time(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parse_time(value)
    except (ValueError, OverflowError):
        return False
    return True


def read(items: tuple[Item, ...], body: Mapping[str, object]) -> dict[str, Any]:
    """The values of a body, with defaults; unknown keys are passed over.

    Raises:
        InputError: when one is missing or does not fit.
    """
    return {item.name: item.read(body.get(item.name)) for item in items}


_PAGE: Final = Item("page", "count", default=1)

LIST: Final = (
    _PAGE,
    Item("page_size", "count", default=MAX_PAGE, high=MAX_PAGE),
    Item("model", "word"),
    Item("status", "word"),
    Item("created_after", "time"),
    Item("created_before", "time"),
)
"""`POST /api/v3/predictions`."""

DELETE: Final = (Item("ids", "words", required=True),)
"""`POST /api/v3/predictions/delete`."""

TICKET: Final = (
    Item("filename", "word", required=True),
    Item("size", "count", required=True),
    Item("content_type", "word"),
)
"""`POST /api/v3/media/uploads`."""

PRICE: Final = (Item("model_id", "word", required=True), Item("inputs", "object"))
"""`POST /api/v3/model/price` and `/pricing`."""

BILLINGS: Final = (
    _PAGE,
    Item("page_size", "count", default=10, high=MAX_PAGE),
    Item("billing_type", "word", choices=("deduct", "refund")),
    Item("prediction_uuids", "words"),
    Item("sort", "word"),
    Item("start_time", "time"),
    Item("end_time", "time"),
    Item("model_uuid", "word"),
    Item("access_key_uuid", "word"),
)
"""`POST /api/v3/billings/search`."""

USAGE: Final = (
    Item("start_time", "time", required=True),
    Item("end_time", "time", required=True),
    Item("model_uuid", "word"),
)
"""`POST /api/v3/user/usage_stats`."""
