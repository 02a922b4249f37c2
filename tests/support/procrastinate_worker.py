"""A Procrastinate worker over a shared ledger, to be killed: `... LEDGER BASE_URL KEY IN_FLIGHT LEASE RUNS`."""

from __future__ import annotations

import asyncio
import sys

import procrastinate

from kling_async import KlingSession, Level, NoLimit, WatchPolicy
from kling_async.integrations.procrastinate import install
from kling_async.ledger.postgres import PostgresLedger


async def main() -> None:
    url, base_url, key, in_flight, lease, runs = sys.argv[1:]
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=4))
    ledger = PostgresLedger(url, lease=float(lease), poll=0.5, patience=20.0, runs=float(runs))
    kling = KlingSession(
        key,
        base_url=base_url,
        ledger=ledger,
        level=Level("test", 1_000_000, int(in_flight)),
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(0.2),
        grace=0.5,
        sole_user=True,
    )
    install(app, ledger, kling, again=1.0, stalled_after=1.0, sweep="* * * * * *")
    async with app.open_async(), kling:
        print("open", flush=True)
        await app.run_worker_async(
            queues=["kling"],
            concurrency=int(in_flight),
            fetch_job_polling_interval=0.5,
            update_heartbeat_interval=0.3,
            stalled_worker_timeout=1.0,
            shutdown_graceful_timeout=0.1,
        )
    print("drained", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
