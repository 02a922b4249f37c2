"""Wire format helpers shared by both personas: JSON, error texts, times, deviations of a result."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp import web

from .faults import kinds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .catalogue import Model
    from .faults import Shape
    from .predictions import Prediction, State

__all__ = ["Json", "Persona", "apply_shape", "default_text", "dumps", "iso", "nanoseconds", "parse_time", "reply"]

Json = dict[str, object]
"""A JSON object."""

_DEFAULT_TEXTS: Final[Mapping[int, str]] = {
    400: "Bad request",
    401: "Unauthorized: invalid API key",
    402: "Insufficient balance. Please top up your account.",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    413: "Request entity too large",
    429: "Too many requests",
    500: "Internal server error",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
}
_MICROSECOND_DIGITS: Final = 6
_MIN_EPOCH_MS_DIGITS: Final = 11
_LEAP_SECOND: Final = re.compile(r"(?<=:\d\d):60(?=\D|$)")


class Persona(Protocol):
    """Response format of one service."""

    @property
    def name(self) -> str:
        """`wavespeed` or `gptproto`."""
        ...

    @property
    def models(self) -> Mapping[str, Model]:
        """Models the service offers, by id."""
        ...

    def key(self, authorization: str) -> str:
        """Return the API key in an `Authorization` header; empty if there is none in the expected form."""
        ...

    def ok(self, data: object) -> web.Response:
        """Return HTTP 200 with the data in the persona's envelope."""
        ...

    def error(self, status: int, message: str | None = None) -> web.Response:
        """Return an error in the persona's format."""
        ...

    def prediction(self, prediction: Prediction, state: State, shape: Shape | None = None) -> Json:
        """Return the data of a prediction."""
        ...


def dumps(value: object) -> bytes:
    """Serialize to compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def reply(value: object, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.Response(body=dumps(value), status=status, content_type="application/json")


def default_text(status: int) -> str:
    """Return the default error text of an HTTP status."""
    return _DEFAULT_TEXTS.get(status, "Error")


def nanoseconds(at: float) -> str:
    """Format Unix seconds as RFC 3339 with nine fractional digits and Z."""
    whole = int(at)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{int((at - whole) * 1e9):09d}Z"


def iso(at: float) -> str:
    """Format Unix seconds as RFC 3339 in whole seconds and Z."""
    return f"{datetime.fromtimestamp(int(at), UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_time(value: object) -> float:
    """Parse an ISO 8601 time (any number of fractional digits) or epoch milliseconds to Unix seconds.

    Raises:
        ValueError: if it is neither.
    """
    text = str(value)
    if text.isdecimal() and len(text) >= _MIN_EPOCH_MS_DIGITS:
        return int(text) / 1000
    head, dot, tail = text.partition(".")
    if dot:
        digits = len(tail) - len(tail.lstrip("0123456789"))
        text = f"{head}.{tail[: min(digits, _MICROSECOND_DIGITS)]}{tail[digits:]}"
    if _LEAP_SECOND.search(text):
        # `datetime` has no leap seconds.
        text = _LEAP_SECOND.sub(":59", text)
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def apply_shape(outputs: str, flags: str, data: Json, shape: Shape | None) -> None:
    """Change a prediction in place to the deviation of a fault.

    Args:
        outputs: key of the outputs.
        flags: key of the content flags.
        data: the prediction.
        shape: the deviation; None changes nothing.
    """
    if isinstance(shape, kinds.UnknownStatus):
        data["status"] = shape.word
        data[outputs] = []
        data[flags] = []
        return
    urls = data[outputs]
    if shape is None or not isinstance(urls, list) or not urls:
        return
    if isinstance(shape, kinds.EmptyOutputs):
        data[outputs] = []
    elif isinstance(shape, kinds.NullOutputs):
        data[outputs] = data[flags] = None
    elif isinstance(shape, kinds.ObjectOutputs):
        data[outputs] = [{"url": url} for url in urls]
    elif isinstance(shape, kinds.StringOutputs):
        data[outputs] = urls[0]
    elif isinstance(shape, kinds.NullFlags):
        data[flags] = None
    elif isinstance(shape, kinds.Flagged):
        data[flags] = [True for _ in urls]
    else:
        for name in data.keys() - {"id", "status", outputs}:
            del data[name]
