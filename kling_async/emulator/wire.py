"""How the WaveSpeed persona writes: envelopes, errors, predictions, times."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp import web

from kling_async.emulator import faults as kinds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .catalogue import Model
    from .faults import Shape
    from .predictions import Prediction, State

__all__ = ["Json", "Persona", "WaveSpeed", "bend", "dumps", "iso", "nanoseconds", "parse_time", "reply"]

Json = dict[str, object]
"""A JSON object."""

_TEXTS: Final[Mapping[int, str]] = {
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
_MICROSECONDS: Final = 6
_EPOCH_MS_DIGITS: Final = 11
_LEAP: Final = re.compile(r"(?<=:\d\d):60(?=\D|$)")


class Persona(Protocol):
    """One service's dialect."""

    @property
    def name(self) -> str:
        """`wavespeed` or `gptproto`."""
        ...

    @property
    def models(self) -> Mapping[str, Model]:
        """What it offers, by id."""
        ...

    def key(self, authorization: str) -> str:
        """The API key in an `Authorization` header, empty when there is none in the right form."""
        ...

    def ok(self, data: object) -> web.Response:
        """HTTP 200 with the data in the persona's envelope."""
        ...

    def error(self, status: int, message: str | None = None) -> web.Response:
        """An error in the persona's own form."""
        ...

    def prediction(self, prediction: Prediction, state: State, shape: Shape | None = None) -> Json:
        """The data of a prediction."""
        ...


def dumps(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def reply(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=dumps(value), status=status, content_type="application/json")


def text_of(status: int) -> str:
    """A usual text for an HTTP status."""
    return _TEXTS.get(status, "Error")


def nanoseconds(at: float) -> str:
    """Unix seconds as RFC 3339 with nine fractional digits and Z."""
    whole = int(at)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{int((at - whole) * 1e9):09d}Z"


def iso(at: float) -> str:
    """Unix seconds as RFC 3339 in whole seconds and Z."""
    return f"{datetime.fromtimestamp(int(at), UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_time(value: object) -> float:
    """Unix seconds of an ISO 8601 time (any number of fractional digits) or of epoch milliseconds.

    Raises:
        ValueError: when it is neither.
    """
    text = str(value)
    if text.isdecimal() and len(text) >= _EPOCH_MS_DIGITS:
        return int(text) / 1000
    head, dot, tail = text.partition(".")
    if dot:
        digits = len(tail) - len(tail.lstrip("0123456789"))
        text = f"{head}.{tail[: min(digits, _MICROSECONDS)]}{tail[digits:]}"
    if _LEAP.search(text):
        # A leap second is a second like any other to whoever keeps no count of them.
        text = _LEAP.sub(":59", text)
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def bend(outputs: str, flags: str, data: Json, shape: Shape | None) -> None:
    """Write a result as a fault wants it.

    Args:
        outputs: the key of the outputs.
        flags: the key of the content flags.
        data: the prediction; changed in place.
        shape: the deviation.
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


class WaveSpeed:
    """The dialect of WaveSpeedAI API v3."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.name = "wavespeed"
        self.models = models

    def key(self, authorization: str) -> str:
        """The key after `Bearer `."""
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""

    def ok(self, data: object) -> web.Response:
        """`{"code": 200, "message": "success", "data": ...}`."""
        return reply({"code": 200, "message": "success", "data": data})

    def error(self, status: int, message: str | None = None) -> web.Response:
        """`{"code": ..., "message": ...}` with the same HTTP status."""
        return reply({"code": status, "message": message or text_of(status)}, status)

    def prediction(self, prediction: Prediction, state: State, shape: Shape | None = None) -> Json:
        """The prediction object of submit, result, list and webhooks."""
        done = state == "completed"
        milliseconds = prediction.milliseconds if done else 0
        data: Json = {
            "id": prediction.id,
            "model": prediction.model.id,
            "outputs": [f"{prediction.origin}/output/{prediction.output}"] if done else [],
            "urls": {"get": f"{prediction.origin}/api/v3/predictions/{prediction.id}/result"},
            "has_nsfw_contents": [False] if done else [],
            "status": state,
            "created_at": nanoseconds(prediction.created_at),
            "error": "",
            "executionTime": milliseconds,
            "timings": {"inference": milliseconds},
        }
        verdict = prediction.verdict
        if verdict is not None and verdict.status == state:
            data["error"] = verdict.message
            if verdict.code is not None:
                data["code"] = verdict.code
        if shape is not None:
            bend("outputs", "has_nsfw_contents", data, shape)
        return data
