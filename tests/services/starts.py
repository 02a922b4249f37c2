"""Acquire concurrently from a limiter shared by processes: `starts.py URL KEY STARTS PER COUNT`."""

from __future__ import annotations

import asyncio
import sys

from kling_async.limits.shared import SharedStartsPerWindow


async def main(url: str, key: str, starts: int, per: float, count: int) -> None:
    async with SharedStartsPerWindow(url, starts, per, key=key) as limiter:
        await asyncio.gather(*(limiter.acquire() for _ in range(count)))


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
