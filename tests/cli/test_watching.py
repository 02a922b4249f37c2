"""`run --retry-failed` and `status --watch`, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from anyio.to_thread import run_sync

from kling_async.emulator import Emulator, ManualClock, faults
from support.cli import Cli, asks_for, jobs
from support.manual import running
from support.patience import PATIENCE_S
from support.pictures import jpeg

pytestmark = pytest.mark.anyio


def at(emulator: Emulator) -> dict[str, str]:
    return {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}


def manifest(cli: Cli, *keys: str) -> str:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    return jobs(cli.folder, *({"key": key, "prompt": key, "image": "face.jpg"} for key in keys))


async def test_retry_failed_option_sends_job_again_after_service_fault(cli: Cli) -> None:
    path = manifest(cli, "good", "busy", "refused")
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        for prompt, code in (("busy", 5000), ("refused", 1200)):
            emulator.faults.add("submit", faults.FailTask(code=code, message=prompt), when=asks_for(prompt))
        run = partial(cli, "run", path, "--out", "videos", "--level", "gold", "--yes", **at(emulator))
        done = await run_sync(partial(run, "--retry-failed", "1"))
        paid = [charge.prediction_id for charge in emulator.charges()]
    assert done.returncode == 1
    assert "2 of 3 videos in videos, 1 failed, $1.00 spent" in done.stdout
    assert len(paid) == 4
    results = (cli.folder / "videos" / "results.jsonl").read_text().splitlines()
    found = {row["key"]: (row["status"], row["attempts"]) for row in map(json.loads, results)}
    assert found == {"good": ("saved", 1), "busy": ("saved", 2), "refused": ("failed", 1)}


async def test_status_watch_ends_with_run(cli: Cli) -> None:
    path = manifest(cli, "a", "b")
    clock = ManualClock(time.time())
    async with Emulator(clock=clock, timing=80, profile="tiny") as emulator:
        with cli.start("run", path, "--out", "videos", "--level", "gold", "--yes", **at(emulator)) as writing:
            for _ in range(2):
                await run_sync(cli.wait_for, writing, "accepted")
            with cli.start("status", "videos/run.db", "--watch") as watching:
                seen = await run_sync(cli.wait_for, watching, "running")
                # Reading does not block the writer, and watching ends with the run.
                async with running(clock, pause=0.02):
                    rest, _ = await run_sync(writing.communicate)
                rest_of_watch, _ = await run_sync(partial(watching.communicate, timeout=PATIENCE_S))
            assert (writing.returncode, "2 of 2 videos" in rest) == (0, True)
    assert watching.returncode == 0
    lines = (seen + rest_of_watch).splitlines()
    assert all(line.startswith("jobs: 2 jobs: ") for line in lines), lines
    assert lines[-1] == "jobs: 2 jobs: 2 saved; $0.50 spent"
    assert len(lines) == len(set(lines)), "only changes are printed"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
async def test_status_watch_in_terminal_ends_with_ctrl_c(cli: Cli) -> None:
    path = manifest(cli, "a", "b")
    async with Emulator(speed=1, timing=600, profile="tiny") as emulator:
        with cli.start("run", path, "--out", "videos", "--level", "gold", "--yes", **at(emulator)) as writing:
            for _ in range(2):
                await run_sync(cli.wait_for, writing, "accepted")
            shown, status = await run_sync(_watched, cli, "goes on with it")
            assert writing.poll() is None, "the run goes on"
            await run_sync(cli.stop, writing)
            await run_sync(writing.communicate)
    assert f"Process {writing.pid} has this ledger open" in shown
    assert status == 130
    assert "Traceback" not in shown
    assert "\x1b[?25h" in shown  # the cursor is back


def _watched(cli: Cli, word: str) -> tuple[str, int]:
    """Interrupt `status --watch` once it has drawn the word; return the output and the exit status."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        cli.command("status", "videos/run.db", "--watch"),
        cwd=cli.folder,
        env=cli.env | {"COLUMNS": "100", "LINES": "30"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    printed = b""
    pressed = False
    try:
        while piece := os.read(master, 65536):
            printed += piece
            if not pressed and word.encode() in printed:
                pressed = True
                process.send_signal(signal.SIGINT)
    except OSError:
        pass  # the process has exited
    finally:
        os.close(master)
    return printed.decode(), process.wait(PATIENCE_S)
