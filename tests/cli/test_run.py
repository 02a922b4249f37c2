"""`run` and `fetch` against an emulator, and interrupted runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from kling_async.emulator import Emulator, ManualClock, ScaledClock, faults
from kling_async.ledger import State, read_ledger
from support.cli import Cli, answers_hangups, jobs
from support.manual import running
from support.patience import PATIENCE_S
from support.pictures import jpeg


def at(emulator: Emulator) -> dict[str, str]:
    return {
        "WAVESPEED_BASE_URL": emulator.base_url,
        "WAVESPEED_API_KEY": emulator.api_key,
        "GPTPROTO_BASE_URL": emulator.gptproto_url,
        "GPTPROTO_API_KEY": emulator.gptproto_key,
        "NO_PROXY": "127.0.0.1",
    }


def service(*, timing: float = 60.0, clock: ManualClock | None = None) -> Emulator:
    """Fast, or by a clock on which nothing ends before the test lets it."""
    return Emulator(clock=clock or ScaledClock(100.0), timing=timing, profile="tiny")


def manifest(folder: Path, *rows: Mapping[str, object]) -> str:
    (folder / "face.jpg").write_bytes(jpeg())
    return jobs(folder, *({"image": "face.jpg", **row} for row in rows))


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in map(json.loads, path.read_text().splitlines())}


def videos(folder: Path) -> set[str]:
    reports = {"results.jsonl", "errors.jsonl", "stats.json"}
    return {path.name for path in folder.iterdir() if not path.name.startswith(("run.db", "rehearsal.db"))} - reports


async def call(cli: Cli, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return await run_sync(partial(cli, *words, **env))


def test_rehearsal_needs_no_key(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "a"}, {"key": "b", "model": "kling-v1.6-pro", "duration": 10}, {"key": "c/d"})
    done = cli("run", path, "--out", "videos", "--emulator", "--speed", "500", "--profile", "tiny", "--level", "gold")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "3 jobs from jobs.jsonl at the emulator, for nothing, in videos/rehearsal" in done.stdout
    assert "List price: ≈ $0.50, and 1 job of unknown price" in done.stdout
    assert "3 of 3 videos in videos/rehearsal, $0.50 spent plus 1 job of unknown price" in done.stdout
    found = rows(cli.folder / "videos" / "rehearsal" / "results.jsonl")
    assert videos(cli.folder / "videos" / "rehearsal") == {row["file"] for row in found.values()}
    assert found["a"]["file"] == "a.mp4"
    assert found["a"]["cost_usd"] == 0.25
    assert {row["status"] for row in found.values()} == {"saved"}
    assert [path.name for path in (cli.folder / "videos").iterdir()] == ["rehearsal"]


def test_low_level_prints_hint_once(cli: Cli) -> None:
    path = manifest(cli.folder, *({"key": str(number)} for number in range(3)))
    done = cli("run", path, "--out", "videos", "--emulator", "--speed", "900", "--profile", "tiny")
    assert done.returncode == 0
    assert done.stdout.count("--level silver") == 1
    # Over a minute at the service.
    assert "900 times as fast here, so about 0:00." in done.stdout


@pytest.mark.anyio
async def test_failed_job_exits_1(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "a"}, {"key": "b", "prompt": "Fire"}, {"key": "c"})
    async with service() as emulator:
        failure = faults.FailTask(code=1200, message="refused")
        emulator.faults.add("submit", failure, when=lambda exchange: exchange.body.get("prompt") == "Fire")
        done = await call(cli, "run", path, "--out", "videos", "--level", "gold", "--ordered", "--yes", **at(emulator))
    assert done.returncode == 1
    assert "2 of 3 videos in videos, 1 failed, $0.75 spent" in done.stdout
    found = rows(cli.folder / "videos" / "results.jsonl")
    assert found["b"]["status"] == "failed"
    assert found["b"]["error"] == {"code": 1200, "message": "refused"}
    assert found["b"]["prediction_id"]


@pytest.mark.anyio
async def test_summary_names_the_picture_of_a_failed_row_without_a_key(cli: Cli) -> None:
    picture = "https://pictures.example/SKU%201000.png?width=400"
    path = manifest(cli.folder, {"key": "a"}, {"prompt": "Fire", "image": picture})
    async with service() as emulator:
        failure = faults.FailTask(code=1200, message="refused")
        emulator.faults.add("submit", failure, when=lambda exchange: exchange.body.get("prompt") == "Fire")
        done = await call(cli, "run", path, "--out", "videos", "--level", "gold", "--yes", **at(emulator))
    (key,) = {key for key in rows(cli.folder / "videos" / "results.jsonl") if key != "a"}
    assert f"accepted    SKU 1000 ({key})  kling" in done.stdout
    table = done.stdout.partition("without a video")[2]
    assert "SKU 1000" in table
    assert key not in table


@pytest.mark.anyio
async def test_wrong_key_is_reported_once_and_exits_3(cli: Cli) -> None:
    path = manifest(cli.folder, *({"key": str(number)} for number in range(20)))
    async with service() as emulator:
        env = at(emulator) | {"WAVESPEED_API_KEY": "wrong-key"}
        done = await call(cli, "run", path, "--out", "videos", "--level", "gold", "--yes", **env)
        assert emulator.charges() == ()
    assert done.returncode == 3
    assert done.stderr.count("invalid API key") == 1
    assert "wrong-key" not in done.stdout + done.stderr
    assert "0 of 20 videos" in done.stdout


def test_json_option_prints_only_json_on_stdout(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "a"}, {"key": "b"})
    done = cli("run", path, "--out", "videos", "--json", "--emulator", "--speed", "500", "--profile", "tiny")
    assert done.returncode == 0
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    kept = rows(cli.folder / "videos" / "rehearsal" / "results.jsonl")
    assert {row["key"] for row in printed} == set(kept) == {"a", "b"}
    for row in printed:
        assert {name: kept[row["key"]][name] for name in row} == row
    assert "2 of 2 videos" in done.stderr


@pytest.mark.anyio
async def test_gptproto_receives_inline_pictures(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "a", "model": "kling-v2.1-pro"})
    async with service() as emulator:
        done = await call(
            cli, "run", path, "--out", "videos", "--provider", "gptproto", "--quiet", "--yes", **at(emulator)
        )
        assert [charge.key for charge in emulator.charges()] == [emulator.gptproto_key]
    assert (done.returncode, videos(cli.folder / "videos")) == (0, {"a.mp4"})
    assert done.stdout.startswith("1 of 1 video in videos, $0.00 spent plus 1 job of unknown price")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=answers_hangups)])
@pytest.mark.anyio
async def test_second_interrupt_lists_running_ids_and_fetch_saves_them(cli: Cli, number: signal.Signals) -> None:
    path = manifest(cli.folder, *({"key": f"job-{number}"} for number in range(3)))
    clock = ManualClock(time.time())
    async with service(clock=clock) as emulator:
        env = at(emulator)
        process = cli.start("run", path, "--out", "videos", "--level", "gold", "--yes", **env)
        with process:
            for _ in range(3):
                await run_sync(cli.wait_for, process, "accepted")
            if number is signal.SIGHUP:
                # A closed terminal sends it once and is not drained.
                process.send_signal(number)
            else:
                await run_sync(cli.stop, process, number)
            rest, _ = await run_sync(process.communicate)
        assert process.returncode == 130
        ids = {charge.prediction_id for charge in emulator.charges()}
        assert len(ids) == 3
        assert "Interrupted. 0 of 3 videos in videos, $0.75 spent" in rest
        assert "3 paid predictions still running at the service" in rest
        assert all(prediction_id in rest for prediction_id in ids)
        assert "The ids are in videos/run.db." in rest
        assert "Traceback" not in rest
        assert videos(cli.folder / "videos") == set()
        (command,) = [line for line in rest.splitlines() if line.startswith("  kling-async fetch ")]
        await clock.advance(100.0)
        fetched = await call(cli, *command.split()[1:], **env)
        assert fetched.returncode == 0
        assert videos(cli.folder / "videos") == {"job-0.mp4", "job-1.mp4", "job-2.mp4"}
        assert len(emulator.charges()) == 3
        again = await call(cli, "fetch", "--out", "videos", **env)
        assert (again.returncode, again.stdout[:16]) == (0, "Nothing to fetch")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.anyio
async def test_second_ctrl_c_in_a_terminal_ends_with_the_summary_alone(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "a"}, {"key": "b"})
    async with service(clock=ManualClock(time.time())) as emulator:
        words = ("run", path, "--out", "videos", "--level", "gold", "--yes")
        press = partial(cli.in_terminal, *words, presses=["2 running", "Draining"], **at(emulator))
        shown, _, status = await run_sync(press)
        ids = {charge.prediction_id for charge in emulator.charges()}
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert (status, "Interrupted. 0 of 2 videos in videos, $0.50 spent" in shown) == (130, True), shown
    assert all(id_ in shown for id_ in ids)
    assert "error" not in shown
    assert shown.rstrip().endswith("--level gold --polling eager")


@pytest.mark.anyio
async def test_reader_of_json_that_goes_away_interrupts_quietly(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "a"}, {"key": "b"})
    words = ("run", path, "--out", "videos", "--level", "gold", "--max-in-flight", "1", "--yes", "--json")
    async with service(timing=1.0) as emulator:
        with cli.start_apart(*words, **at(emulator)) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            said = await run_sync(process.stderr.read)
        paid = {charge.prediction_id for charge in emulator.charges()}
    assert (process.returncode, "Interrupted. " in said) == (130, True), said
    assert "error" not in said
    assert "Traceback" not in said
    assert {row.prediction_id for row in read_ledger(cli.folder / "videos" / "run.db")} >= paid


@pytest.mark.anyio
async def test_interrupt_leaves_no_partial_video(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "quick"}, {"key": "slow", "prompt": "Slowly"})
    async with service(timing=10.0) as emulator:
        emulator.faults.add("output", faults.SlowBody(seconds=6000.0), after=1, times=None)
        with cli.start("run", path, "--out", "videos", "--level", "gold", "--yes", **at(emulator)) as process:
            await run_sync(cli.wait_for, process, "saved")
            with anyio.fail_after(PATIENCE_S):
                await run_sync(_until_there, cli.folder / "videos", ".*.part", abandon_on_cancel=True)
            await run_sync(cli.stop, process)
            rest, _ = await run_sync(process.communicate)
    assert process.returncode == 130
    assert "1 of 2 videos in videos" in rest
    assert "1 video paid for and not saved" in rest
    (left,) = videos(cli.folder / "videos")
    assert left in {"quick.mp4", "slow.mp4"}
    assert (cli.folder / "videos" / left).stat().st_size > 1000


@pytest.mark.anyio
async def test_video_larger_than_allowed_is_not_saved_until_more_is_allowed(cli: Cli) -> None:
    path = manifest(cli.folder, {"key": "a"})
    async with service(timing=1.0) as emulator:
        words = ("run", path, "--out", "videos", "--yes", "--max-output-bytes", "100")
        refused = await call(cli, *words, **at(emulator))
        assert refused.returncode == 1
        assert "bytes are announced, and max_output_bytes is 100" in refused.stdout
        assert not videos(cli.folder / "videos")
        fetched = await call(cli, "fetch", "--out", "videos", "--max-output-bytes", "1000000", **at(emulator))
        assert fetched.returncode == 0, fetched.stderr
        assert videos(cli.folder / "videos") == {"a.mp4"}
        assert len(emulator.charges()) == 1


@pytest.mark.anyio
async def test_first_interrupt_drains_and_resume_sends_rest(cli: Cli) -> None:
    path = manifest(cli.folder, *({"key": f"job-{number}"} for number in range(6)))
    options = ("--out", "videos", "--level", "gold", "--max-in-flight", "2", "--yes")
    clock = ManualClock(time.time())
    async with service(clock=clock) as emulator:
        env = at(emulator)
        with cli.start("run", path, *options, **env) as process:
            for _ in range(2):
                await run_sync(cli.wait_for, process, "accepted")
            cli.twice(process)
            rest = await run_sync(cli.wait_for, process, "Draining")
            async with running(clock, pause=0.02):
                rest += (await run_sync(process.communicate))[0]
        assert process.returncode == 130
        assert "Draining: 2 running videos are waited for, nothing more is sent. Ctrl-C again stops now.\n" in rest
        assert "Interrupted. 2 of 6 videos in videos, 4 never sent, $0.50 spent" in rest
        assert "FAILED" not in rest
        assert "Traceback" not in rest
        assert "still running" not in rest
        assert len(emulator.charges()) == 2
        states = {row.key: row.state for row in read_ledger(cli.folder / "videos" / "run.db")}
        sent = {Path(name).stem for name in videos(cli.folder / "videos")}
        assert {states[key] for key in sent} == {State.DOWNLOADED}
        assert {states[key] for key in states.keys() - sent} == {State.PENDING}
        left = f", without the {6 - len(states)} jobs that only the manifest has:"
        assert left in " ".join(rest.split())
        (command,) = [line for line in rest.splitlines() if line.startswith("  kling-async resume ")]
        async with running(clock, pause=0.02):
            done = await call(cli, *command.split()[1:], "--yes", **env)
            assert done.returncode == 0
            assert len(emulator.charges()) == len(states)
            done = await call(cli, "run", path, *options, **env)
        assert (done.returncode, len(emulator.charges())) == (0, 6)
        assert "6 of 6 videos in videos" in done.stdout


def _until_there(folder: Path, pattern: str) -> None:
    while not list(folder.glob(pattern)):
        time.sleep(0.02)


@pytest.mark.anyio
async def test_same_command_again_continues_without_paying_twice(cli: Cli) -> None:
    path = manifest(cli.folder, *({"key": f"job-{number}"} for number in range(3)))
    clock = ManualClock(time.time())
    async with service(clock=clock) as emulator:
        env = at(emulator)
        with cli.start("run", path, "--out", "videos", "--level", "gold", "--yes", **env) as process:
            for _ in range(2):
                await run_sync(cli.wait_for, process, "accepted")
            await run_sync(cli.stop, process)
            rest, _ = await run_sync(process.communicate)
        assert "The same command continues where this one stopped" in rest
        paid = len(emulator.charges())
        assert paid in {2, 3}
        assert "\n  kling-async resume videos/run.db --name jobs --out videos --level gold --polling eager\n" in rest
        async with running(clock, pause=0.02):
            done = await call(cli, "run", path, "--out", "videos", "--level", "gold", "--yes", **env)
        assert done.returncode == 0
        assert f"{paid} jobs of an earlier run of this file in videos/run.db: not paid for again." in done.stdout
        assert videos(cli.folder / "videos") == {"job-0.mp4", "job-1.mp4", "job-2.mp4"}
        assert len(emulator.charges()) == 3
        again = await call(cli, "run", path, "--out", "videos", "--level", "gold", "--yes", **env)
        assert (again.returncode, len(emulator.charges())) == (0, 3)
        assert "3 of 3 videos" in again.stdout


@pytest.mark.anyio
async def test_fetch_exits_1_for_unknown_id_and_3_for_wrong_key(cli: Cli) -> None:
    async with service() as emulator:
        env = at(emulator)
        done = await call(cli, "fetch", "0" * 32, "--out", "videos", **env)
        assert done.returncode == 1
        assert "not found" in done.stdout
        done = await call(cli, "fetch", "0" * 32, "1" * 32, "--out", "videos", **env | {"WAVESPEED_API_KEY": "wrong"})
    assert done.returncode == 3
    assert done.stderr.count("invalid API key") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_terminal_shows_wait_for_rate_limit(cli: Cli) -> None:
    path = manifest(cli.folder, *({"key": f"job-{number}"} for number in range(3)))
    words = ("--emulator", "--speed", "50", "--profile", "tiny", "--level", "bronze", "--max-in-flight", "3")
    printed, _, status = cli.in_terminal("run", path, "--out", "videos", *words)
    assert (status, "waiting for the rate limit: 2 starts per 60 s" in printed) == (0, True)
