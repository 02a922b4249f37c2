"""Rehearsals and real runs in the same folder: neither takes the other's names, ledger or results."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from kling_async import Job
from kling_async._core.content import content_of
from kling_async.cli.options import RunOptions
from kling_async.emulator import Emulator
from kling_async.ledger import Entry, SQLiteLedger, State, read_ledger
from support.cli import Cli, jobs
from support.pictures import jpeg

pytestmark = pytest.mark.anyio

REHEARSAL = ("--emulator", "--speed", "500", "--profile", "tiny", "--level", "gold", "--quiet")
REAL = ("--level", "gold", "--quiet", "--yes")
REPORTS = {"results.jsonl", "errors.jsonl", "stats.json"}


def at(emulator: Emulator) -> dict[str, str]:
    return {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}


def service() -> Emulator:
    """Return a service whose videos differ from those of a rehearsal."""
    return Emulator(speed=100, timing=60, profile="video")


def manifest(folder: Path, *keys: str) -> str:
    (folder / "face.jpg").write_bytes(jpeg())
    return jobs(folder, *({"key": key, "image": "face.jpg"} for key in keys))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


async def test_real_run_after_rehearsal_in_same_folder(cli: Cli) -> None:
    path = manifest(cli.folder, "anna", "lake")
    places = ("--out", "videos", "--results", "reports", "--gallery")
    rehearsed = cli("run", path, *places, *REHEARSAL)
    assert (rehearsed.returncode, rehearsed.stderr) == (0, "")
    assert "2 of 2 videos in videos/rehearsal" in rehearsed.stdout
    own = {f"rehearsal/{name}" for name in ("anna.mp4", "lake.mp4", "rehearsal.db", "gallery/index.html")}
    assert names(cli.folder / "videos") >= own
    fakes = {name: (cli.folder / "videos" / name).read_bytes() for name in names(cli.folder / "videos")}
    async with service() as emulator:
        done = await run_sync(partial(cli, "run", path, *places, *REAL, **at(emulator)))
        assert (done.returncode, len(emulator.charges())) == (0, 2)
    real = names(cli.folder / "videos") - set(fakes)
    assert real >= {"anna.mp4", "lake.mp4", "run.db", "gallery/index.html"}
    assert not any(name.startswith("rehearsal/") for name in real)
    assert {name: (cli.folder / "videos" / name).read_bytes() for name in fakes} == fakes
    assert names(cli.folder / "reports") == REPORTS | {f"rehearsal/{name}" for name in REPORTS}
    assert "All jobs have ended" in cli("status", "videos/run.db").stdout
    # A rehearsal after the real run changes nothing of it.
    paid = {name: (cli.folder / "videos" / name).read_bytes() for name in real}
    assert cli("run", path, *places, *REHEARSAL).returncode == 0
    assert {name: (cli.folder / "videos" / name).read_bytes() for name in real} == paid
    assert {name for name in names(cli.folder / "videos") if name.endswith(".mp4")} == {
        *("anna.mp4", "lake.mp4", "rehearsal/anna.mp4", "rehearsal/lake.mp4")
    }


async def test_commands_refuse_rehearsals_without_asking_the_service(cli: Cli) -> None:
    path = manifest(cli.folder, "anna")
    assert cli("run", path, "--out", "videos", *REHEARSAL).returncode == 0
    ledger = "videos/rehearsal/rehearsal.db"
    async with service() as emulator:
        for words in (
            ("run", path, "--out", "videos", "--ledger", ledger, *REAL),
            ("resume", ledger, "--out", "videos", *REAL),
            ("fetch", "--ledger", ledger, "--out", "videos"),
        ):
            done = await run_sync(partial(cli, *words, **at(emulator)))
            assert (done.returncode, "got that of a rehearsal" in done.stderr) == (2, True), done.stderr
        assert emulator.requests == ()
    refused = cli("run", path, "--out", "videos", "--ledger", "run.db", *REHEARSAL)
    assert (refused.returncode, "leave out --ledger" in refused.stderr) == (2, True)
    assert not (cli.folder / "run.db").exists()


def test_rehearsal_of_object_store_has_prefix_of_its_own() -> None:
    options = RunOptions(manifest=[Path("jobs.jsonl")], out="s3://bucket/videos/", emulator=True)
    assert options.videos == "s3://bucket/videos/rehearsal"
    assert options.ledger_name.path == Path("kling-jobs/rehearsal/rehearsal.db")
    assert options.results_folder == Path("kling-jobs/rehearsal")


async def test_fakes_of_older_version_give_their_names_back(cli: Cli) -> None:
    """Older versions rehearsed into the folder of the videos: that is what a rehearsal's own folder looks like."""
    path = manifest(cli.folder, "anna", "lake")
    assert cli("run", path, "--out", "old", *REHEARSAL).returncode == 0
    folder = cli.folder / "old" / "rehearsal"
    (folder / "lake.mp4").write_bytes(b"a video of somebody else")
    async with service() as emulator:
        done = await run_sync(partial(cli, "run", path, "--out", "old/rehearsal", *REAL, **at(emulator)))
        assert (done.returncode, len(emulator.charges())) == (0, 2)
    assert "1 video of an earlier rehearsal removed from old/rehearsal" in done.stdout
    saved = {row.key: Path(row.path or "") for row in read_ledger(folder / "run.db")}
    assert saved["anna"] == folder / "anna.mp4"
    assert saved["lake"].name.startswith("lake-")
    assert (folder / "lake.mp4").read_bytes() == b"a video of somebody else"


async def test_paid_videos_in_ledger_called_rehearsal_stay(cli: Cli) -> None:
    path = manifest(cli.folder, "lake")
    folder = cli.folder / "videos"
    folder.mkdir()
    (folder / "anna.mp4").write_bytes(b"paid")
    ledger = SQLiteLedger(folder / "rehearsal.db")
    await ledger.open()
    job = Job(prompt="Waves", image="https://pictures.example/face.png")
    await ledger.claim("jobs", "anna", content=content_of(job, str), model=job.model, at=1.0)
    step = partial(Entry, batch="jobs", key="anna", at=1.0)
    for entry in (
        step(state=State.INTENT, attempt=1),
        step(state=State.SUBMITTED, prediction_id="id-1"),
        step(state=State.COMPLETED, output="https://cdn.example/anna.mp4"),
        step(
            state=State.DOWNLOADED,
            path=str(folder / "anna.mp4"),
            bytes=4,
            sha256=hashlib.sha256(b"paid").hexdigest(),
        ),
    ):
        await ledger.record(entry)
    await ledger.aclose()
    async with service() as emulator:
        done = await run_sync(partial(cli, "run", path, "--out", "videos", *REAL, **at(emulator)))
    assert done.returncode == 0
    assert (folder / "anna.mp4").read_bytes() == b"paid"
    assert [row.prediction_id for row in read_ledger(folder / "rehearsal.db")] == ["id-1"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
async def test_status_of_killed_rehearsal_does_not_contradict_itself(cli: Cli) -> None:
    path = manifest(cli.folder, *map(str, range(4)))
    words = ("--emulator", "--speed", "1", "--profile", "tiny", "--level", "gold", "--max-in-flight", "1")
    with cli.start("run", path, "--out", "videos", *words) as process:
        cli.wait_for(process, "accepted")
        ledger = "videos/rehearsal/rehearsal.db"
        during = cli("status", ledger).stdout
        refused = cli("run", path, "--out", "videos", *REHEARSAL)
        process.kill()
        process.communicate()
    assert f"Process {process.pid} has this ledger open" in during
    assert "Running of jobs: " in during
    assert (refused.returncode, f"process {process.pid} is rehearsing" in refused.stderr) == (2, True)
    after = cli("status", ledger).stdout
    unfinished = sum(row.state in {State.PENDING, State.SUBMITTED} for row in read_ledger(cli.folder / ledger))
    assert f"its emulator has ended with {unfinished} job" in after
    assert all(word not in after for word in ("All jobs have ended", "Running", "expires", "kling-async"))
    assert json.loads(cli("status", ledger, "--json").stdout)["next"] == []
    assert cli("run", path, "--out", "videos", *REHEARSAL).returncode == 0
    assert "All jobs have ended: nothing is left to do." in cli("status", ledger).stdout
