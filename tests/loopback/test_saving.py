"""Saving videos of a session: names, concurrency, and existing files on a second run."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from kling_async import (
    ConfigurationError,
    Job,
    KlingSession,
    OutputGoneError,
    Outputs,
    Prediction,
    SavedFile,
    Status,
    read_ledger,
)
from kling_async.emulator import Emulator, ManualClock
from support.manual import running
from support.outputs import SHORT
from support.patience import PATIENCE_S
from support.pictures import png
from support.videos import mp4

pytestmark = pytest.mark.anyio


def session(emulator: Emulator, **options: Any) -> KlingSession:
    return KlingSession(
        emulator.api_key,
        base_url=emulator.base_url,
        level="gold",
        clock=emulator.clock,
        **options,
    )


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


async def test_batch_with_name_template_is_resumed(tmp_path: Path) -> None:
    jobs = {key: Job(prompt=key, image=png()) for key in ("one", "../../two", "/etc/passwd", "Three", "three")}
    where = f"{tmp_path}/out/{{batch}}/{{date}}/{{model}}/{{shard}}/{{key}}.mp4"
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        days = {datetime.fromtimestamp(emulator.clock.now(), UTC).date()}  # The test may run past midnight.
        seen = []
        for _ in range(2):
            async with (
                session(emulator, ledger=tmp_path / "run.db") as kling,
                kling.batch(jobs, name="spring", save_to=where) as batch,
            ):
                seen.append({outcome.key: outcome.saved async for outcome in batch})
        assert emulator.counts["output"] == 5
        days.add(datetime.fromtimestamp(emulator.clock.now(), UTC).date())
    assert seen[0] == seen[1]
    assert {row.path for row in read_ledger(tmp_path / "run.db")} == {str(saved) for saved in seen[0].values()}
    found = files(tmp_path / "out")
    assert len(found) == 5
    assert all(name.startswith("spring/") and "/kling-v2.1-standard/" in name for name in found)
    assert {datetime.fromisoformat(name.split("/")[1]).date() for name in found} <= days
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("run.db")) == ["out"]


async def test_single_save_uses_batch_name(tmp_path: Path) -> None:
    async with (
        Emulator(level="gold", speed=200, profile="tiny") as emulator,
        session(emulator, ledger=tmp_path / "run.db") as kling,
    ):
        async with kling.batch({"one": Job(prompt="x", image=png())}, name="spring") as batch:
            (done,) = [prediction async for prediction in batch.completed()]
        await kling.save(done, f"{tmp_path}/out/{{batch}}/{{model}}-{{key}}")
    assert files(tmp_path / "out") == ["spring/kling-v2.1-standard-one.mp4"]


async def test_second_run_finds_output_saved_beside_other_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one.mp4").write_bytes(b"another job's")
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        saved: list[SavedFile | None] = []
        for _ in range(2):
            async with (
                session(emulator, ledger=tmp_path / "run.db") as kling,
                kling.batch({"one": Job(prompt="x", image=png())}, save_to=tmp_path / "out") as batch,
            ):
                saved += [outcome.saved async for outcome in batch]
        assert emulator.counts["output"] == 1
    assert saved[0] == saved[1]
    assert files(tmp_path / "out") == sorted(["one.mp4", Path(os.fspath(saved[0] or "")).name])
    assert (tmp_path / "out" / "one.mp4").read_bytes() == b"another job's"


async def test_invalid_output_name_submits_nothing(tmp_path: Path) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator, session(emulator) as kling:
        with pytest.raises(ConfigurationError, match=r"\{shot\}"):
            async with kling.batch([Job(prompt="x", image=png())], save_to=f"{tmp_path}/{{shot}}.mp4"):
                raise AssertionError("entered")
        assert not emulator.charges()


async def test_expired_output_differs_from_failure(tmp_path: Path) -> None:
    clock = ManualClock()
    async with (
        Emulator(level="gold", profile="tiny", clock=clock) as emulator,
        KlingSession(emulator.api_key, base_url=emulator.base_url, level="gold", clock=clock) as kling,
    ):
        submitted = await kling.submit(prompt="x", image=png())
        await clock.advance(600)
        done = await kling.get(submitted.id)
        await clock.advance(8 * 86400)
        async with running(clock):
            with pytest.raises(OutputGoneError) as caught:
                await kling.save(done, tmp_path)
    assert caught.value.prediction_id == done.id
    assert files(tmp_path) == []


async def test_concurrent_saves_are_limited(tmp_path: Path) -> None:
    """The host responds once three requests have arrived, and counts the concurrent ones."""
    here = most = 0
    full = anyio.Event()

    async def serve(_: web.BaseRequest) -> web.StreamResponse:
        nonlocal here, most
        here += 1
        most = max(most, here)
        if here == 3:
            full.set()
        await full.wait()
        # Leave time for a request in excess of the limit.
        await anyio.sleep(0.02)
        here -= 1
        return web.Response(body=SHORT)

    async with (
        RawTestServer(serve) as host,
        Emulator(level="gold", profile="tiny") as emulator,
        session(emulator, max_saving=3) as kling,
        anyio.create_task_group() as tasks,
    ):
        for number in range(12):
            done = Prediction(id=f"p{number}", status=Status.COMPLETED, outputs=(str(host.make_url("/v.mp4")),))
            tasks.start_soon(kling.save, done, tmp_path)
    assert most == 3
    assert len(files(tmp_path)) == 12


async def test_wait_for_download_slot_can_be_cancelled(tmp_path: Path) -> None:
    begun = anyio.Event()

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/first.mp4":
            begun.set()
            await anyio.sleep(3600)
        return web.Response(body=SHORT)

    async with (
        RawTestServer(serve) as host,
        Emulator(level="gold", profile="tiny") as emulator,
        session(emulator, max_saving=1) as kling,
    ):

        def done(name: str) -> Prediction:
            return Prediction(id=name, status=Status.COMPLETED, outputs=(str(host.make_url(f"/{name}.mp4")),))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kling.save, done("first"), tmp_path)
            await begun.wait()
            tasks.start_soon(kling.save, done("second"), tmp_path)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE_S):
            saved = await kling.save(done("third"), tmp_path)
    assert files(tmp_path) == [saved.path.name]


async def test_jobs_with_same_name_lose_nothing(tmp_path: Path) -> None:
    """Two batches may have the same keys."""

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=mp4(5000, seed=int(request.path[1])))

    async with (
        RawTestServer(serve) as host,
        Emulator(level="gold", profile="tiny") as emulator,
        session(emulator) as kling,
    ):
        saved = []
        for number in (1, 2, 1, 2):
            url = str(host.make_url(f"/{number}"))
            done = Prediction(id=f"p{number}", key="anna", status=Status.COMPLETED, outputs=(url,))
            saved.append(await kling.save(done, Outputs(tmp_path, "{key}")))
    for file, seed in zip(saved, (1, 2, 1, 2), strict=True):
        assert file.path.read_bytes() == mp4(5000, seed=seed)
    assert len(files(tmp_path)) == 2
    assert saved[:2] == saved[2:]
