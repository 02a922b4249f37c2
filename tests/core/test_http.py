"""HTTP values: their reprs, JSON bodies, and `Retry-After`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kling_async import Effect, HttpRequest, HttpResponse, Timeouts
from kling_async._core import http
from kling_async._core.http import MAX_RETRY_AFTER_S
from kling_async._core.transport import loggable_url

if TYPE_CHECKING:
    from collections.abc import Callable

NOON = 1_792_929_600.0  # Sun, 25 Oct 2026 12:00:00 GMT


def retry_after(text: str, *, date: str | None = None, now: float | None = None) -> float | None:
    headers = {"retry-after": text} | ({} if date is None else {"date": date})
    return HttpResponse(status=429, headers=headers).retry_after(now)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-5", 0.0),
        ("3600", 3600.0),
        ("86400", MAX_RETRY_AFTER_S),
        ("1e999", MAX_RETRY_AFTER_S),
        ("9" * 400, MAX_RETRY_AFTER_S),
        ("-1e999", 0.0),
    ],
)
def test_retry_after_reads_seconds(text: str, seconds: float) -> None:
    assert retry_after(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "  ", "nan", "soon", "5s", "0x10", "Mon", "Sun, 99 Oct 2026 12:00:00 GMT", "\x00"]
)
def test_retry_after_ignores_garbage(text: str) -> None:
    assert retry_after(text, now=NOON) is None


def test_retry_after_is_none_without_header() -> None:
    assert HttpResponse(status=429).retry_after(NOON) is None


def test_retry_after_date_counts_from_date_header() -> None:
    date = "Sun, 25 Oct 2026 12:00:00 GMT"
    assert retry_after("Sun, 25 Oct 2026 12:00:42 GMT", date=date, now=NOON - 86_400) == 42.0
    assert retry_after("Sun, 25 Oct 2026 12:00:42 GMT", date=date) == 42.0


def test_retry_after_date_counts_from_local_clock_without_date_header() -> None:
    assert retry_after("Sun, 25 Oct 2026 12:00:42 GMT", now=NOON) == 42.0
    assert retry_after("Sun, 25 Oct 2026 12:00:42 GMT", date="garbage", now=NOON) == 42.0
    assert retry_after("Sun, 25 Oct 2026 12:00:42 GMT") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 25 Oct 2026 11:59:00 GMT", 0.0),
        ("Sun, 25 Oct 2026 12:00:42 -0000", 42.0),
        ("Sun, 25 Oct 2026 14:00:42 +0200", 42.0),
        ("Sunday, 25-Oct-26 12:00:42 GMT", 42.0),
        ("Sun, 25 Oct 2099 12:00:00 GMT", MAX_RETRY_AFTER_S),
    ],
)
def test_retry_after_reads_other_date_forms(text: str, seconds: float) -> None:
    assert retry_after(text, now=NOON) == seconds


dates = st.from_regex(
    r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d?:\d\d?:\d\d?.\d* [+-]?[A-Z0-9]{1,25}", fullmatch=True
)


@given(st.one_of(st.text(), dates, st.floats().map(str)), st.one_of(st.none(), st.text(), dates))
@example("Mon, 01 Jan 2020 00:00:00 +99999999999999999999", None)
@example("Mon, 01 Jan 0001 00:00:00 +2359", "Mon, 01 Jan 9999 00:00:00 -2359")
def test_retry_after_is_bounded_for_any_header(text: str, date: str | None) -> None:
    seconds = retry_after(text, date=date, now=NOON)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


def test_request_repr_hides_headers_body_and_query() -> None:
    request = HttpRequest(
        method="POST",
        url="https://api.example/api/v3/x?webhook=https%3A%2F%2Fme%2F%3Ftoken%3Dsecret",
        effect=Effect.PAID,
        headers={"Authorization": "Bearer secret"},
        body=b'{"image":"https://pictures.example/?sig=secret"}',
    )
    assert "secret" not in repr(request)
    assert "https://api.example/api/v3/x'" in repr(request)
    assert "Effect.PAID" in repr(request)
    assert "<48 bytes>" in repr(request)


def test_response_repr_hides_headers_and_body() -> None:
    response = HttpResponse(status=401, headers={"set-cookie": "secret"}, body=b"secret")
    assert "secret" not in repr(response)
    assert "401" in repr(response)


def test_json_raises_value_error_for_bad_bodies() -> None:
    assert HttpResponse(status=200, body=b'{"a": [1]}').json() == {"a": [1]}
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000):
        with pytest.raises(ValueError):  # noqa: PT011 -- only the type is part of the contract
            HttpResponse(status=200, body=body).json()


def test_request_id_reads_header() -> None:
    assert HttpResponse(status=200, headers={"x-request-id": "r1"}).request_id == "r1"
    assert HttpResponse(status=200).request_id is None


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://user:pw@host.example:8443/a/b?sig=1#x", "host.example:8443/a/b"),
        ("https://[::1/a", "an invalid URL"),
        ("", ""),
    ],
)
def test_loggable_url_hides_credentials(url: str, text: str) -> None:
    assert loggable_url(url) == text


def test_default_timeouts_wait_longest_for_submits() -> None:
    """Paid requests have the longest timeout, because giving up early leaves their outcome uncertain."""
    timeouts = Timeouts()
    assert timeouts.submit > timeouts.read > timeouts.connect > 0


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, true, null, "\xc3\xa9"]}', {"a": [1, 2.5, True, None, "\u00e9"]}),
        (b' \n{"a": 1}\n ', {"a": 1}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": 1}'.encode("utf-16"), {"a": 1}),
        (b'{"a": 18446744073709551615}', {"a": 2**64 - 1}),
        (b'{"a": Infinity, "b": "\\ud800"}', {"a": math.inf, "b": "\ud800"}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'"only a text"', "only a text"),
    ],
)
@pytest.mark.parametrize("read", [http._standard_loads, orjson.loads])
def test_json_is_equal_with_and_without_orjson(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[bytes], object], body: bytes, value: object
) -> None:
    monkeypatch.setattr(http, "_loads", read)
    assert HttpResponse(status=200, body=body).json() == value


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": }', b'{"a": 1} more', b"\xff\xfe", b"[" * 200_000])
@pytest.mark.parametrize("read", [http._standard_loads, orjson.loads])
def test_bad_json_is_refused_with_and_without_orjson(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[bytes], object], body: bytes
) -> None:
    monkeypatch.setattr(http, "_loads", read)
    with pytest.raises(ValueError):  # noqa: PT011 -- the text depends on the library
        HttpResponse(status=200, body=body).json()


def test_orjson_is_used_if_installed() -> None:
    assert http._loads is orjson.loads
