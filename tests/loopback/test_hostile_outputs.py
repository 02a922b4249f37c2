"""Outputs whose hosts would fill the disk, or send what cannot be sent back."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from kling_async import AiohttpTransport, ConfigurationError, KlingSession, Prediction, Status, StorageError
from kling_async.emulator import Emulator, ScaledClock
from kling_async.storage import save_output
from kling_async.storage._part import Part
from support.outputs import SHORT, VIDEO, Host, QuickClock, output_host
from support.patience import PATIENCE_S
from support.pictures import png
from support.sockets import Handler, endless, head_of, opened, serving

pytestmark = pytest.mark.anyio

LIMIT = 2**20
PIECE = bytes(2**16)
BOMB = gzip.compress(bytes(64 * LIMIT))


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with output_host() as host:
        yield host


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of all writes to the disk."""
    sizes: list[int] = []
    write = Part.write

    def recorded(part: Part, chunk: bytes) -> None:
        sizes.append(len(chunk))
        write(part, chunk)

    monkeypatch.setattr(Part, "write", recorded)
    return sizes


def start_of(request: web.BaseRequest) -> int:
    """Return the first byte that a request asks for."""
    return int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        pytest.param(endless(b"", PIECE), "more than 1,048,576 bytes were sent", id="endless"),
        pytest.param(
            endless(b"Transfer-Encoding: chunked\r\n", PIECE), "more than 1,048,576 bytes", id="endless chunks"
        ),
        pytest.param(
            endless(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(BOMB), b"", BOMB),
            "more than 1,048,576 bytes were sent",
            id="bomb",
        ),
        pytest.param(endless(b"Content-Length: 1048577\r\n", PIECE), "1,048,577 bytes are announced", id="announced"),
        pytest.param(
            endless(b"Content-Length: %b\r\n" % (b"9" * 18), PIECE), "bytes are announced", id="absurd length"
        ),
    ],
)
async def test_output_that_is_too_large_is_an_error_at_once(
    handler: Handler, said: str, written: list[int], tmp_path: Path
) -> None:
    clock = QuickClock()
    async with serving(handler) as url, opened(AiohttpTransport()) as transport:
        with pytest.raises(StorageError, match=said) as caught:
            await save_output(transport, f"{url}/v.mp4?sig=1", tmp_path / "v.mp4", clock, max_bytes=LIMIT)
    assert "max_output_bytes" in caught.value.advice
    assert "sig=1" not in str(caught.value)
    assert clock.pauses == []
    assert sum(written) <= LIMIT + 2**18
    assert list(tmp_path.iterdir()) == []


async def test_output_as_large_as_allowed_is_saved(host: Host, tmp_path: Path) -> None:
    saved = await save_output(host.transport, host.url, tmp_path / "v.mp4", QuickClock(), max_bytes=len(VIDEO))
    assert saved.bytes == len(VIDEO)


async def test_no_more_is_read_than_announced(host: Host, written: list[int], tmp_path: Path) -> None:
    """A range may be announced as short and go on for ever."""
    host.cut(2**20)

    async def resumed(request: web.BaseRequest) -> web.StreamResponse:
        content_range = f"bytes {start_of(request)}-{len(VIDEO) - 1}/{len(VIDEO)}"
        response = web.StreamResponse(status=206, headers={"Content-Range": content_range, "ETag": '"v1"'})
        await response.prepare(request)
        while request.transport is not None:
            await response.write(PIECE)
        return response

    host.replies.append(resumed)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert sum(written) <= 2 * len(VIDEO) + 2**19


@pytest.mark.parametrize("digits", ["9" * 19, "1" * 5000], ids=["too long for a length", "too long for an int"])
@pytest.mark.parametrize("content_range", ["{n}-5/6", "{start}-{n}/*", "{start}-6/{n}", "*/{n}"])
async def test_range_of_absurd_numbers_is_another_range(
    content_range: str, digits: str, host: Host, tmp_path: Path
) -> None:
    async def reply(request: web.BaseRequest) -> web.StreamResponse:
        given = content_range.format(start=start_of(request), n=digits)
        return web.Response(status=206, headers={"Content-Range": f"bytes {given}", "ETag": '"v1"'})

    host.cut(2**20)
    host.replies.append(reply)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges[2] is None


@pytest.mark.parametrize(
    "etag",
    [
        b'"\x01\x02"',
        b'"a\tb"',
        b'"\x7f"',
        b'"\xff\xfe"',
        b'"caf\xc3\xa9"',
        b'"a"b"',
        b"v1",
        b'"v1',
        b'"',
        b'\x1b[31m"v1"',
    ],
)
async def test_etag_that_cannot_be_sent_back_is_none(etag: bytes, tmp_path: Path) -> None:
    """The download begins again instead of failing with every request until its deadline."""
    asked: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await head_of(reader))
        head = b"HTTP/1.1 200 OK\r\nETag: " + etag + b"\r\nContent-Length: %d\r\n\r\n" % len(SHORT)
        writer.write(head + (SHORT[:100] if len(asked) == 1 else SHORT))
        await writer.drain()

    async with serving(handler) as url, opened(AiohttpTransport()) as transport:
        saved = await save_output(transport, url, tmp_path / "v.mp4", QuickClock())
    assert saved.path.read_bytes() == SHORT
    assert len(asked) == 2
    assert b"if-range" not in asked[1].lower()


@pytest.mark.promise(8)
@pytest.mark.parametrize("own", [False, True], ids=["transport", "client session of ones own"])
@pytest.mark.parametrize("absolute", [False, True], ids=["path", "URL"])
async def test_redirected_url_is_not_quoted_anew(*, own: bool, absolute: bool, host: Host, tmp_path: Path) -> None:
    """The signature covers the very characters of the path and the query."""
    path = "/a%2Fb%7Ec/v%20(1).mp4?X-Amz-Signature=a%2Bb%2fc%3D~%7E&x=%41"
    seen: list[str] = []

    async def moved(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.Response(body=SHORT)

    async with RawTestServer(moved) as other, aiohttp.ClientSession() as given:
        host.status(307, Location=str(other.make_url("/")).rstrip("/") + path if absolute else path)
        host.replies.append(moved)
        async with opened(AiohttpTransport(client_session=given if own else None)) as transport:
            await save_output(transport, host.url, tmp_path / "v.mp4", QuickClock())
    assert seen == [path]


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://h/v.mp4", "http://[::1/v.mp4", "http://", "//", "\udcff", "data:,x"]
)
async def test_redirect_to_no_web_page_is_asked_for_again(location: str, host: Host, tmp_path: Path) -> None:
    host.status(302, Location=location)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO


async def test_redirects_in_a_circle_end(host: Host, tmp_path: Path) -> None:
    host.status(302, 1000, Location="/again")
    with pytest.raises(StorageError, match="10 redirects, one after another"):
        await host.save(tmp_path / "v.mp4", deadline=1.0)


async def test_session_bounds_its_outputs(tmp_path: Path) -> None:
    async with (
        Emulator(speed=500, profile="tiny", seed=7) as emulator,
        KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, max_output_bytes=100) as kling,
    ):
        prediction = await kling.generate(prompt="She turns", image=png())
        with pytest.raises(StorageError, match="max_output_bytes is 100") as caught:
            await kling.save(prediction, tmp_path)
    assert caught.value.prediction_id == prediction.id
    assert list(tmp_path.iterdir()) == []


def test_bound_is_positive() -> None:
    with pytest.raises(ConfigurationError, match="max_output_bytes: expected at least 1"):
        KlingSession("key", max_output_bytes=0)


@pytest.mark.parametrize(
    "url", ["http://[bad/x.mp4", "https://[::1/a.mp4", "no url", "http://", "http://a:99999/b.mp4"]
)
async def test_output_that_is_no_url_is_an_error_of_its_video(url: str, tmp_path: Path) -> None:
    """A program's mistake would end the batch, and every later one in the last day of its videos."""
    async with KlingSession("wsk_key", clock=ScaledClock(1000)) as kling:
        prediction = Prediction(id="p1", status=Status.COMPLETED, raw_status="completed", outputs=(url,))
        with pytest.raises(StorageError) as caught:
            await kling.save(prediction, tmp_path, deadline=60)
    assert caught.value.prediction_id == "p1"


@pytest.mark.skipif(os.name != "posix", reason="other systems have no pipes as files")
async def test_pipe_under_the_name_of_a_video_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    async with (
        Emulator(speed=500, profile="tiny", seed=7) as emulator,
        KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock) as kling,
    ):
        prediction = await kling.generate(prompt="She turns", image=png(), key="a")
        with anyio.fail_after(PATIENCE_S):
            saved = await kling.save(prediction, tmp_path)
    assert Path(saved.path).name != "a.mp4"
