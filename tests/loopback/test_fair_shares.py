"""Callers who share the slots of a session with a ledger in a file, by the events of its paid requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from kling_async import CallerLimits, Job, KlingSession, Level
from kling_async.emulator import Emulator
from kling_async.events import Event, Submitting
from support.shares import CALLERS, worst_deviation

pytestmark = pytest.mark.anyio

JOBS = int(os.environ.get("KLING_CALLER_JOBS", "60"))
"""Jobs of each caller."""
STARTS = int(os.environ.get("KLING_CALLER_STARTS", "600"))
"""Starts after which the newcomer comes, while each caller has jobs left."""
IMAGE = "https://pictures.example/face.png"


def jobs(caller: str) -> Iterator[tuple[str, Job]]:
    return ((f"{caller} {number}", Job(prompt=f"{number}", image=IMAGE, caller=caller)) for number in range(JOBS))


@pytest.mark.timeout(900)
async def test_slots_are_shared_by_weight_over_a_ledger_file(tmp_path: Path) -> None:
    callers: list[str] = []
    enough = anyio.Event()

    def see(event: Event) -> None:
        if isinstance(event, Submitting):
            callers.append(event.job.caller)
            if len(callers) >= STARTS:
                enough.set()

    async def consume(kling: KlingSession, caller: str) -> None:
        async with kling.batch(jobs(caller), name=caller) as batch:
            async for outcome in batch:
                assert outcome.ok, outcome.error

    async with (
        Emulator(level="gold", profile="tiny", timing=60.0, speed=60, downloads=False, balance=1e6) as emulator,
        KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            clock=emulator.clock,
            level=Level("test", 1_000_000, 100),
            watch="eager",
            ledger=tmp_path / "run.db",
            callers={caller: CallerLimits(weight=weight) for caller, weight in CALLERS.items()},
            observers=[see],
        ) as kling,
        anyio.create_task_group() as tasks,
    ):
        for caller in CALLERS:
            tasks.start_soon(consume, kling, caller)
        await enough.wait()
        before, since = len(callers), emulator.clock.monotonic()
        await kling.submit(Job(prompt="at last", image=IMAGE, caller="newcomer"))
        print(f"{JOBS} jobs each: the newcomer's started after {emulator.clock.monotonic() - since:.0f} s")
        tasks.cancel_scope.cancel()
    assert callers.index("newcomer") - before <= 100, "a job for each slot"
    starts = [caller for caller in callers[100:] if caller != "newcomer"]
    for window in (200, 2000):
        if len(starts) >= window:
            worst = worst_deviation(starts, window)
            print(f"off by at most {worst:.1f} of any {window} starts")
            assert worst <= 2
