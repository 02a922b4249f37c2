"""A worker over a shared ledger, to be killed: `python shared_worker.py LEDGER BASE_URL KEY IN_FLIGHT LEASE RUNS`."""

from __future__ import annotations

import asyncio
import signal
import sys

import anyio

from kling_async import KlingSession, Level, NoLimit, WatchPolicy, Worker
from kling_async.ledger.postgres import PostgresLedger


async def main() -> None:
    url, base_url, key, in_flight, lease, runs = sys.argv[1:]
    ledger = PostgresLedger(url, lease=float(lease), poll=0.5, patience=20.0, runs=float(runs))
    async with (
        KlingSession(
            key,
            base_url=base_url,
            ledger=ledger,
            level=Level("test", 1_000_000, int(in_flight)),
            rate_limiter=NoLimit(),
            watch=WatchPolicy.fixed(0.2),
            grace=0.5,
            sole_user=True,
        ) as kling,
        anyio.create_task_group() as tasks,
    ):
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print("open", flush=True)
        tasks.start_soon(Worker(kling, again=1.0).run)
        await stop.wait()
        tasks.cancel_scope.cancel()
    print("drained", len(kling.left_running), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
