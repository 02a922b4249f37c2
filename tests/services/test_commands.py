"""`enqueue`, `worker`, `status`: real processes over a real database."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from kling_async.emulator import Emulator
from support import postgres
from support.cli import Cli, jobs

pytestmark = pytest.mark.anyio


async def test_enqueue_worker_status_and_a_drain(database: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    manifest = jobs(tmp_path, *({"key": f"job-{number}"} for number in range(12)))

    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await anyio.to_thread.run_sync(lambda: cli(*words, KLING_LEDGER=database))

    async def states() -> dict[str, int]:
        shown = await run("status", "--json")
        assert shown.returncode == 0, shown.stderr
        (batch,) = json.loads(shown.stdout)["batches"]
        found: dict[str, int] = batch["states"]
        return found

    async def until(state: str, count: int) -> None:
        deadline = anyio.current_time() + 30
        query = "SELECT count(*) FROM kling_job WHERE state = %s"
        while (found := await anyio.to_thread.run_sync(postgres.rows, database, query, state)) < [(count,)]:
            assert anyio.current_time() < deadline, found
            await anyio.sleep(0.05)

    first = await run("enqueue", manifest, "--batch", "spring")
    assert (first.returncode, first.stdout) == (0, "12 new jobs in the batch 'spring'\n")
    assert (
        "0 new jobs in the batch 'spring'; 12 jobs known already"
        in (await run("enqueue", manifest, "--batch", "spring")).stdout
    )
    assert await states() == {"pending": 12}
    async with Emulator(level="silver", profile="tiny", timing=2.0, downloads=False) as emulator:
        env = {"KLING_LEDGER": database, "WAVESPEED_API_KEY": emulator.api_key, "WAVESPEED_BASE_URL": emulator.base_url}
        words = ("worker", "--level", "silver", "--out", "videos", "--max-in-flight", "6")
        one = cli.start(*words, **env)
        await until("submitted", 6)
        one.send_signal(signal.SIGTERM)
        said, _ = await anyio.to_thread.run_sync(one.communicate)
        assert one.returncode == 0
        assert "6 running jobs handed over" in said
        # Whoever comes next follows them at once: the lease is a minute.
        other = cli.start(*words, **env)
        await until("downloaded", 12)
        other.send_signal(signal.SIGINT)
        said, _ = await anyio.to_thread.run_sync(other.communicate)
        assert other.returncode == 0
        assert len(emulator.charges()) == 12
    assert sorted(path.stem for path in (tmp_path / "videos" / "spring").glob("*.mp4")) == sorted(
        f"job-{number}" for number in range(12)
    )
    shown = await run("status")
    assert [line.split() for line in shown.stdout.splitlines()[:2]] == [
        ["batch", "jobs", "saved", "spent"],
        ["spring", "12", "12", "$3.36"],
    ]


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    refused = Cli(tmp_path)("worker", "--ledger", "run.db", WAVESPEED_API_KEY="wsk_1")
    assert refused.returncode == 2
    assert "workers share a PostgreSQL ledger" in refused.stderr


def test_a_database_that_is_away_is_said_so_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://me:geheim@127.0.0.1:1/db?connect_timeout=1"
    refused = Cli(tmp_path)("status", url)
    assert refused.returncode == 2
    assert "geheim" not in refused.stdout + refused.stderr
    assert "postgresql://me@127.0.0.1:1/db cannot be reached" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("fetch", "--out", "videos", "--ledger", "postgresql://me:geheim@h/db"),
        ("run", "jobs.jsonl", "--out", "videos", "--emulator", "--ledger", "mysql://me:geheim@h/db"),
        ("status", "postgresql+psycopg://me:geheim@h/db"),
    ],
)
def test_a_url_that_does_not_fit_is_refused_without_being_shown(words: tuple[str, ...], tmp_path: Path) -> None:
    jobs(tmp_path, {"key": "a"})
    refused = Cli(tmp_path)(*words)
    assert refused.returncode == 2, refused.stderr
    assert "geheim" not in refused.stdout + refused.stderr
    assert not [path for path in tmp_path.rglob("*") if "geheim" in str(path)]
