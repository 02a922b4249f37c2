"""Fleets of worker processes over one ledger and one emulator, and checks of their results."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import anyio
import attrs

from kling_async import Job, State
from kling_async.emulator import Call, Emulator, ManualClock, faults
from kling_async.emulator.predictions import PredictionRecord
from support import postgres
from support.patience import PATIENCE_S

SUPPORT = Path(__file__).parent
CAP = 25
"""Maximum of concurrent predictions on the account."""
LEASE = 8.0
"""Lease in seconds; workers check for expired leases four times per lease. A kill here expires the lease at once."""
UNANSWERED_S = 86_400.0


def peak(records: Iterable[PredictionRecord]) -> int:
    """Return the peak number of concurrent predictions, by the emulator's record."""
    ends = [(record.created_at, 1) for record in records] + [(record.ends_at, -1) for record in records]
    running = most = 0
    for _, change in sorted(ends):
        running += change
        most = max(most, running)
    return most


@attrs.define
class Fleet:
    """Worker processes over one ledger.

    Attributes:
        emulator: Their service.
        program: Name of the script.
        lease: Lease in seconds.
        runs: Seconds in which a job in doubt occupies a slot.
        cap: Maximum of concurrent predictions on the account.
        words: What else the script is given.
        processes: Those that run.
    """

    emulator: Emulator
    program: str
    lease: float
    runs: float
    cap: int = CAP
    words: Sequence[str] = ()
    processes: list[anyio.abc.Process] = attrs.Factory(list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in list(self.processes):
            await self.end(process, signal.SIGKILL)

    async def start(self, url: str) -> anyio.abc.Process:
        # The worker imports what this process imports.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        numbers = map(str, (self.cap, self.lease, self.runs))
        words = [url, self.emulator.base_url, self.emulator.api_key, *numbers, *self.words]
        process = await anyio.open_process(
            [sys.executable, str(SUPPORT / self.program), *words], stderr=None, env=environment
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert (await process.stdout.receive()).startswith(b"open")
        return process

    def hold(self) -> list[str]:
        """Accept the next paid request without answering; the returned list gets its job's key on arrival."""
        held: list[str] = []

        def remember(call: Call) -> bool:
            held.append(str(call.body["prompt"]).replace("number ", "job-"))
            return True

        self.emulator.faults.add("submit", faults.Delay(UNANSWERED_S, accepted=True), when=remember)
        return held

    async def holder(self, url: str, held: list[str]) -> anyio.abc.Process:
        """Return the worker that waits for the withheld response."""
        with anyio.fail_after(PATIENCE_S):
            while not held:  # noqa: ASYNC110 -- from another process
                await anyio.sleep(0.02)
        query = "SELECT w.name FROM kling_job j JOIN kling_worker w ON w.id = j.worker_id WHERE j.key = %s"
        ((name,),) = postgres.rows(url, query, held[0])
        return next(process for process in self.processes if name == name_of(process))

    async def kill(self, process: anyio.abc.Process, url: str) -> None:
        """Kill the worker and expire its lease."""
        await self.end(process, signal.SIGKILL)
        postgres.end_leases(url, name_of(process))

    async def end(self, process: anyio.abc.Process, number: signal.Signals) -> int:
        process.send_signal(number)
        status = await process.wait()
        self.processes.remove(process)
        await process.aclose()
        return status


def name_of(process: anyio.abc.Process) -> str:
    """Return the worker's name in the ledger."""
    return f"{socket.gethostname()}:{process.pid}"


@asynccontextmanager
async def fleet(
    program: str = "shared_worker.py",
    *,
    echo: bool = True,
    seconds: float = 0.7,
    lease: float = LEASE,
    runs: float = 3.0,
    clock: ManualClock | None = None,
) -> AsyncIterator[Fleet]:
    async with Emulator(
        level="ultra", profile="tiny", timing=seconds, balance=1e6, input_echo=echo, downloads=False, clock=clock
    ) as emulator:
        if clock is None:
            # Responses are delayed, so that kills hit submits in flight.
            emulator.faults.add("submit", faults.Delay(0.3, accepted=True), times=None)
        async with Fleet(emulator, program, lease, runs) as made:
            yield made


def asked(jobs: Iterable[int]) -> list[tuple[str, Job]]:
    """Return jobs with these numbers, each with its own prompt."""
    return [
        (f"job-{number}", Job(prompt=f"number {number}", image=f"https://p.example/{number}.png")) for number in jobs
    ]


def counts(url: str) -> Counter[State]:
    found = postgres.rows(url, "SELECT state, count(*) FROM kling_job GROUP BY state")
    return Counter({State(str(state)): int(str(count)) for state, count in found})


def portions(jobs: int, count: int) -> list[range]:
    """Split the numbers of the jobs into portions."""
    return [range(jobs * number // count, jobs * (number + 1) // count) for number in range(count)]


async def until(url: str, done: Callable[[Counter[State]], bool], *, jobs: int = 0) -> None:
    """Wait until the ledger has this many jobs in the states; the bound grows by a second for each of `jobs`."""
    within = PATIENCE_S + jobs
    deadline = anyio.current_time() + within
    while not done(found := await anyio.to_thread.run_sync(counts, url)):
        assert anyio.current_time() < deadline, f"after {within} s: {found}"
        await anyio.sleep(0.1)


def settled(jobs: int, *, echo: bool = True) -> Callable[[Counter[State]], bool]:
    """Return a predicate: all jobs have ended; without an echo some stay in doubt."""
    return lambda found: found[State.COMPLETED] + (0 if echo else found[State.UNCERTAIN]) == jobs


def check(url: str, emulator: Emulator, jobs: int, *, echo: bool = True) -> None:
    """Check that every job was paid once, none was lost, and the account's limit was kept."""
    records = emulator.predictions()
    paid = Counter(str(record.inputs["prompt"]) for record in records)
    found = counts(url)
    assert max(paid.values()) == 1, "paid twice"
    assert found[State.COMPLETED] + found[State.UNCERTAIN] == jobs, f"lost: {found}"
    if echo:
        assert found[State.UNCERTAIN] == 0
    ids = {id_ for (id_,) in postgres.rows(url, "SELECT prediction_id FROM kling_job") if id_}
    orphans = {record.id for record in records} - ids
    assert len(orphans) <= found[State.UNCERTAIN], "a paid id is lost"
    assert peak(records) <= CAP, f"{peak(records)} at once"
