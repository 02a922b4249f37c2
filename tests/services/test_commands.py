"""Commands over a ledger in a database, as processes with a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from pyarrow import parquet  # type: ignore[import-untyped]  # it has no types

from kling_async import read_ledger
from kling_async.emulator import Emulator, ManualClock
from kling_async.ledger import Content, Doubt, Entry, State
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.cli import Cli, jobs
from support.manual import running
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio


async def test_enqueue_worker_status_and_drain(database: str, tmp_path: Path) -> None:
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
        query = "SELECT count(*) FROM kling_job WHERE state = %s"
        with anyio.fail_after(PATIENCE_S):
            while await anyio.to_thread.run_sync(postgres.rows, database, query, state) < [(count,)]:  # noqa: ASYNC110 -- another process's
                await anyio.sleep(0.05)

    first = await run("enqueue", manifest, "--name", "spring", "--quiet")
    assert (first.returncode, first.stdout) == (0, "12 new jobs in the batch 'spring'\n")
    assert (
        "0 new jobs in the batch 'spring'; 12 jobs already there"
        in (await run("enqueue", manifest, "--name", "spring")).stdout
    )
    assert await states() == {"pending": 12}
    # No prediction ends before the first worker has exited.
    clock = ManualClock(time.time())
    async with Emulator(level="silver", profile="tiny", timing=2.0, downloads=False, clock=clock) as emulator:
        env = {"KLING_LEDGER": database, "WAVESPEED_API_KEY": emulator.api_key, "WAVESPEED_BASE_URL": emulator.base_url}
        words = ("worker", "--level", "silver", "--out", "videos", "--max-in-flight", "6")
        one = cli.start(*words, **env)
        await until("submitted", 6)
        one.send_signal(signal.SIGTERM)
        said, _ = await anyio.to_thread.run_sync(one.communicate)
        assert one.returncode == 0
        assert "6 running jobs handed over" in said
        # The next worker follows them at once, without waiting for the lease of a minute.
        other = cli.start(*words, **env)
        async with running(clock, pause=0.05):
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
        ["spring", "12", "12", "$3.00"],
    ]


def test_non_database_url_is_refused(tmp_path: Path) -> None:
    refused = Cli(tmp_path)("worker", "--ledger", "run.db", WAVESPEED_API_KEY="wsk_1")
    assert refused.returncode == 2
    assert "expected a PostgreSQL ledger" in refused.stderr


def test_unreachable_database_is_reported_without_password(tmp_path: Path) -> None:
    url = "postgresql://me:geheim@127.0.0.1:1/db?connect_timeout=1"
    refused = Cli(tmp_path)("status", url)
    assert refused.returncode == 2
    assert "geheim" not in refused.stdout + refused.stderr
    assert "postgresql://me@127.0.0.1:1/db cannot be reached" in refused.stderr


def test_invalid_url_is_refused_without_echo(tmp_path: Path) -> None:
    jobs(tmp_path, {"key": "a"})
    cli = Cli(tmp_path)
    mysql, url = "mysql://me:geheim@h/db", "postgresql://me:geheim@h/db"
    words = (
        ("run", "jobs.jsonl", "--out", "videos", "--emulator", "--ledger", mysql),
        ("run", "jobs.jsonl", "--out", "videos", "--emulator", "--ledger", url),
        ("fetch", "--out", "videos", "--ledger", mysql),
        ("resume", mysql, "--out", "videos"),
        ("status", "postgresql+psycopg://me:geheim@h/db"),
        ("export", url),
    )
    started = [cli.start(*some) for some in words]
    for some, process in zip(words, started, strict=True):
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2, (some, said)
        assert "geheim" not in said, some
    assert [path.name for path in tmp_path.rglob("*")] == ["jobs.jsonl"]


FORMATS = ("results", "errors", "stats", "metadata", "parquet")


async def test_batch_in_database_is_run_killed_fetched_and_resumed(database: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    manifest = jobs(tmp_path, *({"key": f"job-{number}"} for number in range(4)), name="spring.jsonl")
    env: dict[str, str] = {}

    async def run(*words: str, status: int = 0, **more: str) -> str:
        done = await anyio.to_thread.run_sync(lambda: cli(*words, **env, **more))
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    clock = ManualClock(time.time())
    async with Emulator(level="silver", profile="tiny", timing=2.0, downloads=False, clock=clock) as emulator:
        env |= {"WAVESPEED_API_KEY": emulator.api_key, "WAVESPEED_BASE_URL": emulator.base_url}
        again = ("run", manifest, "--out", "v", "--ledger", database, "--level", "silver", "--max-in-flight=2", "--yes")
        first = cli.start(*again, **env)
        await anyio.to_thread.run_sync(Cli.wait_for, first, "job-1  ")
        told = json.loads(await run("status", "--json", KLING_LEDGER=database))
        watched = cli.start("status", database, "--watch", "--json")
        looks = await anyio.to_thread.run_sync(Cli.wait_for, watched, "spring")
        first.kill()
        await anyio.to_thread.run_sync(first.communicate)
        (one,) = told["workers"]
        assert (told["writer"], one["name"].endswith(f":{first.pid}"), one["jobs"] > 0) == (None, True, True)
        assert (told["batches"][0]["name"], told["next"]) == ("spring", []), "somebody is at it"
        # Expire the dead worker's lease.
        postgres.rows(database, "UPDATE kling_worker SET lease_until = now() - interval '1 second'")
        paid = len(emulator.charges())
        assert paid == 2
        await clock.advance(10.0)
        assert "2 videos in v" in await run("fetch", "--out", "v", "--ledger", database)
        assert (len(emulator.charges()), sorted(path.name for path in (tmp_path / "v").glob("*.mp4"))) == (
            paid,
            ["job-0.mp4", "job-1.mp4"],
        )
        left = json.loads(await run("status", "--json", KLING_LEDGER=database))
        assert (left["workers"], left["next"]) == ([], ["kling-async resume --out OUT --name spring"])
        async with running(clock, pause=0.05):
            await run("resume", "--out", "v", "--yes", "--level", "silver", KLING_LEDGER=database)
            # Jobs that the dead process had not read from the manifest are not in the ledger.
            said = await run(*again)
        assert "of an earlier run of this file in postgresql://" in said
        assert "4 of 4 videos in v" in said
        assert len(emulator.charges()) == 4
    rest, _ = await anyio.to_thread.run_sync(watched.communicate)
    looks += rest
    assert watched.returncode == 0, looks
    seen = [json.loads(line)["batches"][0]["states"] for line in looks.splitlines()]
    assert len(seen) > 1
    # `status --watch` ends once all jobs have ended; the last video may still be downloading.
    assert seen[-1].keys() <= {"completed", "downloaded"}
    await run("export", database, "--out", "v", *(word for format_ in FORMATS for word in ("--format", format_)))
    results = [json.loads(line) for line in (tmp_path / "v" / "results.jsonl").read_text().splitlines()]
    assert {(row["key"], row["status"], row["file"]) for row in results} == {
        (f"job-{number}", "saved", f"job-{number}.mp4") for number in range(4)
    }
    assert all(row["prompt"] == "Waves" for row in results), "the content is in the database too"
    stats = json.loads((tmp_path / "v" / "stats.json").read_text())
    assert (stats["states"], stats["spent_usd"]) == ({"saved": 4}, 1.0)
    assert {name: phase["count"] for name, phase in stats["phases"].items()}["waiting"] == 4
    assert len((tmp_path / "v" / "metadata.jsonl").read_text().splitlines()) == 4
    assert parquet.read_table(tmp_path / "v" / "results").num_rows == 4
    assert "v/gallery/index.html" in await run("gallery", database, "--out", "v/gallery")
    page = (tmp_path / "v" / "gallery" / "index.html").read_text()
    assert all(f"../job-{number}.mp4" in page for number in range(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spring.jsonl", "v"], "nothing is named after a URL"


async def test_unleased_doubts_in_database_are_settled_by_hand(database: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path)

    async def run(*words: str, status: int = 0) -> str:
        done = await anyio.to_thread.run_sync(lambda: cli("ledger", *words, KLING_LEDGER=database))
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def states() -> dict[str, str]:
        return {row.key: row.state.value for row in read_ledger(database, account="team")}

    ledger = PostgresLedger(database, account="team")
    await ledger.open()
    for key, batch in (("whose", "b"), ("killed", "b"), ("taken", "other")):
        await ledger.claim(batch, key, content=Content("{}"), model="m", at=1.0)
        for state in (State.INTENT, State.UNCERTAIN):
            await ledger.record(Entry(batch=batch, key=key, state=state, at=1.0, attempt=1, cost=Decimal("0.28")))
    held = Entry(batch="b", key="whose", state=State.UNCERTAIN, at=1.0, doubt=Doubt.WHOSE, candidates=("id-1", "id-2"))
    await ledger.record(held)
    await ledger.aclose()
    # A worker killed while sending, whose lease has expired.
    postgres.rows(database, "INSERT INTO kling_worker VALUES ('gone', 'team', 'h:1', now(), now() - interval '1 s')")
    postgres.rows(database, "UPDATE kling_job SET state = 'intent', worker_id = 'gone' WHERE key = 'killed'")
    shown = await run("--account", "team")
    assert "1 job: paid for, but it is unknown which candidate belongs to which job" in shown
    assert "2 jobs: unknown whether paid for" in shown
    assert "kling-async ledger --account team adopt KEY id-1" in shown
    worker = PostgresLedger(database, account="team")
    await worker.open()
    found = await worker.find("other", "taken")
    assert found is not None
    await worker.claim("other", "taken", content=found[1], model=found[0].model, at=2.0)
    before = states()
    refused = await run("--account", "team", "give-up", "taken", "--yes", status=2)
    assert "another worker has job taken" in refused
    assert states() == before
    assert "$0.28 counts as spent" in await run("--account", "team", "adopt", "whose", "id-2", "--yes")
    assert "by the next worker" in await run("--account", "team", database, "unaccepted", "killed", "--yes")
    await worker.aclose()
    await run("--account", "team", "give-up", "taken", "--yes")
    assert states() == {"whose": "submitted", "killed": "pending", "taken": "abandoned"}
    steps = json.loads(await run("--account", "team", "history", "whose", "--json"))
    assert list(dict.fromkeys(step["state"] for step in steps)) == ["pending", "intent", "uncertain", "submitted"]
    assert steps[-1]["prediction_id"] == "id-2"


async def test_worker_stops_at_budget(database: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    manifest = jobs(tmp_path, *({"key": f"job-{number}", "model": "kling-v2.1-pro"} for number in range(4)))
    async with Emulator(level="silver", profile="tiny", timing=0.2, downloads=False) as emulator:
        env = {"KLING_LEDGER": database, "WAVESPEED_API_KEY": emulator.api_key, "WAVESPEED_BASE_URL": emulator.base_url}
        words = ("worker", "--level", "silver", "--budget", "1.00")
        await anyio.to_thread.run_sync(lambda: cli("enqueue", manifest, **env))
        ended = await anyio.to_thread.run_sync(lambda: cli(*words, **env))
        assert ended.returncode == 1, ended.stderr
        assert "the budget of $1.00 is used up: $0.90 spent" in ended.stderr
        # Running predictions were followed to their end.
        assert "handed over" not in ended.stderr
        assert postgres.rows(database, "SELECT count(*) FROM kling_job WHERE state = 'completed'") == [(2,)]
        assert len(emulator.charges()) == 2
