"""Parsers for responses. They accept every format observed so far and ignore optional fields that cannot be parsed."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from sys import intern
from typing import TYPE_CHECKING, Any, NewType, TypeVar, cast

import cattrs

from kling_async._core.http import decode_json
from kling_async._core.prediction import MODERATION_CODE, Prediction, Status
from kling_async.errors import (
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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kling_async._core.http import HttpResponse
    from kling_async._core.secret import Secret

T = TypeVar("T")

Text = NewType("Text", str)
Number = NewType("Number", int)


def _prediction_id(value: object) -> str:
    if value is None:
        raise ValueError("the record has no id")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"expected an id, got {type(value).__name__}")  # noqa: TRY004 -- callers catch one kind
    return str(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else _dumped(value)


def _dumped(value: object) -> str:
    """Return a value that should have been a string as JSON."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "(nested too deep)"


def _urls(value: object) -> tuple[str, ...]:
    """Return the URLs of a list, a single string, null, or objects with a `url`."""
    if not value:
        return ()
    items = value if isinstance(value, list) else [value]
    urls = (item.get("url") if isinstance(item, dict) else item for item in items)
    return tuple(url for url in urls if isinstance(url, str) and url)


def _flags(value: object) -> tuple[bool, ...]:
    return tuple(map(bool, value)) if isinstance(value, list) else ()


_INTEGER = re.compile(r"\s*-?\d{1,18}\s*")


def _number(value: object) -> int | None:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds(value: object) -> float | None:
    """Convert the milliseconds of the wire to seconds; None when they are not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        seconds = value / 1000
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


_BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")


def moment(value: object) -> datetime | None:
    """Parse a time of the service; None when it is not one.

    WaveSpeed writes RFC 3339 with up to 9 fractional digits, GPTProto UTC without `T` and zone.
    """
    # Cut for the cache, and refused where it was cut.
    return _parse_moment(value[: _MAX_CACHED_CHARS + 1]) if isinstance(value, str) else None


@lru_cache(maxsize=4096)
def _parse_moment(text: str) -> datetime | None:
    # Cached, because every response about a prediction repeats its creation time.
    if len(text) > _MAX_CACHED_CHARS:
        return None
    try:
        moment = datetime.fromisoformat(_BEYOND_MICROSECONDS.sub(r"\1", text.strip()))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# Detailed validation is off: it takes a tenth of the CPU time of a job.
_converter = cattrs.Converter(detailed_validation=False)
_converter.register_structure_hook(Text, lambda value, _: _text(value))
_converter.register_structure_hook(Number | None, lambda value, _: _number(value))


def register(cls: object, hook: Callable[[object, object], object]) -> None:
    """Register a hook by which `structure` parses `cls`."""
    _converter.register_structure_hook(cls, hook)


_MAX_CACHED_CHARS = 64
"""More than a time or the name of a field has; longer texts would fill the memory by these caches."""
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _snake(name: str) -> str:
    """Convert camel case to snake case: services use `createdAt` and `created_at`."""
    return _HUMP.sub("_", name).lower()


_cached_snake = lru_cache(maxsize=1024)(_snake)


def structure(payload: object, cls: type[T]) -> T:
    """Parse `payload` into `cls` by the lenient hooks of this module.

    Raises:
        ValueError: The payload does not have the structure of `cls`.
    """
    try:
        return _converter.structure(_fields(payload), cls)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{cls.__name__.strip('_')}: {type(error).__name__}: {error}") from None


def _fields(payload: object) -> dict[str, Any]:
    """Return the fields of an object by their snake-case names."""
    if not isinstance(payload, dict):
        raise ValueError(f"expected an object, got {type(payload).__name__}")  # noqa: TRY004 -- callers catch one kind
    snake = _cached_snake if max(map(len, payload), default=0) <= _MAX_CACHED_CHARS else _snake
    return dict(zip(map(snake, payload), payload.values(), strict=True))


def read_prediction(payload: object, *, request_id: str | None = None, key: str | None = None) -> Prediction:
    """Parse a prediction (api reference, "result") from an object or, as some integrators have seen, a list of one.

    Not built on `structure`, which is slower: every status request comes through here.

    Args:
        payload: The `data` of the response, or the body of a webhook.
        request_id: The service's id of the request; copied into the prediction.
        key: The job's key; copied into the prediction.

    Raises:
        ValueError: There is no id in it.
    """
    if isinstance(payload, list) and payload:
        payload = payload[0]
    fields = _fields(payload)
    record = cast("dict[str, object]", payload)
    get = fields.get
    prediction_id = _prediction_id(get("id"))
    if not prediction_id.strip():
        raise ValueError("the record has no id")
    word = _text(get("status")) or "created"
    timings = get("timings")
    inference = _seconds(timings.get("inference")) if isinstance(timings, dict) else None
    # List items and webhooks sometimes repeat the input of the run, under either name.
    echo = get("input") or get("inputs")
    return Prediction(
        id=prediction_id,
        model=_text(get("model")),
        status=Status.of(word),
        raw_status=word,
        outputs=_urls(get("outputs")),
        error=_text(get("error")) or None,
        code=_number(get("code")) or None,
        nsfw=_flags(get("has_nsfw_contents")),
        created_at=moment(get("created_at")),
        inference=inference or _seconds(get("execution_time")) or None,
        key=key,
        input=echo if isinstance(echo, dict) else None,
        request_id=request_id,
        # Interned: otherwise the names would take more memory than the values.
        raw=dict(zip(map(intern, record), record.values(), strict=True)),
    )


def decode(body: bytes, secret: Secret | None) -> object:
    """Decode a JSON body of the service. Everything that is read from a body comes from here, without the API key.

    Args:
        body: The body.
        secret: The API key, which services quote in errors; None where it is not known.

    Raises:
        ValueError: The body is not JSON, or is nested too deeply.
    """
    value = decode_json(body)
    try:
        return value if secret is None else secret.redact_json(body, value)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


_SUCCESS = range(200, 300)


def read_data(response: HttpResponse, secret: Secret) -> object:
    """Return the `data` of a successful response. The envelope is optional: some responses are the bare object.

    Raises:
        ApiError: The HTTP status, or the envelope's `code` in an HTTP 200, reports an error.
    """
    # Raised here, where no local variable holds a body that may contain the key: error reporters print locals.
    data = _unwrapped(response, secret)
    if isinstance(data, ApiError):
        raise data
    return data


def _unwrapped(response: HttpResponse, secret: Secret) -> object:
    """Return the `data` of a successful response, else the error that the response reports."""
    if response.status not in _SUCCESS:
        return read_error(response, secret)
    try:
        body = decode(response.body, secret)
    except ValueError:
        return ProtocolError(
            "the response is not JSON",
            status=response.status,
            request_id=response.request_id,
            raw=_excerpt(secret.redact(response.body)),
        )
    if not isinstance(body, dict):
        return body
    code = _number(body.get("code"))
    if (code is not None and code not in _SUCCESS and code != 0) or (
        code is None and "data" not in body and "error" in body
    ):
        # A bare prediction has `error` too, but also an id and a status: one of the known words where it is an error by
        # its code or text, which may have an id and a status of their own.
        if "id" in body and (
            Status.is_known(body.get("status")) or (code is None and "status" in body and not body["error"])
        ):
            return body
        return read_error(response, secret)
    return body.get("data", body)


def read_error(response: HttpResponse, secret: Secret) -> ApiError:
    """Return the error that a response reports, classified by HTTP status, then by code.

    The text decides only where status and code are ambiguous: balance, and GPTProto's content policy.
    """
    try:
        body: object = decode(response.body, secret)
    except ValueError:
        body = None
    text, code = _error_text(body)
    cls = _error_class(response.status if response.status not in _SUCCESS else code or response.status, code, text)
    where = f"HTTP {response.status}" + (f", code {code}" if code not in {None, response.status} else "")
    excerpt = "" if text and body is not None else _excerpt(secret.redact(response.body))
    reason = text or excerpt or "no text"
    return cls(
        f"the service refused ({where}): {reason}"
        if cls is not ServerError
        else f"the service failed ({where}): {reason}",
        status=response.status,
        code=code,
        retry_after=response.retry_after(),
        request_id=response.request_id,
        raw=body if body is not None else excerpt,
    )


def record_beside(raw: object) -> tuple[str, object] | None:
    """Return the id and the record of the prediction that an error has beside its code and text; None without one.

    Args:
        raw: The decoded body of the error.
    """
    if not isinstance(raw, dict):
        return None
    data = raw.get("data")
    for record in (data[0] if isinstance(data, list) and data else data, raw):
        # The id of an error itself may be that of the request, and its status that of the error.
        if isinstance(record, dict) and (record is not raw or Status.is_known(record.get("status"))):
            try:
                found = _prediction_id(record.get("id"))
            except ValueError:
                continue
            if found.strip():
                return found, record
    return None


_GPTPROTO_MODERATION_TEXT = "may not meet the guidelines"
_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitedError,
    MODERATION_CODE: ModerationError,
    1407: InsufficientBalanceError,
}
_CLIENT_ERRORS = range(300, 500)
_TASK_PARAMETER_CODES = range(1400, 1403)


def _error_class(status: int, code: int | None, text: str) -> type[ApiError]:
    folded = text.lower()
    if _GPTPROTO_MODERATION_TEXT in folded:
        return ModerationError
    if status == 403:  # noqa: PLR2004 -- an HTTP status
        if "balance" in folded or "credit" in folded:
            return InsufficientBalanceError
        if "invalid token" in folded:
            return AuthenticationError
    if code in (MODERATION_CODE, 1407):
        return _BY_STATUS[code]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status in _CLIENT_ERRORS or status in _TASK_PARAMETER_CODES:
        return RequestRejectedError
    return ServerError


def _error_text(body: object) -> tuple[str, int | None]:
    """Return the text and the code of an error body, in any of the formats observed."""
    if not isinstance(body, dict):
        return "", None
    code = _number(body.get("code"))
    error = body.get("error")
    data = body.get("data")
    if isinstance(error, dict):
        code = code or _number(error.get("code")) or _number(error.get("type"))
        error = error.get("message")
    elif isinstance(data, dict):
        error = error or data.get("error")
        code = _number(data.get("code")) or code
    text = next((part for part in (error, body.get("message"), body.get("detail"), body.get("errors")) if part), "")
    if not isinstance(text, str):
        text = _dumped(text)
    if body.get("error_code"):
        text = f"{text} [{body['error_code']}]"
    return text[:500], code


_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]+>", re.DOTALL | re.IGNORECASE)


def _excerpt(body: bytes) -> str:
    """Return the first 200 characters of a body without mark-up: gateways respond in HTML."""
    return " ".join(_TAGS.sub(" ", body[:4000].decode("utf-8", "replace")).split())[:200]
