"""Speed and CPU of the ledger, compared with a commit per step and with a JSONL file: four steps per job, 64 at once.

python benchmarks/bench_ledger.py [--jobs 5000] [--at-once 64] [--rounds 3] [--json FILE] [--quick]
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import _suite
from kling_async.ledger import Content, Entry, MemoryLedger, SQLiteLedger, State
from kling_async.ledger._sqlite import writer


class Steps(Protocol):
    """A store of job states."""

    async def step(self, key: str, state: State) -> None:
        """Record durably that the job has reached the state."""
        ...


class LedgerSteps:
    """Steps written with a ledger of this package."""

    def __init__(self, ledger: SQLiteLedger | MemoryLedger) -> None:
        self.ledger = ledger

    async def step(self, key: str, state: State) -> None:
        if state is State.PENDING:
            await self.ledger.claim("b", key, content=Content(key), model="kwaivgi/kling-v2.1-i2v-pro", at=0.0)
        else:
            id_ = key if state is State.SUBMITTED else None
            await self.ledger.record(Entry(batch="b", key=key, state=state, at=1.0, prediction_id=id_))


class JsonlSteps:
    """Steps written as JSON lines, synced in groups; reading a state would need a replay of the file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)
        self.waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self.turn = asyncio.Lock()

    async def step(self, key: str, state: State) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((json.dumps({"key": key, "state": state.value, "at": 1.0}).encode() + b"\n", done))
        async with self.turn:
            group, self.waiting = self.waiting, []
            if group:
                await asyncio.to_thread(self.write, b"".join(line for line, _ in group))
                for _, future in group:
                    future.set_result(None)
        await done

    def write(self, lines: bytes) -> None:
        self.file.write(lines)
        os.fdatasync(self.file.fileno())


STATES = (State.PENDING, State.INTENT, State.SUBMITTED, State.COMPLETED)


async def drive(steps: Steps, jobs: int, at_once: int) -> None:
    slots = asyncio.Semaphore(at_once)

    async def one(key: str) -> None:
        async with slots:
            for state in STATES:
                await steps.step(key, state)

    await asyncio.gather(*(one(f"{number:08d}") for number in range(jobs)))


async def memory(_folder: Path, jobs: int, at_once: int) -> None:
    await drive(LedgerSteps(MemoryLedger()), jobs, at_once)


async def group_commit(folder: Path, jobs: int, at_once: int) -> None:
    ledger = SQLiteLedger(folder / "run.db")
    await ledger.open()
    await drive(LedgerSteps(ledger), jobs, at_once)
    await ledger.aclose()


async def commit_per_step(folder: Path, jobs: int, at_once: int) -> None:
    group, writer.MAX_GROUP_STEPS = writer.MAX_GROUP_STEPS, 1
    try:
        await group_commit(folder, jobs, at_once)
    finally:
        writer.MAX_GROUP_STEPS = group


async def jsonl(folder: Path, jobs: int, at_once: int) -> None:
    await drive(JsonlSteps(folder / "run.jsonl"), jobs, at_once)


def measure(work: Callable[[Path, int, int], Awaitable[None]], jobs: int, at_once: int) -> tuple[float, float]:
    """Return jobs per second and CPU microseconds per job, of all threads."""
    with tempfile.TemporaryDirectory() as folder:

        async def timed() -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            await work(Path(folder), jobs, at_once)
            return jobs / (time.perf_counter() - wall), (time.process_time() - cpu) / jobs * 1e6

        return asyncio.run(timed())


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.rounds = 100, 1
    contenders = {
        "kling_async: SQLite, group commit": (group_commit, options.jobs),
        "kling_async: memory, no disk": (memory, options.jobs),
        "SQLite, commit per step": (commit_per_step, max(options.jobs // 10, 100)),
        "JSONL, fdatasync per group": (jsonl, options.jobs),
    }
    runs = {name: functools.partial(measure, work, jobs, options.at_once) for name, (work, jobs) in contenders.items()}
    part = "The ledger alone"
    about = f"{options.jobs:,} jobs of {len(STATES)} steps, {options.at_once} at once, SQLite {sqlite3.sqlite_version}"
    report = _suite.Report(options, notes={part: about})
    for name, rounds in _suite.interleaved(options.rounds, runs).items():
        speed, cpu = zip(*rounds, strict=True)
        baseline = not name.startswith("kling_async")
        report.add(part, name, "jobs/s", *speed, baseline=baseline)
        report.add(part, name, "µs of CPU per job", *cpu, baseline=baseline)
    report.finish()


if __name__ == "__main__":
    main()
