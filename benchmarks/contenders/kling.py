"""kling_async with all its parts: jobs, slots, limiter, watcher, events, stream; ledger in memory or on disk.

It runs without orjson (extra `speed`), unless kling_speed.py has imported it before.
"""

from __future__ import annotations

import asyncio
import math
import sys
import tempfile
from pathlib import Path

from contenders import IMAGE, KEY, Load

sys.modules.setdefault("orjson", None)  # type: ignore[arg-type]  # makes its import fail

from kling_async import Job, KlingSession, NoLimit, WatchPolicy  # noqa: E402 -- after orjson is hidden


async def work(load: Load, folder: Path) -> None:
    done = 0
    async with KlingSession(
        KEY,
        base_url=load.url,
        max_in_flight=load.running,
        rate_limiter=NoLimit(),
        watch=WatchPolicy() if load.interval is None else WatchPolicy.fixed(max(load.interval, 0.001)),
        max_reads_per_second=None if load.interval is None else math.inf,
        ledger=folder / "run.db" if load.ledger else None,
    ) as session:
        jobs = (Job(model="kling-v2.1-pro", prompt=f"number {number}", image=IMAGE) for number in range(load.jobs))
        async with session.batch(jobs, name="benchmark") as batch:
            async for prediction in batch.completed():
                done += bool(prediction.output)
    assert done == load.jobs


def run(load: Load) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(load, Path(folder)))
