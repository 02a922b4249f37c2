"""Printed commands for going on: pasted into a shell, they keep the limits of the run that they continue."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from kling_async.cli.choices import LevelChoice, PollingChoice, ProviderChoice
from kling_async.cli.hints import kept_options
from kling_async.cli.ledgers import LedgerName
from kling_async.cli.options import ResumeOptions, RunOptions
from kling_async.emulator import Emulator, faults
from support.cli import EAGER, Cli, asks_for, jobs
from support.pictures import jpeg

pytestmark = pytest.mark.anyio

OUT = "Anna's videos; rm x"
LIMITS = ("--level", "gold", "--max-in-flight", "3", "--budget", "0.60")


def at(emulator: Emulator) -> dict[str, str]:
    return {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}


def manifest(folder: Path, *prompts: str) -> str:
    (folder / "face.jpg").write_bytes(jpeg())
    return jobs(folder, *({"key": prompt, "prompt": prompt, "image": "face.jpg"} for prompt in prompts))


def pasted(printed: str, command: str) -> list[str]:
    """Return the words of the one printed command, as a shell reads them."""
    (line,) = [line for line in printed.splitlines() if line.startswith(f"  kling-async {command} ")]
    return shlex.split(line)[1:]


async def test_resume_of_status_keeps_limits_of_run(cli: Cli) -> None:
    path = manifest(cli.folder, "a", "b", "c", "d")
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        call = partial(cli, **at(emulator))
        words = ("run", path, "--out", OUT, *LIMITS, "--no-audit", "--allow-estimate", "--yes")
        assert (await run_sync(partial(call, *words))).returncode == 1
        assert len(emulator.charges()) == 2
        resume = pasted(cli("status", f"{OUT}/run.db").stdout, "resume")
        given = ["resume", f"{OUT}/run.db", "--out", OUT, "--name", "jobs"]
        assert resume == [*given, *LIMITS[:4], *EAGER, *LIMITS[4:], "--allow-estimate", "--no-audit"]
        done = await run_sync(partial(call, *resume, "--yes"))
        assert "is used up" in done.stderr
        assert len(emulator.charges()) == 2
    elsewhere = Cli(cli.folder / OUT)("status", "run.db").stdout
    assert pasted(elsewhere, "resume")[1:4] == ["run.db", "--out", "."]


async def test_run_whose_options_cannot_be_kept_is_a_run(cli: Cli) -> None:
    path = manifest(cli.folder, "a")
    (cli.folder / OUT / "run.db.options").mkdir(parents=True)
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        words = ("run", path, "--out", OUT, "--results", "lists", "--no-audit", "--yes")
        done = await run_sync(partial(cli, *words, **at(emulator)))
        assert done.returncode == 0, done.stderr
        (cli.folder / OUT / "run.db.options").rmdir()
        assert (await run_sync(partial(cli, *words, **at(emulator)))).returncode == 0
        assert len(emulator.charges()) == 1
    record = json.loads((cli.folder / OUT / "run.db.options").read_text())["jobs"]
    assert record["options"][2:4] == ["--results", str(cli.folder / "lists")]


async def test_run_of_errors_keeps_limits_of_run(cli: Cli) -> None:
    path = manifest(cli.folder, "a", "b")
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        call = partial(cli, **at(emulator))
        for prompt in ("a", "b"):
            emulator.faults.add("submit", faults.FailTask(code=1200, message="no"), when=asks_for(prompt))
        words = ("run", path, "--out", OUT, "--ledger", "ledger.db", *LIMITS, "--retry-failed", "1", "--yes")
        ended = await run_sync(partial(call, *words))
        exported = await run_sync(partial(call, "export", "ledger.db", "--out", OUT))
    expected = [
        *("run", f"{OUT}/errors.jsonl", "--out", OUT, "--ledger", "ledger.db", *LIMITS[:4], *EAGER, *LIMITS[4:])
    ]
    expected += ["--retry-failed", "1", "--root", str(cli.folder)]
    assert pasted(ended.stdout, "run") == expected
    assert pasted(exported.stdout, "run") == expected


async def test_run_of_errors_of_rehearsal_is_a_rehearsal(cli: Cli) -> None:
    path = manifest(cli.folder, "a", "b")
    words = ("--emulator", "--speed", "500", "--profile", "tiny", "--level", "gold", "--budget", "0.3")
    rehearsed = cli("run", path, "--out", OUT, *words)
    assert rehearsed.returncode == 1
    exported = cli("export", f"{OUT}/rehearsal/rehearsal.db")
    assert "1 job has no video and none is on its way. This rehearses it again, for nothing:" in exported.stdout
    run = pasted(exported.stdout, "run")
    assert run[:4] == ["run", f"{OUT}/rehearsal/errors.jsonl", "--out", OUT]
    assert sorted(run[4:-2]) == sorted([*words, *EAGER])
    (cli.folder / OUT / "rehearsal" / "rehearsal.db.options").unlink()
    assert "--emulator" in pasted(cli("export", f"{OUT}/rehearsal/rehearsal.db").stdout, "run")
    assert cli(*run).returncode == 0


async def test_status_says_when_limits_are_unknown(cli: Cli) -> None:
    path = manifest(cli.folder, "a", "b", "c")
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        await run_sync(partial(cli, "run", path, "--out", "videos", *LIMITS, "--yes", **at(emulator)))
    (cli.folder / "videos" / "run.db.options").unlink()
    shown = cli("status", "videos/run.db").stdout
    assert "1 job of jobs to continue with; add the --level and --budget of its run:" in shown
    assert pasted(shown, "resume") == ["resume", "videos/run.db", "--out", "videos", "--name", "jobs"]


def test_every_limit_is_kept() -> None:
    options = ResumeOptions(
        out="videos",
        provider=ProviderChoice.GPTPROTO,
        level=LevelChoice.SILVER,
        max_in_flight=2,
        max_uploads=4,
        max_saving=8,
        deadline=60.0,
        forget_after=600.0,
        polling=PollingChoice.LIST,
        max_reads_per_second=50.0,
        max_reply_bytes=10**6,
        max_output_bytes=10**9,
        fit=True,
        results=Path("my reports"),
        no_results=True,
        gallery=True,
        budget="5",
        allow_estimate=True,
        retry_failed=2,
        ignored_parameters=["token", "v"],
        audit=False,
        quiet=True,
        as_json=True,
        yes=True,
    )
    limits = "--provider gptproto --level silver --fit --max-in-flight 2 --max-uploads 4 --max-saving 8 --deadline 60"
    reads = "--forget-after 600 --polling list --max-reads-per-second 50"
    sizes = "--max-reply-bytes 1000000 --max-output-bytes 1000000000"
    files = "--results 'my reports' --no-results --gallery"
    money = "--budget 5 --allow-estimate --retry-failed 2"
    own = "--ignore-parameter token --ignore-parameter v --no-audit"
    assert shlex.join(kept_options(options)) == f"{limits} {reads} {sizes} {money} {files} {own}"
    assert kept_options(RunOptions(manifest=[Path("jobs.jsonl")], out="videos", ordered=True)) == []


def test_account_is_kept_with_database() -> None:
    name = LedgerName("postgresql://host/db", account="team")
    assert name.option_for("videos") == ["--ledger", "postgresql://host/db", "--account", "team"]
    assert LedgerName(Path("videos/run.db")).option_for("videos") == []
    assert LedgerName(Path("kling-jobs/run.db")).option_for("s3://bucket/videos") == ["--ledger", "kling-jobs/run.db"]
