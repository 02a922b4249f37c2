"""Hundreds of jobs over real sockets, in scaled time, on every supported event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvloop

from kling_async import Job, KlingSession, Level
from kling_async.emulator import Emulator
from support.patience import PATIENCE_S
from support.pictures import png

LEVEL = Level("wide", 1_000_000, 200)


async def scenario(count: int) -> Counter[str]:
    picture = png()
    outcomes: Counter[str] = Counter()
    async with Emulator(level="ultra", speed=100, profile="tiny", balance=10_000) as emulator:
        async with KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            clock=emulator.clock,
            level=LEVEL,
            max_in_flight=200,
            max_reads_per_second=10,
        ) as kling:
            jobs = (
                Job(model="kling-v2.1-pro", prompt=f"number {number}", image=picture, duration=10 if number % 3 else 5)
                for number in range(count)
            )
            async with kling.batch(jobs, name="many") as batch:
                async for outcome in batch:
                    outcomes[outcome.key] += 1
                    assert outcome.ok, outcome.error
        assert len(emulator.charges()) == count
        assert len({charge.prediction_id for charge in emulator.charges()}) == count
        assert emulator.peak_running <= 200
        assert not emulator.leaks
    return outcomes


def open_sockets() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


async def main(count: int) -> Counter[str]:
    outcomes = await scenario(count)
    # The server's closed connections are removed in the next iterations of the loop.
    with anyio.fail_after(PATIENCE_S):
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 -- nothing announces it
            await anyio.sleep(0.01)
    return outcomes


@pytest.mark.parametrize(
    ("options", "runs", "jobs"),
    [
        pytest.param({}, 2, 600, id="twice"),
        pytest.param({"debug": True}, 1, 200, id="debug"),
        pytest.param({"loop_factory": uvloop.new_event_loop}, 1, 800, id="uvloop"),
    ],
)
@pytest.mark.repeats
def test_many_jobs_have_one_outcome_each_without_leaks(options: dict[str, Any], runs: int, jobs: int) -> None:
    before = open_sockets()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(runs):
            with asyncio.Runner(**options) as runner:
                outcomes = runner.run(main(jobs))
            assert len(outcomes) == jobs
            assert set(outcomes.values()) == {1}
        gc.collect()
    assert open_sockets() <= before
