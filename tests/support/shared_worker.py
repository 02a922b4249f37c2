"""A worker over a shared ledger, to be killed.

`python shared_worker.py LEDGER BASE_URL KEY IN_FLIGHT LEASE RUNS [CLOCK RETRIES FOLDER]`. CLOCK is the text of a
`SharedClock`, on which predictions take as long as real ones; without it they end within a second. With an empty
FOLDER, nothing is saved.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import anyio

from kling_async import KlingSession, Level, NoLimit, WatchPolicy, Worker
from kling_async.ledger.postgres import PostgresLedger
from support.shared_clock import SharedClock


async def main() -> None:
    url, base_url, key, in_flight, lease, runs, *others = sys.argv[1:]
    options: dict[str, Any] = {"watch": WatchPolicy.fixed(0.2), "grace": 0.5}
    folder = ""
    if others:
        clock, retries, folder = others
        options = {"clock": SharedClock.of(clock), "retry_failed": int(retries)}
    ledger = PostgresLedger(url, lease=float(lease), poll=0.5, patience=20.0, runs=float(runs))
    async with (
        KlingSession(
            key,
            base_url=base_url,
            ledger=ledger,
            level=Level("test", 1_000_000, int(in_flight)),
            rate_limiter=NoLimit(),
            sole_user=True,
            **options,
        ) as kling,
        anyio.create_task_group() as tasks,
    ):
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print("open", flush=True)
        tasks.start_soon(Worker(kling, save_to=folder or None, again=1.0).run)
        await stop.wait()
        tasks.cancel_scope.cancel()
    print("drained", len(kling.left_running), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
