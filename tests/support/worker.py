"""Run one batch over a ledger, to be killed: `python worker.py LEDGER BASE_URL KEY JOBS IN_FLIGHT`."""

from __future__ import annotations

import asyncio
import base64
import sys

from kling_async import Job, KlingSession, Level, NoLimit, WatchPolicy
from support.pictures import png

PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()


async def main() -> None:
    ledger, base_url, key, jobs, in_flight = sys.argv[1:]
    async with KlingSession(
        key,
        base_url=base_url,
        ledger=ledger,
        level=Level("test", 1_000_000, int(in_flight)),
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(0.2),
        grace=0.5,
        sole_user=True,
    ) as kling:
        asked = ((f"job-{number}", Job(prompt=f"number {number}", image=PICTURE)) for number in range(int(jobs)))
        async with kling.batch(asked, name="killed") as batch:
            async for outcome in batch:
                print(outcome.key, outcome.ok, type(outcome.error).__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
