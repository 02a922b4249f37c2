"""Outputs from a real server to a real disk, with everything that gets in between."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import re
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kling_async import storage
from kling_async._core.errors import Spent, StorageError, TransportError
from kling_async._core.http import Timeouts
from kling_async._core.prediction import SavedFile
from kling_async._transport import AiohttpTransport
from kling_async.storage import save_output, target_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.anyio

VIDEO = b"\0\0\0\x20ftypisom" + random.Random(1).randbytes(3 * 2**20 + 123)
KEY = "signature"


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Nothing of the package may block the loop."""
    with blockbuster_ctx("kling_async") as detector:
        yield detector


class QuickClock:
    """A clock that never waits."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def now(self) -> float:
        return 1_000_000.0

    monotonic = now

    async def sleep(self, seconds: float, /) -> None:
        self.pauses.append(seconds)
        await anyio.lowlevel.checkpoint()


class Host:
    """An output host: knows ranges, and does what `replies` say of each request in turn."""

    def __init__(self, transport: AiohttpTransport) -> None:
        self.transport = transport
        self.clock = QuickClock()
        self.content = VIDEO
        self.etag: str | None = '"v1"'
        self.replies: list[Callable[[web.BaseRequest], Any]] = []
        self.ranges: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def save(self, target: Path, attempts: int = 5, rng: Callable[[], float] = random.random) -> SavedFile:
        return await save_output(self.transport, self.url, target, self.clock, attempts=attempts, rng=rng)

    def cut(self, after: int) -> None:
        """The next reply ends after so many bytes of its body."""

        async def reply(request: web.BaseRequest) -> web.StreamResponse:
            response, body = self.whole_or_rest(request)
            response.content_length = len(body)
            await response.prepare(request)
            await response.write(body[:after])
            assert request.transport is not None
            request.transport.close()
            return response

        self.replies.append(reply)

    def status(self, status: int, **headers: str) -> None:
        """The next reply."""

        async def reply(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=status, headers={name.replace("_", "-"): headers[name] for name in headers})

        self.replies.append(reply)

    def whole_or_rest(self, request: web.BaseRequest) -> tuple[web.StreamResponse, bytes]:
        asked = request.headers.get("Range")
        headers = {"ETag": self.etag} if self.etag else {}
        if asked is None or request.headers.get("If-Range", self.etag) != self.etag:
            return web.StreamResponse(headers=headers), self.content
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return web.StreamResponse(status=206, headers=headers), self.content[start:]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        self.headers.append(dict(request.headers))
        if self.replies:
            response: web.StreamResponse = await self.replies.pop(0)(request)
            return response
        response, body = self.whole_or_rest(request)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body)
        return response


@pytest.fixture
async def transport() -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport(timeouts=Timeouts(transfer=5))
    yield transport
    await transport.aclose()


@pytest.fixture
async def host(transport: AiohttpTransport) -> AsyncIterator[Host]:
    host = Host(transport)
    async with RawTestServer(host) as server:
        host.url = str(server.make_url(f"/media/a.mp4?{KEY}=1"))
        yield host


async def listed(folder: Path) -> list[str]:
    return sorted([path.name async for path in anyio.Path(folder).iterdir()])


@asynccontextmanager
async def refused(target: Path) -> AsyncIterator[pytest.ExceptionInfo[StorageError]]:
    """The body ends in a StorageError that says what it is about and leaves nothing behind."""
    before = await listed(target.parent) if target.parent.is_dir() else None
    with pytest.raises(StorageError) as caught:
        yield caught
    error = caught.value
    assert error.target == str(target)
    assert error.spent is Spent.YES
    assert error.advice
    assert KEY not in str(error)
    if before is not None:
        assert await listed(target.parent) == before


async def test_an_output_is_saved(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "video.mp4"
    saved = await host.save(target)
    assert saved == SavedFile(target, len(VIDEO), hashlib.sha256(VIDEO).hexdigest())
    assert target.read_bytes() == VIDEO
    assert await listed(target.parent) == ["video.mp4"]
    assert "Authorization" not in host.headers[0]
    assert host.headers[0]["Accept-Encoding"] == "identity"


async def test_an_older_file_is_replaced(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"old")
    await host.save(target)
    assert target.read_bytes() == VIDEO


async def test_a_failure_leaves_the_older_file(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"old")
    host.status(404)
    async with refused(target):
        await host.save(target)
    assert target.read_bytes() == b"old"


async def test_reading_goes_on_while_a_block_is_written(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = 0
    second = threading.Event()
    gather, write = storage._gather, storage._Part.write

    async def counting(chunks: AsyncIterator[bytes]) -> tuple[bytes, TransportError | None]:
        nonlocal gathered
        block = await gather(chunks)
        gathered += 1
        if gathered == 2:
            second.set()
        return block

    def waiting(part: storage._Part, block: bytes) -> None:
        assert second.wait(5)
        write(part, block)

    monkeypatch.setattr(storage, "_gather", counting)
    monkeypatch.setattr(storage._Part, "write", waiting)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.bytes == len(VIDEO)


async def test_memory_does_not_follow_the_length(transport: AiohttpTransport, tmp_path: Path) -> None:
    size = 48 * 2**20

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = size
        await response.prepare(request)
        for _ in range(size // 2**16):
            await response.write(VIDEO[: 2**16])
        return response

    async with RawTestServer(handler) as server:
        tracemalloc.start()
        try:
            saved = await save_output(transport, str(server.make_url("/")), tmp_path / "v.mp4", QuickClock())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert saved.bytes == size
    assert peak < 12 * 2**20


# Cuts.


async def test_a_cut_transfer_goes_on(host: Host, tmp_path: Path) -> None:
    host.cut(2**20 + 7)
    host.cut(10)
    saved = await host.save(tmp_path / "v.mp4", rng=lambda: 0.0)
    assert saved.sha256 == hashlib.sha256(VIDEO).hexdigest()
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges == [None, f"bytes={2**20 + 7}-", f"bytes={2**20 + 17}-"]
    assert host.headers[1]["If-Range"] == '"v1"'
    assert host.clock.pauses == [0.25, 0.5]


async def test_a_cut_within_the_first_bytes_does_not_hide_what_the_file_is(host: Host, tmp_path: Path) -> None:
    for length in (3, 2, 4):
        host.cut(length)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
async def test_without_a_strong_validator_it_starts_anew(etag: str | None, host: Host, tmp_path: Path) -> None:
    host.etag = etag
    host.cut(2**20)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges == [None, None]


async def test_another_content_starts_anew(host: Host, tmp_path: Path) -> None:
    host.cut(2**20)

    async def changed(request: web.BaseRequest) -> web.StreamResponse:
        host.etag, host.content = '"v2"', VIDEO[:2000]
        response, body = host.whole_or_rest(request)
        assert response.status == 200
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body)
        return response

    host.replies.append(changed)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO[:2000]
    assert saved.sha256 == hashlib.sha256(VIDEO[:2000]).hexdigest()
    assert host.ranges[1] == f"bytes={2**20}-"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, {"Content_Range": f"bytes 5-9/{len(VIDEO)}", "ETag": '"v1"'}),
        (206, {}),
        (206, {"Content_Range": f"bytes {2**20}-{2**20 + 9}/{2**21}", "ETag": '"v2"'}),
        (416, {"Content_Range": "bytes */100"}),
    ],
)
async def test_a_wrong_range_starts_anew(status: int, headers: dict[str, str], host: Host, tmp_path: Path) -> None:
    host.cut(2**20)
    host.status(status, **headers)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges == [None, f"bytes={2**20}-", None]


async def test_a_shorter_range_than_asked_for_is_continued(host: Host, tmp_path: Path) -> None:
    host.cut(2**20)

    async def short(_: web.BaseRequest) -> web.StreamResponse:
        headers = {"Content-Range": f"bytes {2**20}-{2**20 + 99}/{len(VIDEO)}", "ETag": '"v1"'}
        return web.Response(status=206, headers=headers, body=VIDEO[2**20 : 2**20 + 100])

    host.replies.append(short)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges[2] == f"bytes={2**20 + 100}-"


async def test_a_busy_host_is_asked_again_when_it_says(host: Host, tmp_path: Path) -> None:
    host.status(503, Retry_After="7")
    host.status(429)
    await host.save(tmp_path / "v.mp4", rng=lambda: 0.0)
    assert host.clock.pauses == [7.0, 0.5]


async def test_attempts_end(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "v.mp4"
    for _ in range(3):
        host.cut(5)
    async with refused(target) as caught:
        await host.save(target, attempts=3)
    assert isinstance(caught.value.__cause__, TransportError)
    assert "3 times" in str(caught.value)
    assert len(host.ranges) == 3
    assert len(host.clock.pauses) == 2
    for _ in range(2):
        host.status(500)
    async with refused(target):
        await host.save(target, attempts=2)


async def test_a_compressed_output_is_taken_as_it_is_meant(transport: AiohttpTransport, tmp_path: Path) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(body=VIDEO[:1000], headers={"ETag": '"v1"'})
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with RawTestServer(handler) as server:
        saved = await save_output(transport, str(server.make_url("/")), tmp_path / "v.mp4", QuickClock())
    assert saved.path.read_bytes() == VIDEO[:1000]


# Refusals.


@pytest.mark.parametrize(
    ("status", "said"), [(404, "7 days"), (410, "7 days"), (403, "read the prediction"), (304, "304")]
)
async def test_a_refusal_is_final(status: int, said: str, host: Host, tmp_path: Path) -> None:
    host.status(status)
    target = tmp_path / "v.mp4"
    async with refused(target) as caught:
        await host.save(target)
    assert said in str(caught.value)
    assert host.ranges == [None]


@pytest.mark.parametrize("content", [b"<html>expired</html>", b"", b"ftyp"])
async def test_what_is_no_video_is_not_kept_as_one(content: bytes, host: Host, tmp_path: Path) -> None:
    host.content = content
    async with refused(tmp_path / "v.mp4"):
        await host.save(tmp_path / "v.mp4")
    if content:
        assert (await host.save(tmp_path / "v.bin")).bytes == len(content)


async def test_a_file_where_the_folder_should_be(host: Host, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    target = tmp_path / "out" / "v.mp4"
    async with refused(target) as caught:
        await host.save(target)
    assert isinstance(caught.value.__cause__, OSError)
    assert host.ranges == []


async def test_a_folder_where_the_file_should_be(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "v.mp4"
    await anyio.Path(target).mkdir()
    async with refused(target):
        await host.save(target)


async def test_a_folder_that_takes_nothing(host: Host) -> None:
    # Not even root makes files here.
    target = Path("/proc/self/kling/v.mp4")
    with pytest.raises(StorageError):
        await host.save(target)


async def test_a_full_disk(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage._Part.write

    def full(part: storage._Part, block: bytes) -> None:
        if part.size:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(part, block)

    monkeypatch.setattr(storage._Part, "write", full)
    async with refused(tmp_path / "v.mp4") as caught:
        await host.save(tmp_path / "v.mp4")
    assert "No space left" in str(caught.value)
    assert len(host.ranges) == 1


# Cancellation.


def hanging(host: Host, tmp_path: Path) -> asyncio.Event:
    """The next reply stops in the middle of the second block; set when a part is being written."""
    stopped = asyncio.Event()

    async def reply(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(VIDEO)
        await response.prepare(request)
        await response.write(VIDEO[: 3 * 2**19])
        assert [name for name in await listed(tmp_path) if name.endswith(".part")]
        stopped.set()
        await asyncio.sleep(3600)
        return response

    host.replies.append(reply)
    return stopped


@pytest.mark.parametrize("times", [1, 2, 3, 4, 5])
async def test_native_cancellation_leaves_nothing(times: int, host: Host, tmp_path: Path) -> None:
    stopped = hanging(host, tmp_path)
    task = asyncio.create_task(host.save(tmp_path / "v.mp4"))
    await stopped.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert await listed(tmp_path) == []


async def test_a_second_cancellation_does_not_stop_the_removal(host: Host, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    busy = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        stopped = hanging(host, tmp_path)
        task = asyncio.create_task(host.save(tmp_path / "v.mp4"))
        await stopped.wait()
        loop.run_in_executor(None, busy.wait, 5)
        task.cancel()
        while not executor._work_queue.qsize():  # noqa: ASYNC110 -- nothing announces that the removal waits
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        busy.set()
        await loop.run_in_executor(None, len, "")
        assert await listed(tmp_path) == []


async def test_anyio_cancellation_leaves_nothing(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discard = storage._Part.discard

    def slow(part: storage._Part) -> None:
        time.sleep(0.1)
        discard(part)

    monkeypatch.setattr(storage._Part, "discard", slow)
    stopped = hanging(host, tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.save, tmp_path / "v.mp4")
        await stopped.wait()
        tasks.cancel_scope.cancel()
    assert await listed(tmp_path) == []


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("method", ["open", "write", "keep"])
async def test_cancellation_while_a_thread_works_leaves_no_part(
    method: str, times: int, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(storage._Part, method)
    entered, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(part: storage._Part, *args: bytes) -> object:
        loop.call_soon_threadsafe(entered.set)
        go_on.wait(5)
        return original(part, *args)

    monkeypatch.setattr(storage._Part, method, slow)
    task = asyncio.create_task(host.save(tmp_path / "v.mp4"))
    await entered.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert [name for name in await listed(tmp_path) if name != "v.mp4"] == []
    if (tmp_path / "v.mp4").exists():
        assert (tmp_path / "v.mp4").read_bytes() == VIDEO


# Names.


def test_a_file_or_a_folder() -> None:
    assert target_path("out", "shot-1") == Path("out/shot-1.mp4")
    assert target_path(Path("out/a.mp4"), "shot-1") == Path("out/a.mp4")
    assert target_path("out/a.MP4", "shot-1") == Path("out/a.MP4")
    assert target_path("out.d", "shot.1", ".png") == Path("out.d/shot.1.png")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "a\0b", "-rf", "C:x", "CON", "nul.a"]
)
def test_names_that_do_not_go_as_they_are(name: str) -> None:
    path = target_path("out", name)
    assert path.parent == Path("out")
    assert re.search(r"-[0-9a-f]{10}", path.name)
    assert not path.name.startswith((".", "-"))


names = st.text(alphabet=st.characters(), max_size=200) | st.from_regex(r"[A-Za-z0-9._-]{0,200}", fullmatch=True)


@given(names, names)
@example("a/b", "a_b")
@example("x" * 150, "x" * 151)
@example("é", "e")
@example("CON", "con.")
def test_two_names_never_meet(one: str, other: str) -> None:
    assume(one != other)
    first, second = target_path("out", one), target_path("out", other)
    assert first != second
    for path in (first, second):
        assert path.parent == Path("out")
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.mp4", path.name)
        assert len(path.name.encode()) <= 120
        assert path.name.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt1"}
