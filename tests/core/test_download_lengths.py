"""Downloads whose length is not what the host said: complete, or asked for again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kling_async import HttpRequest, HttpResponse, StorageError
from kling_async.storage import save_output
from kling_async.testing import ScriptedTransport

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 4


class Clock:
    """A clock that does not wait."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def now(self) -> float:
        return 1_800_000_000.0 + self.elapsed

    def monotonic(self) -> float:
        return self.elapsed

    async def sleep(self, seconds: float) -> None:
        self.elapsed += seconds


def part(request: HttpRequest, length: int, *, etag: str = '"v1"') -> HttpResponse:
    """Return the first `length` bytes of what was asked for, with the header of the whole."""
    span = request.headers.get("Range")
    start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
    headers = {"etag": etag, "content-length": str(len(CONTENT) - start)}
    if span:
        headers["content-range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    return HttpResponse(status=206 if span else 200, headers=headers, body=CONTENT[start : start + length])


async def saved(folder: Path, reply: Callable[[HttpRequest], HttpResponse]) -> tuple[bytes, ScriptedTransport]:
    transport = ScriptedTransport(reply)
    target = folder / "output.bin"
    await save_output(transport, "https://outputs.example/v.mp4", target, Clock())
    return target.read_bytes(), transport


async def test_body_shorter_than_its_length_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    content, transport = await saved(tmp_path, lambda request: part(request, 400))
    assert content == CONTENT
    assert [request.headers.get("Range") for request in transport.requests] == [None, "bytes=400-", "bytes=800-"]


async def test_body_without_validator_is_begun_again(tmp_path: Path) -> None:
    replies = [400, 10_000]
    content, transport = await saved(tmp_path, lambda request: part(request, replies.pop(0), etag='W/"weak"'))
    assert content == CONTENT
    assert [request.headers.get("Range") for request in transport.requests] == [None, None]


async def test_other_version_of_the_output_is_begun_again(tmp_path: Path) -> None:
    replies = [(400, '"v1"'), (400, '"v2"'), (10_000, '"v2"')]

    def reply(request: HttpRequest) -> HttpResponse:
        length, etag = replies.pop(0)
        return part(request, length, etag=etag)

    content, transport = await saved(tmp_path, reply)
    assert content == CONTENT
    assert [request.headers.get("Range") for request in transport.requests] == [None, "bytes=400-", None]


async def test_body_longer_than_its_length_is_begun_again(tmp_path: Path) -> None:
    replies = [CONTENT + b"more", CONTENT]

    def reply(_: HttpRequest) -> HttpResponse:
        return HttpResponse(status=200, headers={"etag": '"v1"', "content-length": "1024"}, body=replies.pop(0))

    content, transport = await saved(tmp_path, reply)
    assert content == CONTENT
    assert [request.headers.get("Range") for request in transport.requests] == [None, None]


async def test_body_that_stays_short_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="sent 0 of 1024 bytes"):
        await saved(tmp_path, lambda request: part(request, 0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(8)
async def test_download_carries_no_key(tmp_path: Path) -> None:
    _, transport = await saved(tmp_path, lambda request: part(request, 400))
    assert all("authorization" not in {name.lower() for name in request.headers} for request in transport.requests)
