"""JSON bodies of all routes except submit: one table per route, read by the handlers and shown by the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast

import attrs

from .catalogue import InputError
from .wire import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BILLINGS", "DELETE", "LIST", "PRICE", "TICKET", "USAGE", "Parameter", "read"]

MAX_PAGE_SIZE: Final = 100
"""Highest accepted `page_size`."""


@attrs.frozen
class Parameter:
    """One key of a body.

    Attributes:
        name: the key.
        kind: type of the value; `time` is an ISO 8601 string or epoch milliseconds as a string.
        required: refuse a body without it.
        default: value used when it is absent.
        low: lowest accepted `integer`.
        high: highest accepted `integer`; None means no limit.
        choices: accepted `string` values; empty accepts all.
    """

    name: str
    kind: Literal["integer", "time", "string", "strings", "object"]
    required: bool = False
    default: object = None
    low: int = 1
    high: int | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> object:
        """Validate a value and return it as the handlers use it; times become Unix seconds.

        Raises:
            InputError: if it is missing, of the wrong type or out of range.
        """
        if value is None or (value == "" and self.kind in {"string", "time"}):
            if self.required:
                raise InputError(f"Missing parameter: {self.name} is required")
            return self.default
        expected = self._unmet(value)
        if expected:
            raise InputError(f"Invalid parameter: {self.name} must be {expected}")
        if self.kind == "integer":
            return int(cast("float", value))
        return parse_time(value) if self.kind == "time" else value

    def _unmet(self, value: object) -> str:
        """Return the description of the expected value if `value` does not meet it, else an empty string."""
        match self.kind:
            case "integer":
                span = f" to {self.high}" if self.high is not None else ""
                return "" if self._is_integer(value) else f"an integer from {self.low}{span}"
            case "time":
                return "" if _is_time(value) else "an ISO 8601 time"
            case "string":
                if isinstance(value, str) and (not self.choices or value in self.choices):
                    return ""
                return f"one of {', '.join(self.choices)}" if self.choices else "a string"
            case "strings":
                good = isinstance(value, list) and all(isinstance(item, str) for item in value)
                return "" if good else "an array of strings"
            case "object":
                return "" if isinstance(value, dict) else "an object"

    def _is_integer(self, value: object) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        # 31.0 is an integer in JSON.
        if isinstance(value, float) and value.is_integer():
            whole = True
        return whole and self.low <= cast("float", value) and (self.high is None or cast("float", value) <= self.high)

    def schema(self) -> dict[str, object]:
        """Return the JSON schema of the accepted values."""
        schema: dict[str, object] = self._schema()
        if not self.required:
            empty: list[object] = [{"type": "null"}]
            if self.kind in {"string", "time"}:
                empty.append({"const": ""})
            schema = {"anyOf": [schema, *empty]}
        return schema if self.default is None else schema | {"default": self.default}

    def _schema(self) -> dict[str, object]:
        match self.kind:
            case "integer":
                schema: dict[str, object] = {"type": "integer", "minimum": self.low}
                return schema if self.high is None else schema | {"maximum": self.high}
            case "time":
                milliseconds = {"type": "string", "pattern": "^[0-9]{11,14}$", "description": "epoch milliseconds"}
                return {"anyOf": [{"type": "string", "format": "date-time"}, milliseconds]}
            case "string":
                return {"enum": list(self.choices)} if self.choices else {"type": "string", "minLength": 1}
            case "strings":
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


def read(parameters: tuple[Parameter, ...], body: Mapping[str, object]) -> dict[str, Any]:
    """Return the values of a body with defaults filled in; unknown keys are ignored.

    Raises:
        InputError: if a value is missing or invalid.
    """
    return {parameter.name: parameter.read(body.get(parameter.name)) for parameter in parameters}


_PAGE: Final = Parameter("page", "integer", default=1)

LIST: Final = (
    _PAGE,
    Parameter("page_size", "integer", default=MAX_PAGE_SIZE, high=MAX_PAGE_SIZE),
    Parameter("model", "string"),
    Parameter("status", "string"),
    Parameter("created_after", "time"),
    Parameter("created_before", "time"),
)
"""`POST /api/v3/predictions`."""

DELETE: Final = (Parameter("ids", "strings", required=True),)
"""`POST /api/v3/predictions/delete`."""

TICKET: Final = (
    Parameter("filename", "string", required=True),
    Parameter("size", "integer", required=True),
    Parameter("content_type", "string"),
)
"""`POST /api/v3/media/uploads`."""

PRICE: Final = (Parameter("model_id", "string", required=True), Parameter("inputs", "object"))
"""`POST /api/v3/model/price` and `/pricing`."""

BILLINGS: Final = (
    _PAGE,
    Parameter("page_size", "integer", default=10, high=MAX_PAGE_SIZE),
    Parameter("billing_type", "string", choices=("deduct", "refund")),
    Parameter("prediction_uuids", "strings"),
    Parameter("sort", "string"),
    Parameter("start_time", "time"),
    Parameter("end_time", "time"),
    Parameter("model_uuid", "string"),
    Parameter("access_key_uuid", "string"),
)
"""`POST /api/v3/billings/search`."""

USAGE: Final = (
    Parameter("start_time", "time", required=True),
    Parameter("end_time", "time", required=True),
    Parameter("model_uuid", "string"),
)
"""`POST /api/v3/user/usage_stats`."""
