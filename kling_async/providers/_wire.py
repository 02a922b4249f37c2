"""Reading replies: lenient in every way that has been seen, and in some that have not."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from sys import intern
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from kling_async._core.errors import (
    ApiError,
    AuthenticationError,
    InsufficientBalanceError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
)
from kling_async._core.http import decoded
from kling_async._core.prediction import MODERATION, Prediction, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kling_async._core.http import HttpResponse
    from kling_async._core.secret import Secret

T = TypeVar("T")

Identity = NewType("Identity", str)
Text = NewType("Text", str)
Urls = NewType("Urls", tuple[str, ...])
Flags = NewType("Flags", tuple[bool, ...])
Seconds = NewType("Seconds", float)
Moment = NewType("Moment", datetime)
Number = NewType("Number", int)


@attrs.frozen
class _Timings:
    inference: Seconds | None = None


@attrs.frozen
class _Record:
    """A prediction on the wire (api reference, "result"), by its snake-case names."""

    id: Identity
    model: Text = Text("")
    status: Text = Text("")
    outputs: Urls = Urls(())
    error: Text = Text("")
    code: Number | None = None
    has_nsfw_contents: Flags = Flags(())
    created_at: Moment | None = None
    execution_time: Seconds | None = None
    timings: _Timings | None = None


def _identity(value: object, _: object) -> Identity:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"expected an id, got {type(value).__name__}")  # noqa: TRY004 -- one kind for callers
    return Identity(str(value))


def _text(value: object, _: object) -> Text:
    if value is None:
        return Text("")
    return Text(value if isinstance(value, str) else _dumped(value))


def _dumped(value: object) -> str:
    """What should have been a text, as JSON."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "(nested too deep)"


def _urls(value: object, _: object) -> Urls:
    """A list, one bare string, null, or objects with a `url`."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    urls = (item.get("url") if isinstance(item, dict) else item for item in items)
    return Urls(tuple(url for url in urls if isinstance(url, str) and url))


def _flags(value: object, _: object) -> Flags:
    return Flags(tuple(bool(item) for item in value) if isinstance(value, list) else ())


_INTEGER = re.compile(r"\s*-?\d{1,18}\s*")


def _number(value: object, _: object) -> Number | None:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return Number(int(value))
    return Number(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds(value: object, _: object) -> Seconds | None:
    """Milliseconds on the wire."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        seconds = value / 1000
    except OverflowError:
        return None
    return Seconds(seconds) if math.isfinite(seconds) else None


_BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")


def _moment(value: object, _: object) -> Moment | None:
    """RFC 3339 with up to 9 fractional digits, or GPTProto's form without `T` and zone, which is UTC."""
    return _read_moment(value) if isinstance(value, str) else None


@lru_cache(maxsize=4096)
def _read_moment(text: str) -> Moment | None:
    """Remembered, because every reply about a prediction says when it was created."""
    try:
        moment = datetime.fromisoformat(_BEYOND_MICROSECONDS.sub(r"\1", text.strip()))
    except ValueError:
        return None
    return Moment(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _timings(value: object, _: object) -> _Timings | None:
    return _Timings(_seconds(value.get("inference"), None)) if isinstance(value, dict) else None


# One converter, made once; without detailed validation, which costs a tenth of a job.
_converter = cattrs.Converter(detailed_validation=False)
for _type, _hook in (
    (Identity, _identity),
    (Text, _text),
    (Urls, _urls),
    (Flags, _flags),
    (Number | None, _number),
    (Seconds | None, _seconds),
    (Moment | None, _moment),
    (_Timings | None, _timings),
):
    _converter.register_structure_hook(_type, _hook)
_record = make_dict_structure_fn(_Record, _converter, id=override(omit=False), _cattrs_detailed_validation=False)
_converter.register_structure_hook(_Record, _record)


def register(cls: object, hook: Callable[[object, object], object]) -> None:
    """Let `structure` read `cls` by `hook`, for the shapes of another room."""
    _converter.register_structure_hook(cls, hook)


def moment(value: object) -> datetime | None:
    """A time of the service; None when it is none."""
    return _moment(value, None)


_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


@lru_cache(maxsize=1024)
def _snake(name: str) -> str:
    """`createdAt` and `created_at` are both in use."""
    return _HUMP.sub("_", name).lower()


def structure(payload: object, cls: type[T]) -> T:
    """`payload` as a value of `cls`, by the lenient hooks of this room.

    Raises:
        ValueError: The payload has not the shape.
    """
    return _structured(payload, cls, _converter.get_structure_hook(cls))


def _structured(payload: object, cls: type[T], hook: Callable[[Any, Any], T]) -> T:
    if not isinstance(payload, dict):
        raise ValueError(f"expected an object, got {type(payload).__name__}")  # noqa: TRY004 -- one kind for callers
    try:
        return hook({_snake(name): value for name, value in payload.items()}, cls)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{cls.__name__.strip('_')}: {type(error).__name__}: {error}") from None


def read_prediction(payload: object, secret: Secret | None, *, request_id: str | None = None) -> Prediction:
    """A prediction from `data`, which some integrators have seen as a list of one. Its error does not quote the key.

    A webhook may be read where the key is not known.

    Raises:
        ValueError: There is no id in it.
    """
    if isinstance(payload, list) and payload:
        payload = payload[0]
    record = _structured(payload, _Record, _record)
    if not record.id.strip():
        raise ValueError("the record has no id")
    inference = record.timings.inference if record.timings else None
    word = record.status or "created"
    return Prediction(
        id=record.id,
        model=record.model,
        status=Status.of(word),
        raw_status=word,
        outputs=record.outputs,
        error=(_without(secret, record.error) if secret is not None and record.error else record.error) or None,
        code=record.code or None,
        nsfw=record.has_nsfw_contents,
        created_at=record.created_at,
        inference=inference or record.execution_time or None,
        input=_input(payload),
        request_id=request_id,
        # The names would take more than the values, were they not shared by all records.
        raw={intern(name): value for name, value in payload.items()} if isinstance(payload, dict) else {},
    )


def _without(secret: Secret, text: str) -> str:
    return secret.redact(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


def _input(payload: object) -> Mapping[str, object] | None:
    """What the run was given, where the service says it: list items and webhooks do, sometimes, under either name."""
    if not isinstance(payload, dict):
        return None
    echo = payload.get("input") or payload.get("inputs")
    return echo if isinstance(echo, dict) else None


_OK = range(200, 300)


def read_data(response: HttpResponse, secret: Secret) -> object:
    """The `data` of a good reply. The envelope is optional: some replies are the bare object.

    Raises:
        ApiError: By the HTTP status, or by the envelope's `code` in an HTTP 200.
    """
    # Raised here, where no local variable holds a body that may quote the key.
    opened = _opened(response, secret)
    if isinstance(opened, ApiError):
        raise opened
    return opened


def _opened(response: HttpResponse, secret: Secret) -> object:
    """The `data` of a good reply, or the error that it is."""
    if response.status not in _OK:
        return read_error(response, secret)
    try:
        body = response.json()
    except ValueError:
        return ProtocolError(
            "the reply is not JSON",
            status=response.status,
            request_id=response.request_id,
            raw=_beginning(secret.redact(response.body)),
        )
    if not isinstance(body, dict):
        return body
    code = _number(body.get("code"), None)
    if (code is not None and code not in _OK and code != 0) or (
        code is None and "data" not in body and "error" in body
    ):
        # A bare record has `error` too, and an id.
        if "id" in body and "status" in body:
            return body
        return read_error(response, secret)
    return body.get("data", body)


def read_error(response: HttpResponse, secret: Secret) -> ApiError:
    """The error that a reply means: by its HTTP status, then by its code.

    Its text decides only where nothing else tells: balance, and GPTProto's content policy.
    """
    redacted = secret.redact(response.body)
    try:
        body: object = decoded(redacted)
    except ValueError:
        body = None
    text, code = _said(body)
    cls = _error_class(response.status if response.status not in _OK else code or response.status, code, text)
    where = f"HTTP {response.status}" + (f", code {code}" if code not in {None, response.status} else "")
    said = text or _beginning(redacted) or "no text"
    return cls(
        f"the service refused ({where}): {said}" if cls is not ServerError else f"the service failed ({where}): {said}",
        status=response.status,
        code=code,
        retry_after=response.retry_after(),
        request_id=response.request_id,
        raw=body if body is not None else _beginning(redacted),
    )


_GUIDELINES = "may not meet the guidelines"
_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitedError,
    MODERATION: ModerationError,
    1407: InsufficientBalanceError,
}
_CLIENT_ERRORS = range(300, 500)
_TASK_PARAMETERS = range(1400, 1403)


def _error_class(status: int, code: int | None, text: str) -> type[ApiError]:
    folded = text.lower()
    if _GUIDELINES in folded:
        return ModerationError
    if status == 403:  # noqa: PLR2004 -- one status, three meanings
        if "balance" in folded or "credit" in folded:
            return InsufficientBalanceError
        if "invalid token" in folded:
            return AuthenticationError
    if code in (MODERATION, 1407):
        return _BY_STATUS[code]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status in _CLIENT_ERRORS or status in _TASK_PARAMETERS:
        return RequestRejectedError
    return ServerError


def _said(body: object) -> tuple[str, int | None]:
    """The text and the code of an error body, in every shape that has been seen."""
    if not isinstance(body, dict):
        return "", None
    code = _number(body.get("code"), None)
    error = body.get("error")
    data = body.get("data")
    if isinstance(error, dict):
        code = code or _number(error.get("code"), None) or _number(error.get("type"), None)
        error = error.get("message")
    elif isinstance(data, dict):
        error = error or data.get("error")
        code = _number(data.get("code"), None) or code
    text = next((part for part in (error, body.get("message"), body.get("detail"), body.get("errors")) if part), "")
    if not isinstance(text, str):
        text = _dumped(text)
    if body.get("error_code"):
        text = f"{text} [{body['error_code']}]"
    return text[:500], code


_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]+>", re.DOTALL | re.IGNORECASE)


def _beginning(body: bytes) -> str:
    """The first words of a body, without mark-up: gateways answer in HTML."""
    return " ".join(_TAGS.sub(" ", body[:4000].decode("utf-8", "replace")).split())[:200]
