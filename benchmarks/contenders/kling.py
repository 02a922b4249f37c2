"""The whole SDK: typed jobs, slots, limiter, watcher, events, stream; the ledger in memory, or in a file.

Without orjson, where nobody has imported it before: it comes with the extra `speed`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from contenders import IMAGE, KEY, Load

sys.modules.setdefault("orjson", None)  # type: ignore[arg-type]  # which is how an import is made to fail

from kling_async import Job, KlingSession, NoLimit, WatchPolicy  # noqa: E402 -- after what it must not find


async def work(load: Load, folder: Path) -> None:
    done = 0
    async with KlingSession(
        KEY,
        base_url=load.url,
        max_in_flight=load.running,
        rate_limiter=NoLimit(),
        watch=WatchPolicy() if load.interval is None else WatchPolicy.fixed(max(load.interval, 0.001)),
        ledger=folder / "run.db" if load.ledger else None,
    ) as session:
        asked = (Job(model="kling-v2.1-pro", prompt=f"number {number}", image=IMAGE) for number in range(load.jobs))
        async with session.batch(asked, name="benchmark") as batch:
            async for prediction in batch.completed():
                done += bool(prediction.output)
    assert done == load.jobs


def run(load: Load) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(load, Path(folder)))
