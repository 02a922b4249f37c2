"""Hand-written with aiohttp: a session, a semaphore, a task per job; polls every second by default."""

from __future__ import annotations

import asyncio

import aiohttp

from contenders import KEY, Load, arguments


async def work(load: Load) -> None:
    slots = asyncio.Semaphore(load.running)
    interval = 1.0 if load.interval is None else load.interval
    headers = {"Authorization": f"Bearer {KEY}"}
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        async with slots:
            body = arguments(number)
            async with session.post(
                f"{load.url}/api/v3/kwaivgi/kling-v2.1-i2v-pro", json=body, headers=headers
            ) as reply:
                data = (await reply.json())["data"]
            while data["status"] != "completed":
                if interval:
                    await asyncio.sleep(interval)
                async with session.get(f"{load.url}/api/v3/predictions/{data['id']}/result", headers=headers) as reply:
                    data = (await reply.json())["data"]
            done += bool(data["outputs"][0])

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
        await asyncio.gather(*(one(number) for number in range(load.jobs)))
    assert done == load.jobs


def run(load: Load) -> None:
    asyncio.run(work(load))
