"""The kinds of faults and the routes on which each can happen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeVar, cast

import attrs

__all__ = [
    "ROUTES",
    "SHAPE_KINDS",
    "AcceptThenDrop",
    "CutBody",
    "DataItems",
    "DataList",
    "Delay",
    "Drop",
    "DropAfterReading",
    "Duplicate",
    "EmptyOutputs",
    "EnvelopeCode",
    "Enveloped",
    "FailTask",
    "Fault",
    "Flagged",
    "Html502",
    "NullFlags",
    "NullOutputs",
    "ObjectOutputs",
    "Shape",
    "SlowBody",
    "Sparse",
    "Status",
    "StatusLag404",
    "StringOutputs",
    "TruncatedJson",
    "UnknownStatus",
    "Unwrapped",
    "Wrapping",
    "build",
    "first",
    "first_shape",
    "is_applicable",
]

ROUTES: Final = frozenset(
    {
        "submit",
        "result",
        "list",
        "delete",
        "models",
        "price",
        "price_list",
        "balance",
        "billings",
        "usage",
        "webhook_secret",
        "upload_ticket",
        "upload_put",
        "upload_binary",
        "upload_get",
        "output",
        "webhook",
    }
)
"""Route names that a rule accepts, besides `"*"`."""


@attrs.frozen
class Drop:
    """Close the connection without reading the request body; nothing is accepted.

    Attributes:
        reset: close with a TCP reset instead of an orderly shutdown.
    """

    reset: bool = False


@attrs.frozen
class DropAfterReading:
    """Read the whole request, then close the connection without handling it; nothing is accepted.

    Attributes:
        reset: close with a TCP reset instead of an orderly shutdown.
    """

    reset: bool = False


@attrs.frozen
class AcceptThenDrop:
    """Handle the request (create, charge), then close the connection instead of responding.

    Attributes:
        reset: close with a TCP reset instead of an orderly shutdown.
    """

    reset: bool = False


@attrs.frozen
class Delay:
    """Wait before handling the request, or between handling it and responding.

    Attributes:
        seconds: length of the wait, on the emulator's clock.
        accepted: handle the request before the wait.
    """

    seconds: float
    accepted: bool = False


@attrs.frozen
class Status:
    """Respond with an HTTP status and the persona's error body.

    Attributes:
        status: HTTP status.
        message: error text; None uses the default text of the status.
        retry_after: value of a `Retry-After` header, in seconds or as any text; None sends no header.
        accepted: handle the request all the same.
        body: body to send instead of the persona's: an object as JSON, a string as plain text.
    """

    status: int
    message: str | None = None
    retry_after: float | str | None = None
    accepted: bool = False
    body: Mapping[str, object] | str | None = None


@attrs.frozen
class Html502:
    """Respond like a gateway: HTTP 502 with an HTML page.

    Attributes:
        accepted: handle the request all the same.
    """

    accepted: bool = False


@attrs.frozen
class EnvelopeCode:
    """Respond with HTTP 200 and an error `code` in the envelope.

    Attributes:
        code: `code` of the envelope.
        message: `message` of the envelope.
        accepted: handle the request all the same.
    """

    code: int = 500
    message: str = "Internal server error"
    accepted: bool = False


@attrs.frozen
class TruncatedJson:
    """Handle the request and send the first half of the JSON, with a matching `Content-Length`."""


@attrs.frozen
class Unwrapped:
    """Send the data without its envelope."""


@attrs.frozen
class DataList:
    """Wrap `data` in a list of one item."""


@attrs.frozen
class DataItems:
    """Send `data` as `{"items": data}`, the form in which one of the vendor's pages shows the models."""


Wrapping = Unwrapped | DataList | DataItems
"""Deviations of a response's envelope."""


@attrs.frozen
class SlowBody:
    """Send the response body in pieces.

    Attributes:
        seconds: total time, on the emulator's clock.
        pieces: number of pieces.
    """

    seconds: float
    pieces: int = 10


@attrs.frozen
class CutBody:
    """Announce the full length, send the first bytes, close the connection.

    Attributes:
        after_bytes: number of body bytes to send.
    """

    after_bytes: int


@attrs.frozen
class Duplicate:
    """Deliver a webhook twice."""


@attrs.frozen
class Enveloped:
    """Deliver a webhook in the envelope of the API's responses."""


@attrs.frozen
class FailTask:
    """Accept the submit, then end the prediction as a failure; it is refunded like any failure.

    Attributes:
        code: `data.code`; None omits it.
        message: `data.error`.
        status: final status.
        seconds: time from the submit to the failure; None takes as long as a success.
    """

    code: int | None = 1405
    message: str = "Task failed."
    status: Literal["failed", "cancelled", "canceled", "timeout"] = "failed"
    seconds: float | None = None


@attrs.frozen
class StatusLag404:
    """Respond 404 to reads that come too early. On `submit`: for a while after it. On `result`: to this request only.

    Attributes:
        seconds: time for which the prediction is not found, on the emulator's clock; used on `submit` only.
    """

    seconds: float = 2.0


@attrs.frozen
class EmptyOutputs:
    """Send `completed` with `outputs: []`."""


@attrs.frozen
class NullOutputs:
    """Send `completed` with `outputs: null` and `has_nsfw_contents: null`."""


@attrs.frozen
class ObjectOutputs:
    """Send `completed` with `outputs: [{"url": ...}]`."""


@attrs.frozen
class StringOutputs:
    """Send `completed` with `outputs: "https://..."`."""


@attrs.frozen
class NullFlags:
    """Send `completed` with `has_nsfw_contents: null`."""


@attrs.frozen
class Flagged:
    """Send `completed` with outputs and `has_nsfw_contents: [true]`."""


@attrs.frozen
class Sparse:
    """Send `completed` with only `id`, `status` and `outputs`."""


@attrs.frozen
class UnknownStatus:
    """Send an undocumented status in place of the true one, without outputs.

    Attributes:
        word: the status to send.
    """

    word: str


Shape = EmptyOutputs | NullOutputs | ObjectOutputs | StringOutputs | NullFlags | Flagged | Sparse | UnknownStatus
"""Deviations of a result. On `submit` they apply to every response about the prediction (`UnknownStatus`: until it has
ended); on `result` and `list` to single responses, and those about outputs only to responses that have outputs."""

Fault = (
    Drop
    | DropAfterReading
    | AcceptThenDrop
    | Delay
    | Status
    | Html502
    | EnvelopeCode
    | TruncatedJson
    | SlowBody
    | CutBody
    | Duplicate
    | Enveloped
    | FailTask
    | StatusLag404
    | Wrapping
    | Shape
)
"""Any kind of fault."""

SHAPE_KINDS: Final = (
    EmptyOutputs,
    NullOutputs,
    ObjectOutputs,
    StringOutputs,
    NullFlags,
    Flagged,
    Sparse,
    UnknownStatus,
)
"""The members of `Shape`, for `isinstance`."""

_JSON_ROUTES: Final = ROUTES - {"upload_put", "upload_get", "output", "webhook"}
_KINDS: Final[tuple[type[Fault], ...]] = (
    Drop,
    DropAfterReading,
    AcceptThenDrop,
    Delay,
    Status,
    Html502,
    EnvelopeCode,
    TruncatedJson,
    SlowBody,
    CutBody,
    Duplicate,
    Enveloped,
    FailTask,
    StatusLag404,
    Unwrapped,
    DataList,
    DataItems,
    *SHAPE_KINDS,
)
_KIND_BY_NAME: Final[Mapping[str, type[Fault]]] = {kind.__name__: kind for kind in _KINDS}

# Types a JSON value may have, by each word of a field's annotation.
_JSON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "Literal": (str,),
    "Mapping": (dict,),
    "None": (type(None),),
}

# Kinds that can happen on some routes only.
_ROUTES_OF_KIND: Final[Mapping[type[object], frozenset[str]]] = {
    FailTask: frozenset({"submit"}),
    StatusLag404: frozenset({"submit", "result"}),
    Duplicate: frozenset({"webhook"}),
    Enveloped: frozenset({"webhook"}),
    Unwrapped: _JSON_ROUTES,
    DataList: _JSON_ROUTES,
    DataItems: frozenset({"models"}),
    **{shape: frozenset({"submit", "result", "list"}) for shape in SHAPE_KINDS},
}
_WEBHOOK_KINDS: Final = (Drop, Delay, Duplicate, Enveloped)

_F = TypeVar("_F")


def is_applicable(fault: Fault, route: str) -> bool:
    """Return whether the fault can happen on the route; the route may be `"*"`."""
    routes = _ROUTES_OF_KIND.get(type(fault))
    if routes is not None and route not in routes:
        return False
    return route != "webhook" or isinstance(fault, _WEBHOOK_KINDS)


def first(faults: tuple[Fault, ...], kind: type[_F]) -> _F | None:
    """Return the first fault of the kind, or None."""
    for fault in faults:
        if isinstance(fault, kind):
            return fault
    return None


def first_shape(faults: tuple[Fault, ...]) -> Shape | None:
    """Return the first deviation of a result, or None."""
    for fault in faults:
        if isinstance(fault, SHAPE_KINDS):
            return fault
    return None


def build(kind: str, arguments: Mapping[str, object]) -> Fault:
    """Build a fault from its class name and arguments, as the control API receives them.

    Raises:
        ValueError: if the kind is unknown or an argument is unknown, missing or of the wrong type.
    """
    cls = _KIND_BY_NAME.get(kind)
    if cls is None:
        raise ValueError(f"fault: expected one of {', '.join(_KIND_BY_NAME)}, got {kind!r}")
    fields = attrs.fields_dict(cls)
    for name, value in arguments.items():
        if name not in fields:
            raise ValueError(f"{kind}: expected only {', '.join(fields) or 'no arguments'}, got {name!r}")
        words = set(re.findall(r"\w+", str(fields[name].type)))
        if not any(type(value) in types for word, types in _JSON_TYPES.items() if word in words):
            raise ValueError(f"{kind}.{name}: expected {fields[name].type}, got {value!r}")
    make = cast("Callable[..., Fault]", cls)
    try:
        return make(**arguments)
    except TypeError as error:
        raise ValueError(str(error)) from None
