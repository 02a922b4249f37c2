"""HTTP as plain values: what the providers phrase, what the transport sends and brings back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

import attrs

MAX_RETRY_AFTER = 3600.0
"""Seconds; a longer `Retry-After` is taken for a mistake of the service and cut to this."""


class Effect(Enum):
    """What sending a request twice would do. The effect, not the verb, decides what may be retried."""

    READ = "read"
    """Nothing that matters: reads, the list endpoint (a POST), upload tickets."""
    PAID = "paid"
    """Money may be spent: sent once, and never again on a guess."""


@attrs.frozen(kw_only=True)
class Timeouts:
    """Seconds that the parts of one HTTP request may take.

    Attributes:
        connect: Until a connection stands, DNS and TLS included.
        read: Until the reply to a read begins; the rest of it may take three times as long.
        submit: From the sent paid request to its reply. It ends a hung connection; it does not limit the generation.
        transfer: Of silence while an image goes up or a video comes down. Transfers have no limit in total.
    """

    connect: float = 10.0
    read: float = 30.0
    submit: float = 90.0
    transfer: float = 60.0


@attrs.frozen(kw_only=True)
class HttpRequest:
    """One request, complete.

    Attributes:
        method: The verb.
        url: Absolute URL.
        effect: What sending it twice would do.
        headers: Headers, those with the key included; never shown.
        body: The body's bytes, or None.
    """

    method: str
    url: str = attrs.field(repr=lambda url: repr(url.partition("?")[0]))
    effect: Effect = Effect.READ
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes | None = attrs.field(default=None, repr=lambda body: "None" if body is None else f"<{len(body)} bytes>")


@attrs.frozen(kw_only=True)
class HttpResponse:
    """One reply, complete.

    Attributes:
        status: The HTTP status.
        headers: Header names in lower case.
        body: The body's bytes.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes = attrs.field(default=b"", repr=lambda body: f"<{len(body)} bytes>")

    @property
    def request_id(self) -> str | None:
        """The service's id of this request, if it sent one."""
        return self.headers.get("x-request-id")

    def json(self) -> object:
        """The decoded body.

        Raises:
            ValueError: The body is not JSON.
        """
        return decoded(self.body)

    def ahead(self, now: float) -> float | None:
        """By how many seconds the service's clock is ahead of ours, by its `Date`; None when it does not say.

        Args:
            now: Our time, seconds since the epoch.
        """
        sent = _epoch(self.headers.get("date", ""))
        return None if sent is None else sent - now

    def retry_after(self, now: float | None = None) -> float | None:
        """Seconds that the service asks to wait, between 0 and an hour; None when it does not say.

        Args:
            now: Seconds since the epoch, for a date in a reply that bears no `Date` of its own.
        """
        text = self.headers.get("retry-after", "").strip()
        if not text:
            return None
        try:
            seconds = float(text)
        except ValueError:
            until, sent = _epoch(text), _epoch(self.headers.get("date", ""))
            # The service's own clock on both sides: ours may be wrong.
            since = now if sent is None else sent
            if until is None or since is None:
                return None
            seconds = until - since
        return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)


_standard = json.JSONDecoder().decode


def _read_standard(body: bytes) -> object:
    """UTF-8, without asking first which of five encodings it is: that takes as long as a third of the reading."""
    return _standard(body.decode())


_read: Callable[[bytes], object] = _read_standard
with suppress(ImportError):
    # Of the extra `speed`. What it refuses, the standard library is asked about: it takes endless numbers and halves of
    # characters.
    from orjson import loads as _read


def decoded(body: bytes) -> object:
    """JSON as values.

    Raises:
        ValueError: It is none, or nested deeper than can be read.
    """
    try:
        with suppress(ValueError):
            return _read(body)
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _epoch(http_date: str) -> float | None:
    """Seconds since the epoch of an HTTP date, or None."""
    try:
        date = parsedate_to_datetime(http_date)
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
