"""Films of random shapes under random faults and kills: every film is whole or its failure told, nothing paid twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from kling_async import Job, LastFrame, enqueue, read_ledger
from kling_async._core.prediction import RETRYABLE_CODES
from kling_async._core.states import ENDED
from kling_async.emulator import Chaos, Emulator, faults
from kling_async.ledger._columns import quoted
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.film_checks import busy_share, check_films, check_pictures, give_colours
from support.patience import PATIENCE_S
from support.pictures import png
from support.shared_clock import SharedClock
from support.trees import trees
from support.workers import Fleet

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).parents[1] / "support" / "tree_worker.py"
FILMS = int(os.environ.get("KLING_CHAOS_FILMS", "20"))
KILLS = int(os.environ.get("KLING_FILM_KILLS", "3"))
SEED = int(os.environ.get("KLING_SEED", "7"))
SPEED, SLOTS = (120.0, 24) if FILMS < 100 else (40.0, 100)
WORKERS = 3
# Slower than with one process: what five processes do on two processors is to take little of the service's time.
SHARED_SPEED = float(os.environ.get("KLING_FILM_SPEED", "60" if FILMS < 100 else "5"))
LONGEST_S = 600.0
"""Seconds within which every prediction ends."""
LEASE_S = 8.0
"""Lease of a worker in seconds of the computer; a kill ends it at once."""
UNENDED = f"""
SELECT key FROM kling_job WHERE worker_id IS NOT NULL OR state NOT IN ({quoted(ENDED)}) OR state = 'completed' AND %s
OR state = 'failed' AND code IN ({", ".join(map(str, RETRYABLE_CODES))}) AND failures <= %s
"""
SENT = "SELECT count(*) FROM kling_job WHERE state NOT IN ('pending', 'claimed')"


def emulated(clock: SharedClock) -> Emulator:
    """Return a service that answers one request in ten with a fault."""
    return Emulator(
        level="ultra",
        profile="video",
        balance=1e6,
        input_echo=True,
        seed=SEED,
        clock=clock,
        chaos=Chaos(rate=0.1, seed=SEED),
    )


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "downloaded"])
@pytest.mark.promise(1, 2)
@pytest.mark.repeats
async def test_films_survive_faults_and_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, saved: bool) -> None:
    give_colours(monkeypatch)
    rng = random.Random(SEED)
    path, parents, clock = tmp_path / "run.db", trees(FILMS, SEED), SharedClock(SPEED)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    killed: set[str] = set()
    async with emulated(clock) as emulator:
        # The worker imports what this process imports.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(scratch)}
        folder = str(tmp_path / "out") if saved else ""
        # With 0, failures of the service end films.
        numbers = (FILMS, SEED, SLOTS, 0 if saved else 1)
        words = [str(path), emulator.base_url, emulator.api_key, *map(str, numbers), str(clock), folder]
        command = [sys.executable, str(WORKER), *words]
        for kill in range(KILLS + 1):
            process = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None, env=environment)
            with anyio.fail_after(PATIENCE_S + len(parents)):
                if kill == KILLS:
                    killed = {path.name for path in scratch.iterdir()}
                    assert await process.wait() == 0
                    continue
                # Every other kill meets a submit that was accepted and not answered.
                unanswered = emulator.faults.add("submit", faults.Delay(1e9, accepted=True)) if kill % 2 else None
                enough = round(len(parents) * (kill + rng.random()) / (KILLS + 1)) + 1
                while len(emulator.predictions()) < enough or (unanswered is not None and not unanswered.spent):
                    assert process.returncode is None, "it ended before it was killed"
                    await anyio.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        rows = list(read_ledger(path))
        states = Counter(row.state.value for row in rows)
        counts = emulator.chaos_counts
        print(
            f"seed {SEED}: {FILMS} films, {len(parents)} clips, {KILLS} kills, {sum(counts.values())} faults, {states}"
        )
        check_films(rows, parents, emulator)
        await check_pictures(parents, emulator)
    assert {path.name for path in scratch.iterdir()} <= killed, "what was downloaded for frames was not removed"
    if saved:
        assert len(list((tmp_path / "out").glob("*.mp4"))) == states["downloaded"]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "downloaded"])
@pytest.mark.promise(1, 2)
@pytest.mark.repeats
async def test_films_of_three_workers_survive_faults_and_kills(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, saved: bool
) -> None:
    """Workers of a shared ledger are killed one after the other, and replaced."""
    give_colours(monkeypatch)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    rng = random.Random(SEED)
    parents, clock = trees(FILMS, SEED), SharedClock(SHARED_SPEED)
    (tmp_path / "first.png").write_bytes(png())
    jobs = {
        key: Job(prompt=key, image=tmp_path / "first.png" if parent is None else LastFrame(parent))
        for key, parent in parents.items()
    }
    # With 0, failures of the service end films.
    retries = 0 if saved else 1
    left: set[str] = set()

    async def until_sent(number: int) -> None:
        with anyio.fail_after(PATIENCE_S + len(parents)):
            while int(str(postgres.rows(database, SENT)[0][0])) < number:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.1)

    async with (
        emulated(clock) as emulator,
        Fleet(
            emulator,
            "shared_worker.py",
            lease=LEASE_S,
            runs=LONGEST_S / SHARED_SPEED,
            cap=SLOTS,
            words=[str(clock), str(retries), str(tmp_path / "out") if saved else ""],
        ) as workers,
    ):
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(workers.start, database)
        ledger = PostgresLedger(database)
        await ledger.open()
        assert await enqueue(ledger, jobs, batch="films") == len(jobs)
        await ledger.aclose()
        for kill in range(KILLS):
            await until_sent(round(len(parents) * (kill + rng.random()) / (KILLS + 1)) + 1)
            # Every other kill meets a submit that was accepted and not answered.
            held = workers.hold() if kill % 2 else None
            victim = rng.choice(workers.processes) if held is None else await workers.holder(database, held)
            await workers.kill(victim, database)
            left |= {path.name for path in scratch.iterdir()}
            await workers.start(database)
        with anyio.fail_after(PATIENCE_S + len(parents)):
            while postgres.rows(database, UNENDED, saved, retries):  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.1)
        for process in list(workers.processes):
            assert await workers.end(process, signal.SIGTERM) == 0
        rows = list(read_ledger(database))
        states = Counter(row.state.value for row in rows)
        figures = f"{FILMS} films, {len(parents)} clips, {KILLS} kills, {sum(emulator.chaos_counts.values())} faults"
        share = busy_share(emulator.predictions(), parents, SLOTS)
        print(f"seed {SEED}: {figures}, {states}, {share:.1%} of a list scheduler")
        check_films(rows, parents, emulator)
        await check_pictures(parents, emulator)
    assert {path.name for path in scratch.iterdir()} <= left, "what was downloaded for frames was not removed"
    if saved:
        assert len(list((tmp_path / "out" / "films").glob("*.mp4"))) == states["downloaded"]
