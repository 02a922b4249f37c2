"""HTTP requests and responses as plain values, between providers and transports."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

import attrs

MAX_RETRY_AFTER_S = 3600.0
"""Seconds to which a longer `Retry-After` is cut, as a mistake of the service."""
MAX_REPLY_BYTES = 16 * 2**20
"""Default of the greatest size in bytes of a reply."""
MAX_OUTPUT_BYTES = 2 * 2**30
"""Default of the greatest size in bytes of an output that is saved."""


class Effect(Enum):
    """The effect of sending a request twice. It decides which requests may be retried, not the HTTP method."""

    READ = "read"
    """No relevant effect: reads, the list endpoint (a POST), upload tickets."""
    PAID = "paid"
    """Spends money: never sent again on a guess."""


@attrs.frozen(kw_only=True)
class Timeouts:
    """Timeouts of the parts of one HTTP request, in seconds.

    Attributes:
        connect: For connecting, DNS and TLS included.
        read: From the request to the first bytes of the reply to a read; the rest may take three times as long.
        submit: From the paid request to its reply. It ends a hung connection; it does not limit the generation.
        transfer: Without progress during an upload or download. Their total time is not limited.
    """

    connect: float = 10.0
    read: float = 30.0
    submit: float = 90.0
    transfer: float = 60.0


@attrs.frozen(kw_only=True)
class HttpRequest:
    """A complete request.

    Attributes:
        method: HTTP method.
        url: Absolute URL.
        effect: The effect of sending it twice.
        headers: Headers, including the API key; not part of the repr.
        body: Body, or None.
    """

    method: str
    url: str = attrs.field(repr=lambda url: repr(url.partition("?")[0]))
    effect: Effect = Effect.READ
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes | None = attrs.field(default=None, repr=lambda body: "None" if body is None else f"<{len(body)} bytes>")


@attrs.frozen(kw_only=True)
class HttpResponse:
    """A complete reply.

    Attributes:
        status: HTTP status.
        headers: Response headers; names in lower case.
        body: Body.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes = attrs.field(default=b"", repr=lambda body: f"<{len(body)} bytes>")

    @property
    def request_id(self) -> str | None:
        """The service's id of the request, from `X-Request-Id`; None without."""
        return self.headers.get("x-request-id")

    def json(self) -> object:
        """Return the decoded body.

        Raises:
            ValueError: The body is not JSON.
        """
        return decode_json(self.body)

    def ahead(self, now: float) -> float | None:
        """Return the seconds by which the service's clock is ahead of ours, by its `Date` header; None without one.

        Args:
            now: Our time in seconds since the epoch.
        """
        sent = _parse_date(self.headers.get("date", ""))
        return None if sent is None else sent - now

    def retry_after(self, now: float | None = None) -> float | None:
        """Return the seconds to wait by `Retry-After`, from 0 to an hour; None without one.

        Args:
            now: Our time in seconds since the epoch, to interpret a date in a reply without a `Date` header.
        """
        text = self.headers.get("retry-after", "").strip()
        if not text:
            return None
        try:
            seconds = float(text)
        except ValueError:
            until, sent = _parse_date(text), _parse_date(self.headers.get("date", ""))
            # Both by the service's clock where possible, because ours may be wrong.
            since = now if sent is None else sent
            if until is None or since is None:
                return None
            seconds = until - since
        return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


_decode = json.JSONDecoder().decode


def _standard_loads(body: bytes) -> object:
    """Decode UTF-8 JSON; `json.loads` would first detect the encoding, which takes a third of its time."""
    return _decode(body.decode())


_loads: Callable[[bytes], object] = _standard_loads
with suppress(ImportError):
    # From the extra `speed`. The standard library then reads bodies that orjson refuses: infinite numbers and lone
    # surrogates.
    from orjson import loads as _loads


def decode_json(body: bytes) -> object:
    """Decode a JSON body.

    Raises:
        ValueError: The body is not JSON, or is nested too deeply.
    """
    try:
        with suppress(ValueError):
            return _loads(body)
        return json.loads(body)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _parse_date(http_date: str) -> float | None:
    """Return an HTTP date in seconds since the epoch; None if it is invalid."""
    try:
        date = parsedate_to_datetime(http_date)
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
