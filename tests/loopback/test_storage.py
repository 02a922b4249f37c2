"""Outputs from a real server to a real disk, with broken transfers, full disks and cancellation."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from blockbuster import BlockBuster, blockbuster_ctx

from kling_async._core.prediction import SavedFile
from kling_async.errors import OutputGoneError, Spent, StorageError, TransportError
from kling_async.storage import Fields, Outputs, _download, _part, save_output
from support.outputs import KEY, SHORT, VIDEO, Host, QuickClock, output_host
from support.patience import PATIENCE_S
from support.videos import box, mp4

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fail when code of the package blocks the event loop."""
    with blockbuster_ctx("kling_async") as detector:
        yield detector


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with output_host() as host:
        yield host


async def listed(folder: Path) -> list[str]:
    return sorted([path.name async for path in anyio.Path(folder).iterdir()])


@asynccontextmanager
async def refused(target: Path) -> AsyncIterator[pytest.ExceptionInfo[StorageError]]:
    """Expect a StorageError that is complete, and a folder that is unchanged."""
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


async def test_output_is_saved(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "video.mp4"
    saved = await host.save(target)
    assert saved == SavedFile(target, len(VIDEO), hashlib.sha256(VIDEO).hexdigest())
    assert target.read_bytes() == VIDEO
    assert await listed(target.parent) == ["video.mp4"]
    assert "Authorization" not in host.headers[0]
    assert host.headers[0]["Accept-Encoding"] == "identity"


# Existing files.


async def test_file_with_other_content_is_kept(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"another job's")
    saved = await host.save(target)
    assert target.read_bytes() == b"another job's"
    assert saved.path.name == f"video-{saved.sha256[:8]}.mp4"
    assert saved.path.read_bytes() == VIDEO
    again = await host.save(target)
    assert again == saved
    assert await listed(tmp_path) == sorted(["video.mp4", saved.path.name])


async def test_file_with_same_content_is_not_rewritten(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    first = await host.save(target)
    before = target.stat()
    assert await host.save(target) == first
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert await listed(tmp_path) == ["video.mp4"]


async def test_error_when_both_names_exist(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"one")
    saved = await host.save(target)
    saved.path.write_bytes(b"two")
    async with refused(target) as caught:
        await host.save(target)
    assert "other content" in str(caught.value)
    assert (target.read_bytes(), saved.path.read_bytes()) == (b"one", b"two")


async def test_replace_replaces_file(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"old")
    outputs = Outputs(tmp_path, replace=True)
    saved = await host.save(outputs.target(Fields(key="video", id="p1")))
    assert saved.path == target
    assert target.read_bytes() == VIDEO
    assert await listed(tmp_path) == ["video.mp4"]


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
async def test_file_system_without_hard_links(
    error: int, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(error, "no links here")

    monkeypatch.setattr(os, "link", refuses)
    target = tmp_path / "video.mp4"
    assert (await host.save(target)).path == target
    target.write_bytes(b"another job's")
    saved = await host.save(target)
    assert target.read_bytes() == b"another job's"
    assert await listed(tmp_path) == sorted(["video.mp4", saved.path.name])


async def test_concurrent_saves_to_one_name(host: Host, tmp_path: Path) -> None:
    """Keys that differ only by case do so on file systems that ignore it."""
    contents = [mp4(2**20 + number, seed=number) for number in range(6)]

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=contents[int(request.path.strip("/"))])

    async with RawTestServer(serve) as server, anyio.create_task_group() as tasks:
        done: dict[int, SavedFile] = {}

        async def save(number: int) -> None:
            url = str(server.make_url(f"/{number}"))
            done[number] = await save_output(host.transport, url, tmp_path / "v.mp4", QuickClock())

        for number in range(6):
            tasks.start_soon(save, number)
    assert [done[number].path.read_bytes() == contents[number] for number in range(6)] == [True] * 6
    assert len(await listed(tmp_path)) == 6
    assert "v.mp4" in await listed(tmp_path)


# Leftovers of killed processes.

KILLED = """
import asyncio, sys
from pathlib import Path
from kling_async._clock import SystemClock
from kling_async._http.transport import AiohttpTransport
from kling_async.storage import save_output
asyncio.run(save_output(AiohttpTransport(), sys.argv[1], Path(sys.argv[2]), SystemClock()))
"""


async def test_leftover_of_killed_process_is_removed(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "v.mp4"
    for _ in range(2):
        stopped = hanging(host, tmp_path)
        process = await anyio.open_process(
            [sys.executable, "-c", KILLED, host.url, str(target)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=None,
        )
        async with process:
            with anyio.fail_after(PATIENCE_S):
                await stopped.wait()
                while not (tmp_path / ".v.mp4.part").stat().st_size:  # noqa: ASYNC110 -- nothing signals it
                    await anyio.sleep(0.01)
            process.kill()
        assert await listed(tmp_path) == [".v.mp4.part"]
    saved = await host.save(target)
    assert saved.path.read_bytes() == VIDEO
    assert await listed(tmp_path) == ["v.mp4"]


async def test_part_in_use_is_kept(host: Host, tmp_path: Path) -> None:
    stopped = hanging(host, tmp_path)
    task = asyncio.create_task(host.save(tmp_path / "v.mp4"))
    await stopped.wait()
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path == tmp_path / "v.mp4"
    assert ".v.mp4.part" in await listed(tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await listed(tmp_path) == ["v.mp4"]
    assert saved.path.read_bytes() == VIDEO


async def test_kill_between_link_and_unlink_loses_nothing(host: Host, tmp_path: Path) -> None:
    """The part and the saved file are the same file then; it must not be truncated."""
    target, part = tmp_path / "v.mp4", tmp_path / ".v.mp4.part"
    target.write_bytes(SHORT)
    part.hardlink_to(target)
    saved = await host.save(target)
    assert target.read_bytes() == SHORT
    assert saved.path.read_bytes() == VIDEO
    assert not part.exists()


async def test_symlink_in_place_of_part_is_not_followed(host: Host, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".v.mp4.part").symlink_to(victim)
    await host.save(tmp_path / "out" / "v.mp4")
    assert victim.read_bytes() == b"dear"
    assert (tmp_path / "out" / "v.mp4").read_bytes() == VIDEO


async def test_failure_keeps_existing_file(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"old")
    host.status(403, 100)
    async with refused(target):
        await host.save(target)
    assert target.read_bytes() == b"old"


async def test_reading_continues_while_disk_is_busy(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = 0
    third = threading.Event()
    put, write = _download._Writer.put, _part.Part.write

    async def counting(writer: _download._Writer, chunk: bytes) -> None:
        nonlocal given
        given += 1
        if given == 3:
            third.set()
        await put(writer, chunk)

    def waiting(part: _part.Part, chunk: bytes) -> None:
        assert third.wait(PATIENCE_S)
        write(part, chunk)

    monkeypatch.setattr(_download._Writer, "put", counting)
    monkeypatch.setattr(_part.Part, "write", waiting)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.bytes == len(VIDEO)


async def test_reading_pauses_for_slow_disk(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unwritten = most = 0
    full = threading.Event()
    put, write = _download._Writer.put, _part.Part.write

    async def counting(writer: _download._Writer, chunk: bytes) -> None:
        nonlocal unwritten, most
        unwritten += len(chunk)
        most = max(most, unwritten)
        if unwritten >= 2**19:
            full.set()
        await put(writer, chunk)

    def slow(part: _part.Part, chunk: bytes) -> None:
        nonlocal unwritten
        # Write nothing before as much is buffered as may be.
        assert full.wait(PATIENCE_S)
        time.sleep(0.002)
        write(part, chunk)
        unwritten -= len(chunk)

    monkeypatch.setattr(_download, "_MAX_BUFFERED_BYTES", 2**19)
    monkeypatch.setattr(_download._Writer, "put", counting)
    monkeypatch.setattr(_part.Part, "write", slow)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.sha256 == hashlib.sha256(VIDEO).hexdigest()
    assert 2**19 <= most < 2**20 < len(VIDEO)


async def test_memory_is_independent_of_length(host: Host, tmp_path: Path) -> None:
    size = 48 * 2**20
    whole = mp4(size)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = size
        await response.prepare(request)
        for start in range(0, size, 2**16):
            await response.write(whole[start : start + 2**16])
        return response

    async with RawTestServer(handler) as server:
        tracemalloc.start()
        try:
            saved = await save_output(host.transport, str(server.make_url("/")), tmp_path / "v.mp4", QuickClock())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert saved.bytes == size
    assert peak < 12 * 2**20


# Broken transfers.


async def test_broken_transfer_resumes(host: Host, tmp_path: Path) -> None:
    host.cut(2**20 + 7)
    host.cut(10)
    saved = await host.save(tmp_path / "v.mp4", rng=lambda: 0.0)
    assert saved.sha256 == hashlib.sha256(VIDEO).hexdigest()
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges == [None, f"bytes={2**20 + 7}-", f"bytes={2**20 + 17}-"]
    assert host.headers[1]["If-Range"] == '"v1"'
    assert host.clock.pauses == [0.25, 0.5]


async def test_transfer_broken_in_first_bytes_resumes(host: Host, tmp_path: Path) -> None:
    for length in (3, 2, 4):
        host.cut(length)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
async def test_transfer_without_strong_validator_restarts(etag: str | None, host: Host, tmp_path: Path) -> None:
    host.etag = etag
    host.cut(2**20)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges == [None, None]


async def test_changed_content_restarts(host: Host, tmp_path: Path) -> None:
    host.cut(2**20)

    async def changed(request: web.BaseRequest) -> web.StreamResponse:
        host.etag, host.content = '"v2"', SHORT
        response, body = host.whole_or_rest(request)
        assert response.status == 200
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body)
        return response

    host.replies.append(changed)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == SHORT
    assert saved.sha256 == hashlib.sha256(SHORT).hexdigest()
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
async def test_wrong_range_restarts(status: int, headers: dict[str, str], host: Host, tmp_path: Path) -> None:
    host.cut(2**20)
    host.status(status, **headers)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges == [None, f"bytes={2**20}-", None]


async def test_shorter_range_resumes(host: Host, tmp_path: Path) -> None:
    host.cut(2**20)

    async def short(_: web.BaseRequest) -> web.StreamResponse:
        headers = {"Content-Range": f"bytes {2**20}-{2**20 + 99}/{len(VIDEO)}", "ETag": '"v1"'}
        return web.Response(status=206, headers=headers, body=VIDEO[2**20 : 2**20 + 100])

    host.replies.append(short)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges[2] == f"bytes={2**20 + 100}-"


async def test_retry_after_is_honoured(host: Host, tmp_path: Path) -> None:
    host.status(503, Retry_After="7")
    host.status(429)
    await host.save(tmp_path / "v.mp4", rng=lambda: 0.0)
    assert host.clock.pauses == [7.0, 0.5]


@pytest.mark.promise(7)
async def test_attempts_end_at_the_deadline(host: Host, tmp_path: Path) -> None:
    """The last attempt is made at the deadline. What was new in the first one postpones it, and equal bytes do not."""
    target = tmp_path / "v.mp4"
    host.etag = None
    for _ in range(100):
        host.cut(5)
    async with refused(target) as caught:
        await host.save(target, deadline=60.0, rng=lambda: 0.5)
    assert isinstance(caught.value.__cause__, TransportError)
    assert host.clock.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 28.5]
    assert len(host.ranges) == 8
    assert "8 attempts over 60 s" in str(caught.value)


async def test_compressed_output_is_decoded(host: Host, tmp_path: Path) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(body=SHORT, headers={"ETag": '"v1"'})
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with RawTestServer(handler) as server:
        saved = await save_output(host.transport, str(server.make_url("/")), tmp_path / "v.mp4", QuickClock())
    assert saved.path.read_bytes() == SHORT


# Redirects.


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.promise(8)
async def test_redirected_url_is_not_requoted(*, absolute: bool, host: Host, tmp_path: Path) -> None:
    """The signature covers the very characters of the path and the query."""
    path = "/a%2Fb%7Ec/v%20(1).mp4?X-Amz-Signature=a%2Bb%2fc%3D~%7E&x=%41"
    seen: list[str] = []

    async def moved(request: web.BaseRequest) -> web.StreamResponse:
        assert "Authorization" not in request.headers
        seen.append(request.raw_path)
        return web.Response(body=SHORT)

    async with RawTestServer(moved) as other:
        host.status(302, Location=str(other.make_url("/")).rstrip("/") + path if absolute else path)
        host.replies.append(moved)
        saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == SHORT
    assert seen == [path]


# Errors.


DAY = 86_400.0


@pytest.mark.parametrize("age", [0.0, 6 * DAY, None])
@pytest.mark.parametrize("status", [404, 410])
async def test_missing_output_is_retried(status: int, age: float | None, host: Host, tmp_path: Path) -> None:
    for _ in range(4):
        host.status(status)
    created_at = None if age is None else host.clock.now() - age
    saved = await host.save(tmp_path / "v.mp4", rng=lambda: 0.5, created_at=created_at)
    assert saved.path.read_bytes() == VIDEO
    assert host.clock.pauses == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("age", [0.0, 6.9 * DAY, None])
async def test_missing_output_within_lifetime_is_not_expired(age: float | None, host: Host, tmp_path: Path) -> None:
    host.status(404, 100)
    target = tmp_path / "v.mp4"
    async with refused(target) as caught:
        await host.save(target, created_at=None if age is None else host.clock.now() - age)
    assert not isinstance(caught.value, OutputGoneError)
    assert f"404 ({len(host.ranges)} times)" in str(caught.value)
    assert host.clock.elapsed == pytest.approx(1800.0)


@pytest.mark.parametrize("status", [404, 410])
async def test_missing_output_past_lifetime_is_expired(status: int, host: Host, tmp_path: Path) -> None:
    """It is believed when it was said three times, and over a minute: what is expired is not asked for again."""
    target = tmp_path / "v.mp4"
    for _ in range(50):
        host.status(status)
        host.status(503)
    async with refused(target) as caught:
        await host.save(target, rng=lambda: 0.5, created_at=host.clock.now() - 7 * DAY)
    assert isinstance(caught.value, OutputGoneError)
    assert "generated and paid for again" in str(caught.value)
    assert host.clock.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]


@pytest.mark.parametrize("pauses", [2, 7])
async def test_output_past_lifetime_that_is_found_again_is_saved(pauses: int, host: Host, tmp_path: Path) -> None:
    """Twice over more than a minute is not enough, nor is seven times within one."""
    first = {"Retry_After": "90"} if pauses == 2 else {}
    host.status(404, **first)
    host.status(404, pauses - 1)
    saved = await host.save(tmp_path / "v.mp4", rng=lambda: 0.0, created_at=host.clock.now() - 8 * DAY)
    assert saved.bytes == len(VIDEO)


async def test_single_miss_past_lifetime_is_retried(host: Host, tmp_path: Path) -> None:
    host.status(404)
    saved = await host.save(tmp_path / "v.mp4", created_at=host.clock.now() - 8 * DAY)
    assert saved.bytes == len(VIDEO)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"<html>expired</html>", id="html"),
        pytest.param(b"", id="empty"),
        pytest.param(b"ftyp", id="shorter than a head"),
        pytest.param(VIDEO[:-1], id="the last byte is missing"),
        pytest.param(VIDEO[: len(VIDEO) // 2], id="half"),
        pytest.param(box(b"ftyp", b"isom"), id="no moov"),
        pytest.param(box(b"ftyp", b"isom") + box(b"mdat", bytes(99)), id="mdat alone"),
        pytest.param(box(b"ftyp", b"isom") + box(b"moov", b"") + b"\0\0\0\1mdat", id="a long box cut in its head"),
        pytest.param(VIDEO + box(b"moof", b"x" * 9)[:-1], id="a fragment is cut"),
        pytest.param(box(b"moov", b"") + box(b"ftyp", b"") + box(b"mdat", b""), id="ftyp is not first"),
    ],
)
async def test_incomplete_mp4_is_refused(content: bytes, host: Host, tmp_path: Path) -> None:
    host.content = content
    async with refused(tmp_path / "v.mp4"):
        await host.save(tmp_path / "v.mp4")
    if content:
        assert (await host.save(tmp_path / "v.bin")).bytes == len(content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(box(b"ftyp", b"isom") + box(b"mdat", b"1") + box(b"moov", b""), id="moov at the end"),
        pytest.param(box(b"ftyp", b"") + box(b"moov", b"") + b"\0\0\0\0mdatabc", id="the last box is open"),
        pytest.param(box(b"ftyp", b"") + box(b"moov", b"") + box(b"mdat", b"abc", long=True), id="a long length"),
        pytest.param(VIDEO + bytes(7), id="padding"),
        pytest.param(VIDEO + b"\xff" * 40, id="what is no box follows"),
    ],
)
async def test_complete_mp4_of_any_layout_is_saved(content: bytes, host: Host, tmp_path: Path) -> None:
    host.content = content
    assert (await host.save(tmp_path / "v.mp4")).bytes == len(content)


async def test_file_in_place_of_folder(host: Host, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    target = tmp_path / "out" / "v.mp4"
    async with refused(target) as caught:
        await host.save(target)
    assert isinstance(caught.value.__cause__, OSError)
    assert host.ranges == []


async def test_folder_in_place_of_file(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "v.mp4"
    await anyio.Path(target).mkdir()
    async with refused(target):
        await host.save(target)


async def test_folder_without_write_access(host: Host) -> None:
    # Not even root can create files here.
    target = Path("/proc/self/kling/v.mp4")
    with pytest.raises(StorageError):
        await host.save(target)


async def test_full_disk(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _part.Part.write

    def full(part: _part.Part, chunk: bytes) -> None:
        if part.size:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(part, chunk)

    monkeypatch.setattr(_part.Part, "write", full)
    async with refused(tmp_path / "v.mp4") as caught:
        await host.save(tmp_path / "v.mp4")
    assert "No space left" in str(caught.value)
    assert len(host.ranges) == 1


# Cancellation.


def hanging(host: Host, tmp_path: Path) -> asyncio.Event:
    """Let the next response stall in its second block; the event is set when the part exists."""
    stopped = asyncio.Event()

    async def reply(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(VIDEO)
        await response.prepare(request)
        await response.write(VIDEO[: _download._MAX_BUFFERED_BYTES * 3 // 2])
        assert [name for name in await listed(tmp_path) if name.endswith(".part")]
        stopped.set()
        await asyncio.sleep(3600)
        return response

    host.replies.append(reply)
    return stopped


@pytest.mark.parametrize("times", [1, 2, 3, 4, 5])
async def test_native_cancellation_leaves_no_file(times: int, host: Host, tmp_path: Path) -> None:
    stopped = hanging(host, tmp_path)
    task = asyncio.create_task(host.save(tmp_path / "v.mp4"))
    await stopped.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await left_empty(tmp_path)


async def left_empty(folder: Path, *, but: str = "") -> None:
    """Wait until a thread has removed what was begun; files that appear late are found as well."""
    await asyncio.sleep(0.05)
    with anyio.fail_after(PATIENCE_S):
        while set(await listed(folder)) - {but}:  # noqa: ASYNC110 -- nothing announces it
            await asyncio.sleep(0.01)


async def test_second_cancellation_does_not_stop_removal(host: Host, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    busy = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        stopped = hanging(host, tmp_path)
        task = asyncio.create_task(host.save(tmp_path / "v.mp4"))
        await stopped.wait()
        loop.run_in_executor(None, busy.wait, PATIENCE_S)
        task.cancel()
        while not executor._work_queue.qsize():  # noqa: ASYNC110 -- nothing signals that the removal is queued
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        busy.set()
        await loop.run_in_executor(None, len, "")
        assert await listed(tmp_path) == []


async def test_anyio_cancellation_leaves_no_file(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discard = _part.Part.discard

    def slow(part: _part.Part) -> None:
        time.sleep(0.1)
        discard(part)

    monkeypatch.setattr(_part.Part, "discard", slow)
    stopped = hanging(host, tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.save, tmp_path / "v.mp4")
        await stopped.wait()
        tasks.cancel_scope.cancel()
    assert await listed(tmp_path) == []


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("method", ["open", "write", "keep"])
async def test_cancellation_during_thread_work_leaves_no_part(
    method: str, times: int, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(_part.Part, method)
    entered, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(part: _part.Part, *args: list[bytes], **options: bool) -> object:
        loop.call_soon_threadsafe(entered.set)
        go_on.wait(PATIENCE_S)
        return original(part, *args, **options)

    monkeypatch.setattr(_part.Part, method, slow)
    task = asyncio.create_task(host.save(tmp_path / "v.mp4"))
    with anyio.fail_after(PATIENCE_S):
        await entered.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await left_empty(tmp_path, but="v.mp4")
    if (tmp_path / "v.mp4").exists():
        assert (tmp_path / "v.mp4").read_bytes() == VIDEO
