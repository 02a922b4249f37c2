"""Answers of output hosts that pass: no refusal, error page, slow line or cut video costs a paid video."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, RawTestServer

from kling_async import Job, KlingSession, Prediction, SavedFile, Spent, Status, StorageError, read_ledger
from kling_async._clock import SystemClock
from kling_async._core.adaptive import AdaptiveLimit
from kling_async._core.states import State
from kling_async._turns import Turns
from kling_async.emulator import Emulator, ManualClock, faults
from kling_async.ledger import MemoryLedger, Row
from kling_async.storage import _download
from support.manual import running
from support.outputs import SHORT, VIDEO, Host, QuickClock, output_host
from support.patience import PATIENCE_S
from support.pictures import png
from support.videos import box, mp4

pytestmark = pytest.mark.anyio

HTML = b"<!DOCTYPE html><title>Log in to this network</title>"
HOUR = 3600.0
DAY = 86_400.0
BLOCK = 2**15
"""Bytes; more than the buffer of a file, and much less than is expected in a minute."""

Reply = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with output_host() as host:
        yield host


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def page(body: bytes, kind: str = "text/html", status: int = 200, **headers: str) -> Reply:
    """Return a reply with this body."""

    async def reply(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"Content-Type": kind, **headers})

    return reply


async def refused(host: Host, target: Path, **options: Any) -> StorageError:
    """Return the error of a save, after which the folder is empty."""
    with pytest.raises(StorageError) as caught:
        await host.save(target, **options)
    assert caught.value.spent is Spent.YES
    assert caught.value.advice
    assert listed(target.parent) == []
    return caught.value


# Statuses and error pages.


async def test_long_retry_after_pauses_for_a_minute(host: Host, tmp_path: Path) -> None:
    host.status(503, Retry_After="3600")
    await host.save(tmp_path / "v.mp4", rng=lambda: 0.5, deadline=1800.0)
    assert host.clock.pauses == [60.0]


async def test_wait_for_a_slot_postpones_the_deadline(host: Host, tmp_path: Path) -> None:
    turns = Turns(AdaptiveLimit(1, 1), SystemClock())
    asked = anyio.Event()

    async def refuse(_: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        return web.Response(status=502)

    async def occupy() -> None:
        await asked.wait()
        async with turns.take():
            await anyio.wait_all_tasks_blocked()
            host.clock.elapsed += 1000.0

    host.replies += [refuse, refuse]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(occupy)
        saved = await host.save(tmp_path / "v.mp4", rng=lambda: 0.5, deadline=5.0, turns=turns)
    assert saved.path.read_bytes() == VIDEO


@pytest.mark.parametrize(("status", "limit"), [(503, 4), (429, 4), (403, 8)])
async def test_refusals_of_too_many_downloads_halve_their_limit(
    status: int, limit: int, host: Host, tmp_path: Path
) -> None:
    turns = Turns(AdaptiveLimit(8, 8), SystemClock())
    host.status(status)
    await host.save(tmp_path / "v.mp4", turns=turns)
    assert turns.limit.total == limit
    assert turns.limit.seconds > 0, "what succeeded was counted"


@pytest.mark.parametrize("times", [1, 12])
@pytest.mark.parametrize(
    "status", [302, 401, 403, 408, 425, 499, 520, 522, 524, 530, 304, 307, 400, 402, 405, 418, 451, 501, 507, 511]
)
async def test_refusal_passes(status: int, times: int, host: Host, tmp_path: Path) -> None:
    host.status(status, times)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert listed(tmp_path) == ["v.mp4"]
    assert len(host.ranges) == times + 1


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(page(HTML), id="captive portal"),
        pytest.param(page(HTML, ETag='"v1"'), id="captive portal with the validator of the output"),
        pytest.param(page(HTML, "video/mp4"), id="page that is called a video"),
        pytest.param(page(b'{"error": "overloaded"}', "application/json"), id="json"),
        pytest.param(page(b"<Error><Code>SlowDown</Code></Error>", "application/xml"), id="error of a store"),
        pytest.param(page(b""), id="nothing"),
        pytest.param(page(HTML, status=203), id="page of a proxy"),
        pytest.param(page(HTML, status=206), id="page instead of a range"),
    ],
)
async def test_error_page_passes(reply: Reply, host: Host, tmp_path: Path) -> None:
    host.replies += [reply] * 6
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert listed(tmp_path) == ["v.mp4"]
    assert host.ranges == [None] * 7


async def test_refusal_of_a_resumed_transfer_keeps_its_bytes(host: Host, tmp_path: Path) -> None:
    host.cut(2**20)
    host.status(403, 3)
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert host.ranges == [None] + [f"bytes={2**20}-"] * 4


async def test_progress_postpones_the_deadline(host: Host, tmp_path: Path) -> None:
    """And the pauses begin again."""
    for _ in range(30):
        host.cut(_download.MIN_PROGRESS_BYTES)
    saved = await host.save(tmp_path / "v.mp4", rng=lambda: 0.5, deadline=5.0)
    assert saved.path.read_bytes() == VIDEO
    assert host.clock.pauses == [0.5] * 30


async def test_few_bytes_are_no_progress(host: Host, tmp_path: Path) -> None:
    for _ in range(1000):
        host.cut(1)
    await refused(host, tmp_path / "v.mp4", rng=lambda: 0.5, deadline=60.0)
    assert host.clock.elapsed == pytest.approx(60.0)


async def test_pauses_grow_for_as_long_as_outputs_live(host: Host, tmp_path: Path) -> None:
    host.status(403, 10_000)
    error = await refused(
        host, tmp_path / "v.mp4", rng=lambda: 0.5, deadline=30 * DAY, created_at=host.clock.now() - 2 * DAY
    )
    assert host.clock.elapsed == pytest.approx(5 * DAY)
    assert host.clock.pauses[:11] == [0.5 * 2**number for number in range(10)] + [300.0]
    assert set(host.clock.pauses[10:-1]) == {300.0}
    assert f"403 ({len(host.ranges)} times)" in str(error)


async def test_error_counts_every_distinct_answer(host: Host, tmp_path: Path) -> None:
    host.status(403, 2)
    host.status(302)
    host.replies += [page(HTML)] * 3
    host.cut(10)
    host.status(530, 100)
    error = await refused(host, tmp_path / "v.mp4", rng=lambda: 0.5)
    for answer in ("403 (2 times)", "302 (once)", "200 with text/html that is no MP4", "530 (9 times)"):
        assert answer in str(error)
    assert re.search(r"text/html .*it begins with b'<!DOCTYPE ht' \(3 times\)", str(error))
    assert re.search(r"the connection broke before the reply was complete .*\(once\)", str(error))
    assert "16 attempts over 1800 s" in str(error)
    assert "signature" not in str(error)


async def test_wait_between_attempts_keeps_no_file(host: Host, tmp_path: Path) -> None:
    """Thousands of outputs may wait for a host; each would keep a file open."""
    seen: list[list[str]] = []

    class Looking(QuickClock):
        async def sleep(self, seconds: float, /) -> None:
            seen.append(listed(tmp_path))
            await super().sleep(seconds)

    host.clock = Looking()
    host.status(403)
    host.replies.append(page(HTML))
    host.cut(2**20)
    await host.save(tmp_path / "v.mp4")
    assert seen == [[], [], [".v.mp4.part"]]
    assert listed(tmp_path) == ["v.mp4"]


@pytest.mark.parametrize("fault", [faults.Status(403), faults.Status(530), faults.Status(302)], ids=str)
async def test_batch_saves_after_refusals(fault: faults.Fault, tmp_path: Path) -> None:
    async with Emulator(level="gold", speed=500, profile="tiny") as emulator:
        emulator.faults.add("output", fault, times=7)
        async with (
            KlingSession(
                emulator.api_key,
                base_url=emulator.base_url,
                level="gold",
                clock=emulator.clock,
                ledger=tmp_path / "run.db",
            ) as kling,
            kling.batch(
                [Job(prompt=str(number), image=png()) for number in range(3)], save_to=tmp_path / "out"
            ) as batch,
        ):
            outcomes = [outcome async for outcome in batch]
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert len(listed(tmp_path / "out")) == 3
    assert {row.state for row in read_ledger(tmp_path / "run.db")} == {State.DOWNLOADED}


def done(name: str, host: BaseTestServer) -> Prediction:
    return Prediction(id=name, status=Status.COMPLETED, outputs=(str(host.make_url(f"/{name}.mp4")),))


async def test_output_that_waits_occupies_no_slot(tmp_path: Path) -> None:
    """The clock stands still, so the refused output waits until the other one is saved."""
    clock = ManualClock()
    refusing = anyio.Event()

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/first.mp4" and not (tmp_path / "second.mp4").exists():
            refusing.set()
            return web.Response(status=403)
        return web.Response(body=SHORT)

    async with (
        RawTestServer(serve) as server,
        KlingSession("wsk_key_of_the_test", base_url="http://127.0.0.1:9", max_saving=1, clock=clock) as kling,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(kling.save, done("first", server), tmp_path)
        with anyio.fail_after(PATIENCE_S):
            await refusing.wait()
            await kling.save(done("second", server), tmp_path)
            async with running(clock):
                while not (tmp_path / "first.mp4").exists():  # noqa: ASYNC110 -- nothing announces it
                    await anyio.sleep(0.001)
    assert listed(tmp_path) == ["first.mp4", "second.mp4"]


async def test_saving_that_reaches_the_download_after_the_session_was_closed_ends(tmp_path: Path) -> None:
    """Its row in the ledger is still being read then."""
    reading, closed = anyio.Event(), anyio.Event()
    errors: list[StorageError] = []

    class Slow(MemoryLedger):
        async def owner(self, prediction_id: str) -> Row | None:
            reading.set()
            await closed.wait()
            return await super().owner(prediction_id)

    async with RawTestServer(page(b"", status=403)) as server, anyio.create_task_group() as tasks:
        kling = KlingSession("wsk_key_of_the_test", base_url="http://127.0.0.1:9", clock=ManualClock(), ledger=Slow())

        async def save() -> None:
            with pytest.raises(StorageError, match="session was closed") as caught:
                await kling.save(done("first", server), tmp_path)
            errors.append(caught.value)

        with anyio.fail_after(PATIENCE_S):
            async with kling:
                tasks.start_soon(save)
                await reading.wait()
            closed.set()
            while not errors:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.001)
    assert listed(tmp_path) == []


async def test_closing_the_session_ends_saving(tmp_path: Path) -> None:
    """The clock stands still, so the output would wait for ever."""
    refusing = anyio.Event()
    errors: list[StorageError] = []

    async def serve(_: web.BaseRequest) -> web.StreamResponse:
        refusing.set()
        return web.Response(status=403)

    async with RawTestServer(serve) as server, anyio.create_task_group() as tasks:
        kling = KlingSession("wsk_key_of_the_test", base_url="http://127.0.0.1:9", clock=ManualClock())

        async def save() -> None:
            with pytest.raises(StorageError, match="session was closed") as caught:
                await kling.save(done("first", server), tmp_path)
            errors.append(caught.value)

        with anyio.fail_after(PATIENCE_S):
            async with kling:
                tasks.start_soon(save)
                await refusing.wait()
            while not errors:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.001)
    assert errors[0].spent is Spent.YES
    assert errors[0].prediction_id == "first"
    assert listed(tmp_path) == []


# Slow transfers.


async def test_trickling_downloads_let_others_pass(tmp_path: Path) -> None:
    """Two transfers of a few bytes a minute have both slots; they go on where they were after those that waited."""
    clock = QuickClock()
    served: list[str] = []
    all_wait = anyio.Event()

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        served.append(f"{request.path} {'Range' in request.headers}")
        if not request.path.startswith("/slow"):
            return web.Response(body=SHORT)
        if "Range" in request.headers:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            assert start > BLOCK
            assert request.headers["If-Range"] == '"v1"'
            headers = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{len(VIDEO) - 1}/{len(VIDEO)}"}
            return web.Response(status=206, body=VIDEO[start:], headers=headers)
        response = web.StreamResponse(headers={"ETag": '"v1"'})
        response.content_length = len(VIDEO)
        await response.prepare(request)
        await response.write(VIDEO[:BLOCK])
        await all_wait.wait()
        await response.write(VIDEO[BLOCK : 2 * BLOCK])
        await anyio.sleep(HOUR)
        return response

    saved: dict[str, SavedFile] = {}
    async with (
        RawTestServer(serve) as server,
        KlingSession("wsk_key_of_the_test", base_url="http://127.0.0.1:9", max_saving=2, clock=clock) as kling,
        anyio.create_task_group() as tasks,
    ):

        async def save(name: str) -> None:
            saved[name] = await kling.save(done(name, server), tmp_path)

        with anyio.fail_after(PATIENCE_S):
            for name in ("slow1", "slow2"):
                tasks.start_soon(save, name)
                while size_of(tmp_path / f".{name}.mp4.part") != BLOCK:  # noqa: ASYNC110 -- nothing announces it
                    await anyio.sleep(0.001)
            for name in ("a", "b", "c"):
                tasks.start_soon(save, name)
                await anyio.wait_all_tasks_blocked()
            clock.elapsed += _download.SPEED_WINDOW_S
            all_wait.set()
            while len(saved) < 5:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.001)
    # The third of the others and the first that goes on are in the two slots at once.
    assert sorted(served[2:4]) == ["/a.mp4 False", "/b.mp4 False"]
    assert "/c.mp4 False" in served[4:6]
    assert {"/slow1.mp4 True", "/slow2.mp4 True"} < set(served[4:])
    for name in ("slow1", "slow2"):
        assert saved[name].path.read_bytes() == VIDEO


def size_of(path: Path) -> int:
    """Return the size of a file, 0 without one."""
    return path.stat().st_size if path.exists() else 0


async def test_slow_transfer_that_cannot_be_resumed_completes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun again and again at the same limit, it would never end."""
    host.etag = None
    received = 0
    put = _download._Writer.put

    async def counting(writer: _download._Writer, chunk: bytes) -> None:
        nonlocal received
        received += len(chunk)
        await put(writer, chunk)

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal received
        received = 0
        response = web.StreamResponse()
        response.content_length = len(VIDEO)
        await response.prepare(request)
        for start in range(0, len(VIDEO), BLOCK):
            block = VIDEO[start : start + BLOCK]
            host.clock.elapsed += len(block) / (_download.MIN_SPEED / 3)
            await response.write(block)
            # Until it is received, time stands still.
            while received < start + len(block):
                if request.transport is None or request.transport.is_closing():
                    return response
                await anyio.lowlevel.checkpoint()
        return response

    monkeypatch.setattr(_download._Writer, "put", counting)
    host.replies += [slow] * 100
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert len(host.ranges) == 3


# Incomplete videos.


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(VIDEO[:-1], id="the last byte is missing"),
        pytest.param(VIDEO[: len(VIDEO) // 2], id="half"),
        pytest.param(box(b"ftyp", b"isom" + bytes(20)), id="no moov"),
        pytest.param(VIDEO + box(b"moof", b"x" * 9)[:-1], id="a fragment is cut"),
    ],
)
async def test_incomplete_mp4_is_fetched_again(content: bytes, host: Host, tmp_path: Path) -> None:
    """Its length is the announced one, and so is its validator."""
    host.replies += [page(content, "video/mp4", ETag='"v1"')] * 2
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
    assert listed(tmp_path) == ["v.mp4"]
    assert host.ranges == [None] * 3


async def test_same_incomplete_mp4_is_an_error(host: Host, tmp_path: Path) -> None:
    """Three times over a minute: the host has no other. It is no file under the name of a video."""
    host.content = VIDEO[:-1]
    error = await refused(host, tmp_path / "v.mp4", rng=lambda: 0.5)
    assert "only an incomplete MP4" in str(error)
    assert f"of {len(VIDEO) - 1} bytes with SHA-256" in str(error)
    assert "'mdat' box ends at byte" in str(error)
    assert "refund" in str(error)
    assert host.clock.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


async def test_incomplete_mp4s_that_differ_are_no_error(host: Host, tmp_path: Path) -> None:
    """Each is cut elsewhere: the host has more than it sends."""
    host.replies += [page(mp4(2**21, seed=number)[: 2**20], "video/mp4") for number in range(12)]
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO


# Redirects.


@pytest.mark.promise(7)
async def test_redirect_loop_ends(host: Host, tmp_path: Path) -> None:
    host.replies += [page(b"", status=302, Location="/media/b.mp4")] * 10_000
    error = await refused(host, tmp_path / "v.mp4", rng=lambda: 0.5)
    assert "10 redirects, one after another" in str(error)
    assert host.clock.elapsed == pytest.approx(1800.0)


async def test_redirect_loop_passes(host: Host, tmp_path: Path) -> None:
    host.replies += [page(b"", status=302, Location="/media/b.mp4")] * 80
    saved = await host.save(tmp_path / "v.mp4")
    assert saved.path.read_bytes() == VIDEO
