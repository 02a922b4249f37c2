"""Pictures are sent from disk, piece by piece: memory does not follow their number, and a changed one is not stored."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from kling_async import HttpRequest, HttpResponse, InvalidJobError, KlingSession
from kling_async._core.transport import StreamedBody
from kling_async._images.streams import PIECE_BYTES
from kling_async.testing import ScriptedTransport, json_response
from support.media import video
from support.pictures import png

pytestmark = pytest.mark.anyio

MEGABYTE = 10**6


def picture(path: Path, size: int, number: int = 0) -> Path:
    """Write a valid PNG of a size, full of zeros, which takes no room on the disk."""
    start, end = png()[:-12], png()[-12:]
    with path.open("wb") as file:
        file.write(start + number.to_bytes(8, "big"))
        file.seek(size - len(end))
        file.write(end)
    return path


class Storage:
    """Service with tickets, and a storage that keeps the digest of what it gets.

    Attributes:
        stored: SHA-256 of the files that it got whole.
        broken: Number of files that it did not.
        lengths: `Content-Length` of the files.
        together: Number of uploads that it waits for before it reads any.
        statuses: Statuses of the next uploads.
    """

    def __init__(self, together: int = 1) -> None:
        self.stored: list[str] = []
        self.broken = 0
        self.lengths: list[str | None] = []
        self.statuses: list[int] = []
        self.together = together
        self._here = 0
        self._all_here = anyio.Event()
        self._tickets = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            self._tickets += 1
            url = str(request.url.with_path(f"/{self._tickets}.png"))
            upload = {"method": "PUT", "url": url, "headers": {"Content-Type": "image/png"}}
            return web.json_response({"code": 200, "data": {"download_url": url, "upload": upload}})
        self.lengths.append(request.headers.get("Content-Length"))
        self._here += 1
        if self._here >= self.together:
            self._all_here.set()
        await self._all_here.wait()
        whole = hashlib.sha256()
        try:
            async for piece in request.content.iter_any():
                whole.update(piece)
        except (ConnectionError, web.RequestPayloadError):
            self.broken += 1
            raise
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        self.stored.append(whole.hexdigest())
        return web.Response(headers={"ETag": '"1"'})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [20_000, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 5 * MEGABYTE + 7])
async def test_file_arrives_as_it_is_with_its_length(tmp_path: Path, size: int) -> None:
    storage, path = Storage(), picture(tmp_path / "a.png", size)
    async with RawTestServer(storage.answer) as server, KlingSession("-", base_url=str(server.make_url("/"))) as kling:
        await kling.upload(path)
    assert storage.stored == [digest(path)]
    assert storage.lengths == [str(size)]


async def test_video_is_streamed_with_its_type(tmp_path: Path) -> None:
    """A video of more than a picture may have is read piece by piece, and named by its content."""
    path, tickets, bodies = tmp_path / "walk.jpg", list[dict[str, object]](), list[StreamedBody]()
    path.write_bytes(video("webm"))
    with path.open("r+b") as file:
        file.truncate(12 * MEGABYTE)

    class Streams(ScriptedTransport):
        async def send_stream(self, request: HttpRequest, body: StreamedBody) -> HttpResponse:
            assert request.body is None
            bodies.append(body)
            return HttpResponse(status=200, headers={"etag": '"1"'})

    async def service(request: HttpRequest) -> HttpResponse:
        tickets.append(json.loads(request.body or b""))
        upload = {"method": "PUT", "url": "https://storage.example/1", "headers": {}}
        data = {"download_url": "https://cdn.example/1.webm", "upload": upload}
        return json_response({"code": 200, "message": "success", "data": data})

    async with KlingSession("-", transport=Streams(service)) as kling:
        await kling.upload(path)
    [ticket], [body] = tickets, bodies
    assert (ticket["filename"], ticket["content_type"]) == (f"{digest(path)[:16]}.webm", "video/webm")
    pieces = [piece async for piece in body]
    assert hashlib.sha256(b"".join(pieces)).hexdigest() == digest(path)
    assert (body.size, max(map(len, pieces))) == (12 * MEGABYTE, PIECE_BYTES)


async def test_refused_upload_begins_anew(tmp_path: Path) -> None:
    storage, path = Storage(), picture(tmp_path / "a.png", MEGABYTE)
    storage.statuses = [503]
    async with RawTestServer(storage.answer) as server, KlingSession("-", base_url=str(server.make_url("/"))) as kling:
        await kling.upload(path)
    assert storage.stored == [digest(path)]
    assert len(storage.lengths) == 2


@pytest.mark.parametrize("change", ["other bytes", "shorter", "gone"])
async def test_file_that_changes_while_it_is_sent_is_not_stored(tmp_path: Path, change: str) -> None:
    storage, path = Storage(together=2), picture(tmp_path / "a.png", 9 * MEGABYTE)
    async with RawTestServer(storage.answer) as server, KlingSession("-", base_url=str(server.make_url("/"))) as kling:
        errors: list[InvalidJobError] = []

        async def upload() -> None:
            try:
                await kling.upload(path)
            except InvalidJobError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload)
            while not storage.lengths:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.001)
            if change == "other bytes":
                with path.open("r+b") as file:
                    file.seek(8 * MEGABYTE)
                    file.write(b"x")
            elif change == "shorter":
                with path.open("r+b") as file:
                    file.truncate(4 * MEGABYTE)
            else:
                path.unlink()
            storage._all_here.set()
    [error] = errors
    assert "has changed" in str(error) or "cannot read" in str(error)
    assert storage.stored == []
    assert len(storage.lengths) == 1, "another attempt would end the same way"


async def test_transport_without_streams_gets_bytes(tmp_path: Path) -> None:
    path, bodies = picture(tmp_path / "a.png", MEGABYTE), list[bytes | None]()
    clip = tmp_path / "long.webm"
    clip.write_bytes(video("webm"))
    with clip.open("r+b") as file:
        file.truncate(12 * MEGABYTE)

    async def service(request: HttpRequest) -> HttpResponse:
        if request.method == "PUT":
            bodies.append(request.body)
            return HttpResponse(status=200, headers={"etag": '"1"'})
        upload = {"method": "PUT", "url": "https://storage.example/1", "headers": {}}
        data = {"download_url": "https://cdn.example/1.png", "upload": upload}
        return json_response({"code": 200, "message": "success", "data": data})

    async with KlingSession("-", transport=ScriptedTransport(service)) as kling:
        await kling.upload(path)
        await kling.upload(clip)
    assert bodies == [path.read_bytes(), clip.read_bytes()]


SCRIPT = """
import asyncio, sys
from pathlib import Path
from kling_async import KlingSession
from kling_async._session.session import engine_of

def peak():
    # Not `ru_maxrss`, which begins with the peak of the process that started this one.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])

async def main(url, folder):
    async with KlingSession("-", base_url=url, max_uploads=200) as kling:
        first, *rest = sorted(Path(folder).iterdir())
        await kling.upload(first)
        turns = engine_of(kling).images.turns
        # As many as it would find out in a while.
        turns.limit._limit = 109.0
        before = peak()
        await asyncio.gather(*map(kling.upload, rest))
        print(peak() - before)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.repeats
async def test_memory_of_109_uploads_of_10_megabytes(tmp_path: Path) -> None:
    """109 are what ultra needs at once, where an upload takes 1.3 s. All are under way before the first is read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(110):
        picture(folder / f"{number:03}.png", 10 * MEGABYTE, number)
    storage = Storage()
    async with RawTestServer(storage.answer) as server:
        command = [sys.executable, "-c", SCRIPT, str(server.make_url("/")), str(folder)]
        async with await anyio.open_process(command, stderr=None) as process:
            while not storage.stored:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.001)
            storage._here, storage.together, storage._all_here = 0, 109, anyio.Event()
            assert process.stdout is not None
            printed = b"".join([chunk async for chunk in process.stdout])
    assert len(storage.stored) == 110
    assert int(printed) * 1024 < 100 * MEGABYTE
    print(f"\nRSS growth with 109 uploads of 10 MB: {int(printed) / 1000:.1f} MB")
