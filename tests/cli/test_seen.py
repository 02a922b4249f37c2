"""`run` of a list that another batch of the same ledger has paid for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync

from kling_async.emulator import Emulator, ScaledClock
from support.cli import ROOT, Cli, jobs
from support.pictures import jpeg

pytestmark = pytest.mark.anyio

COMMON = ("--out", "OUT", "--level", "gold")


def service() -> Emulator:
    return Emulator(clock=ScaledClock(100.0), timing=60.0, profile="tiny")


@pytest.fixture
def manifest(cli: Cli) -> str:
    """Name of a manifest of three jobs; `other.jsonl` is a copy."""
    (cli.folder / "face.jpg").write_bytes(jpeg())
    made = jobs(cli.folder, *({"key": key, "image": "face.jpg"} for key in "abc"), name="k.jsonl")
    shutil.copy(cli.folder / made, cli.folder / "other.jsonl")
    return made


async def call(cli: Cli, emulator: Emulator, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}
    return await run_sync(partial(cli, *words, **env))


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "OUT" / "results.jsonl").read_text().splitlines()]


@pytest.mark.promise(1)
async def test_copy_of_a_manifest_is_refused_before_anything_is_sent(cli: Cli, manifest: str) -> None:
    async with service() as emulator:
        assert (await call(cli, emulator, "run", manifest, *COMMON, "--yes")).returncode == 0
        refused = await call(cli, emulator, "run", "other.jsonl", *COMMON)
        assert refused.returncode == 3
        said = " ".join(refused.stderr.split())
        assert "3 jobs of batch 'other' were sent in batch 'k' already; to send them again costs $0.75" in said
        assert "--name" in said
        assert "--seen reuse" in said
        assert "--seen pay" in said
        assert {row["batch"] for row in results(cli.folder)} == {"k"}
        continued = await call(cli, emulator, "run", "other.jsonl", *COMMON, "--name", "k")
        assert continued.returncode == 0, continued.stderr
        assert "3 of 3 videos in OUT, $0.00 spent" in continued.stdout
        assert len(emulator.charges()) == 3


async def test_reuse_hands_out_the_videos_and_pays_nothing(cli: Cli, manifest: str) -> None:
    async with service() as emulator:
        await call(cli, emulator, "run", manifest, *COMMON, "--yes")
        done = await call(cli, emulator, "run", "other.jsonl", *COMMON, "--seen", "reuse", "--json")
        assert done.returncode == 0, done.stderr
        assert "3 jobs sent before in batch 'k'" in done.stderr
        assert "$0.75 of this is not paid again" in done.stderr
        assert "3 of 3 videos in OUT, 3 reused, $0.00 spent" in done.stderr
        printed = [json.loads(line) for line in done.stdout.splitlines()]
        assert {(row["status"], row["file"], row["cost_usd"]) for row in printed} == {
            ("reused", f"{key}.mp4", 0.0) for key in "abc"
        }
        assert len(emulator.charges()) == 3
    rows = {(row["batch"], row["key"]): row for row in results(cli.folder)}
    for key in "abc":
        made, reused = rows["k", key], rows["other", key]
        assert (reused["status"], reused["cost_usd"]) == ("reused", 0.0)
        assert [reused[name] for name in ("prediction_id", "file", "sha256")] == [
            made[name] for name in ("prediction_id", "file", "sha256")
        ]
    status = cli("status", "OUT/run.db")
    assert "reused" in status.stdout
    assert "All jobs have ended" in status.stdout
    page = cli("gallery", "OUT/run.db")
    assert page.returncode == 0, page.stderr
    assert '"label": "reused"' in (cli.folder / "OUT" / "gallery" / "index.html").read_text().replace('":"', '": "')


async def test_reuse_saves_what_is_not_saved(cli: Cli, manifest: str) -> None:
    async with service() as emulator:
        await call(cli, emulator, "run", manifest, *COMMON, "--yes")
        (cli.folder / "OUT" / "a.mp4").unlink()
        words = ("run", "other.jsonl", "--out", "ELSEWHERE", "--ledger", "OUT/run.db", "--level", "gold")
        done = await call(cli, emulator, *words, "--seen", "reuse", "--json")
        assert done.returncode == 0, done.stderr
        printed = {row["key"]: row["file"] for row in map(json.loads, done.stdout.splitlines())}
        assert printed["a"] == "a.mp4"
        assert Path(printed["b"]) == (cli.folder / "OUT" / "b.mp4").resolve()
        assert [path.name for path in (cli.folder / "ELSEWHERE").glob("*.mp4")] == ["a.mp4"]
        exported = map(json.loads, (cli.folder / "ELSEWHERE" / "results.jsonl").read_text().splitlines())
        assert {row["key"]: row["file"] for row in exported if row["batch"] == "other"}["a"] == "a.mp4"
        again = await call(cli, emulator, *words, "--json")
        files = {row["key"]: row["file"] for row in map(json.loads, again.stdout.splitlines())}
        assert files == printed, "unpaid, and without --seen"
        assert len(emulator.charges()) == 3


async def test_pay_says_what_is_paid_for_again(cli: Cli, manifest: str) -> None:
    async with service() as emulator:
        await call(cli, emulator, "run", manifest, *COMMON, "--yes")
        done = await call(cli, emulator, "run", "other.jsonl", *COMMON, "--seen", "pay", "--yes")
        assert done.returncode == 0, done.stderr
        assert "3 jobs sent before in batch 'k'" in done.stdout
        assert "$0.75 of this pays for them again" in done.stdout
        assert len(emulator.charges()) == 6
        again = await call(cli, emulator, "run", "other.jsonl", *COMMON)
        assert again.returncode == 0, "its own jobs are not refused"
        assert len(emulator.charges()) == 6


@pytest.mark.promise(1)
@pytest.mark.parametrize("command", [("run", "other.jsonl"), ("resume", "OUT/run.db", "--name", "other")])
async def test_reused_job_whose_source_failed_is_asked_about_again(
    cli: Cli, manifest: str, command: tuple[str, ...]
) -> None:
    async with service() as emulator:
        await call(cli, emulator, "run", manifest, *COMMON, "--yes")
        await call(cli, emulator, "run", "other.jsonl", *COMMON, "--seen", "reuse")
        with contextlib.closing(sqlite3.connect(cli.folder / "OUT" / "run.db")) as ledger, ledger:
            changed = ledger.execute("UPDATE job SET state = 'failed', path = NULL WHERE batch = 'k' AND key = 'a'")
            assert changed.rowcount == 1
        refused = await call(cli, emulator, *command, *COMMON)
        assert refused.returncode == 2, refused.stderr
        assert "$0.25" in refused.stderr
        assert len(emulator.charges()) == 3
        paid = await call(cli, emulator, *command, *COMMON, "--yes")
        assert paid.returncode == 0, paid.stderr
        assert len(emulator.charges()) == 4


COUNTED = """
import os, sys

def count(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".jpg") and not counting:
        counting.append(True)
        with open(os.environ["OPENED"], "a") as file:
            print(os.path.basename(arguments[0]), file=file)
        counting.clear()

counting = []
sys.addaudithook(count)
"""
"""Module that notes every picture that a process opens."""


async def test_pictures_are_read_no_more_often_beside_other_batches(cli: Cli, tmp_path: Path) -> None:
    """Jobs that are due, and those that others have paid for, are looked up by digests that the batch needs as well."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(COUNTED)
    cli.env |= {"PYTHONPATH": os.pathsep.join([str(hook), str(ROOT)]), "OPENED": str(tmp_path / "opened")}
    for colour, name in enumerate("abc"):
        (cli.folder / f"{name}.jpg").write_bytes(jpeg(colour=(80 * colour, 0, 0)))
    async with service() as emulator:
        for name, pictures in {"first": "a", "second": "b"}.items():
            jobs(cli.folder, *({"image": f"{each}.jpg"} for each in pictures), name=f"{name}.jsonl")
        assert (await call(cli, emulator, "run", "first.jsonl", *COMMON, "--yes")).returncode == 0
        assert (await call(cli, emulator, "run", "second.jsonl", *COMMON, "--yes")).returncode == 0
        jobs(cli.folder, {"image": "b.jpg"}, {"image": "c.jpg"}, name="second.jsonl")
        done = await call(cli, emulator, "run", "second.jsonl", *COMMON, "--yes")
        assert done.returncode == 0, done.stderr
        assert len(emulator.charges()) == 3
    opened = Counter((tmp_path / "opened").read_text().split())
    # Alone in a new ledger, and beside another batch in one that is continued.
    assert opened["c.jpg"] == opened["a.jpg"] > 0
