"""`run --redo`: the same row with new content, paid for again knowingly."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync
from rich.console import Console

from kling_async import Job, KlingSession
from kling_async._core.content import Content
from kling_async.cli.redo import Redo, print_redo
from kling_async.emulator import Emulator
from kling_async.ledger import Row, State, read_ledger
from support.cli import Cli, jobs
from support.pictures import jpeg

pytestmark = pytest.mark.anyio


async def first_run(emulator: Emulator, folder: Path) -> None:
    clock, watch = emulator.clock, "eager"
    options: dict[str, Any] = {"level": "gold", "clock": clock, "watch": watch, "ledger": folder / "videos" / "run.db"}
    async with KlingSession(emulator.api_key, base_url=emulator.base_url, **options) as kling:
        (folder / "face.jpg").write_bytes(jpeg())
        made = {key: Job(prompt="before", image=folder / "face.jpg") for key in ("a", "b")}
        async with kling.batch(made, name="jobs", save_to=folder / "videos") as batch:
            async for outcome in batch:
                assert outcome.ok


async def test_redo_pays_for_new_content_once_and_keeps_what_was_made(cli: Cli) -> None:
    async with Emulator(speed=100, timing=30, profile="tiny") as emulator:
        await first_run(emulator, cli.folder)
        (before, *_) = [row for row in read_ledger(cli.folder / "videos" / "run.db") if row.key == "a"]
        prompts = (("a", "after"), ("b", "before"))
        path = jobs(cli.folder, *({"key": key, "prompt": prompt, "image": "face.jpg"} for key, prompt in prompts))
        env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}
        run = partial(cli, "run", path, "--out", "videos", "--level", "gold", "--redo", "a", **env)
        asked = await run_sync(run)
        assert (asked.returncode, len(emulator.charges())) == (2, 2)
        assert "To be paid now: 1 job, ≈ $0.25 at list price." in asked.stderr
        assert f"a is made again; before: saved, prediction {before.prediction_id}, $0.25" in asked.stdout
        done = await run_sync(partial(run, "--yes"))
        assert (done.returncode, len(emulator.charges())) == (0, 3), done.stdout
        again = await run_sync(partial(run, "--redo", "b"))
        assert (again.returncode, len(emulator.charges())) == (0, 3)
        assert "--redo a: the job has the same content as when it was sent" in again.stdout
        unknown = await run_sync(partial(run, "--redo", "c"))
        assert (unknown.returncode, "expected keys of rows of jobs.jsonl, got c" in unknown.stderr) == (2, True)
    rows = {row.key: row for row in read_ledger(cli.folder / "videos" / "run.db")}
    assert {key: row.state for key, row in rows.items()} == dict.fromkeys(["a", "a~1", "b"], State.DOWNLOADED)
    assert rows["a~1"].prediction_id == before.prediction_id
    assert Path(rows["a~1"].path or "").is_file()
    assert rows["a"].prediction_id != before.prediction_id


async def test_job_that_was_not_sent_has_nothing_to_redo(cli: Cli) -> None:
    """It is in the ledger, since an earlier run ended before it."""
    async with Emulator(speed=100, timing=30, profile="tiny") as emulator:
        env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}
        path = jobs(cli.folder, {"key": "a", "prompt": "x", "image": "https://example.com/a.jpg"})
        run = partial(cli, "run", path, "--out", "videos", "--level", "gold", **env)
        stopped = await run_sync(partial(run, "--yes", "--budget", "0.01"))
        assert (stopped.returncode, emulator.charges()) == (3, ()), stopped.stdout
        (row,) = read_ledger(cli.folder / "videos" / "run.db")
        assert (row.attempt, row.state) == (0, State.SKIPPED)
        again = await run_sync(partial(run, "--redo", "a"))
        assert "--redo a: the job was not sent yet, so there is nothing to redo." in again.stdout


@pytest.mark.parametrize(("state", "stays"), [(State.DOWNLOADED, True), (State.FAILED, False)])
def test_only_what_stays_is_said_to_stay(state: State, *, stays: bool) -> None:
    """A failed prediction makes room for the new one: its row is the same."""
    row = Row(batch="b", key="a", digest="0", model="m", state=state, updated_at=0.0, attempt=1, prediction_id="p1")
    console = Console(record=True, width=200)
    print_redo(console, [Redo(row, Content("{}"), "m")])
    text = console.export_text()
    assert "before:" in text
    assert "prediction p1" in text
    assert ("stays in the ledger" in text) is stays


async def test_redo_of_a_clip_makes_again_what_continues_it(cli: Cli) -> None:
    def film(prompt: str) -> str:
        rows: list[dict[str, object]] = [
            {"key": "c", "prompt": "c", "continues": "b"},
            {"key": "b", "prompt": prompt, "continues": "a"},
            {"key": "a", "prompt": "a", "image": "face.jpg"},
            {"key": "side", "prompt": "side", "continues": "a"},
        ]
        (cli.folder / "film.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return "film.jsonl"

    async with Emulator(speed=200, timing=10, profile="video") as emulator:
        (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))
        env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}
        words = ("run", film("before"), "--out", "videos", "--level", "gold", "--yes")
        first = await run_sync(partial(cli, *words, **env))
        assert (first.returncode, len(emulator.charges())) == (0, 4), first.stdout + first.stderr
        film("after")
        refused = await run_sync(partial(cli, *words, **env))
        assert (refused.returncode, len(emulator.charges())) == (1, 4)
        asked = await run_sync(partial(cli, *words[:-1], "--redo", "b", **env))
        assert (asked.returncode, len(emulator.charges())) == (2, 4)
        assert "To be paid now: 2 jobs" in asked.stderr
        assert "c is made again, as it continues b; before: saved, prediction" in asked.stdout
        done = await run_sync(partial(cli, *words, "--redo", "b", **env))
        assert (done.returncode, len(emulator.charges())) == (0, 6), done.stdout + done.stderr
    rows = {row.key: row for row in read_ledger(cli.folder / "videos" / "run.db")}
    assert rows.keys() == {"a", "b", "b~1", "c", "c~1", "side"}
    assert {row.state for row in rows.values()} == {State.DOWNLOADED}
