"""Reading replies: lenient in every way that has been seen, and in some that have not."""

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


def _identity(value: object) -> str:
    if value is None:
        raise ValueError("the record has no id")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"expected an id, got {type(value).__name__}")  # noqa: TRY004 -- one kind for callers
    return str(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else _dumped(value)


def _dumped(value: object) -> str:
    """What should have been a text, as JSON."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "(nested too deep)"


def _urls(value: object) -> tuple[str, ...]:
    """A list, one bare string, null, or objects with a `url`."""
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
    """Milliseconds on the wire."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        seconds = value / 1000
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


_BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")


def moment(value: object) -> datetime | None:
    """A time of the service: RFC 3339 with up to 9 fractional digits, or GPTProto's without `T` and zone, which is UTC.

    None when it is none.
    """
    return _read_moment(value) if isinstance(value, str) else None


@lru_cache(maxsize=4096)
def _read_moment(text: str) -> datetime | None:
    """Remembered, because every reply about a prediction says when it was created."""
    try:
        moment = datetime.fromisoformat(_BEYOND_MICROSECONDS.sub(r"\1", text.strip()))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# One converter, made once; without detailed validation, which costs a tenth of a job.
_converter = cattrs.Converter(detailed_validation=False)
_converter.register_structure_hook(Text, lambda value, _: _text(value))
_converter.register_structure_hook(Number | None, lambda value, _: _number(value))


def register(cls: object, hook: Callable[[object, object], object]) -> None:
    """Let `structure` read `cls` by `hook`, for the shapes of another room."""
    _converter.register_structure_hook(cls, hook)


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
    try:
        return _converter.structure(_fields(payload), cls)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{cls.__name__.strip('_')}: {type(error).__name__}: {error}") from None


def _fields(payload: object) -> dict[str, Any]:
    """By their snake-case names."""
    if not isinstance(payload, dict):
        raise ValueError(f"expected an object, got {type(payload).__name__}")  # noqa: TRY004 -- one kind for callers
    return dict(zip(map(_snake, payload), payload.values(), strict=True))


def read_prediction(
    payload: object, secret: Secret | None, *, request_id: str | None = None, key: str | None = None
) -> Prediction:
    """A prediction from `data`, which some integrators have seen as a list of one. Its error does not quote the key.

    Field by field, because every status request is read by this (api reference, "result"). A webhook may be read where
    the key is not known.

    Raises:
        ValueError: There is no id in it.
    """
    if isinstance(payload, list) and payload:
        payload = payload[0]
    fields = _fields(payload)
    record = cast("dict[str, object]", payload)
    get = fields.get
    prediction_id = _identity(get("id"))
    if not prediction_id.strip():
        raise ValueError("the record has no id")
    word = _text(get("status")) or "created"
    error = _text(get("error"))
    timings = get("timings")
    inference = _seconds(timings.get("inference")) if isinstance(timings, dict) else None
    # Where the service says what the run was given: list items and webhooks do, sometimes, under either name.
    echo = get("input") or get("inputs")
    return Prediction(
        id=prediction_id,
        model=_text(get("model")),
        status=Status.of(word),
        raw_status=word,
        outputs=_urls(get("outputs")),
        error=(_without(secret, error) if error and secret is not None else error) or None,
        code=_number(get("code")) or None,
        nsfw=_flags(get("has_nsfw_contents")),
        created_at=moment(get("created_at")),
        inference=inference or _seconds(get("execution_time")) or None,
        key=key,
        input=echo if isinstance(echo, dict) else None,
        request_id=request_id,
        # The names would take more than the values, were they not shared by all records.
        raw=dict(zip(map(intern, record), record.values(), strict=True)),
    )


def _without(secret: Secret, text: str) -> str:
    return secret.redact(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


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
    code = _number(body.get("code"))
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
        body: object = decode_json(redacted)
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
    MODERATION_CODE: ModerationError,
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
    if code in (MODERATION_CODE, 1407):
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


def _beginning(body: bytes) -> str:
    """The first words of a body, without mark-up: gateways answer in HTML."""
    return " ".join(_TAGS.sub(" ", body[:4000].decode("utf-8", "replace")).split())[:200]
