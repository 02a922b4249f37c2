"""Hand-written with httpx: a client, a semaphore, a task per job; polls every second by default."""

from __future__ import annotations

import asyncio

import httpx

from contenders import KEY, Load, arguments


async def work(load: Load) -> None:
    slots = asyncio.Semaphore(load.running)
    interval = 1.0 if load.interval is None else load.interval
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        async with slots:
            reply = await client.post("/api/v3/kwaivgi/kling-v2.1-i2v-pro", json=arguments(number))
            data = reply.raise_for_status().json()["data"]
            while data["status"] != "completed":
                if interval:
                    await asyncio.sleep(interval)
                reply = await client.get(f"/api/v3/predictions/{data['id']}/result")
                data = reply.raise_for_status().json()["data"]
            done += bool(data["outputs"][0])

    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=load.url, headers=headers, timeout=60) as client:
        await asyncio.gather(*(one(number) for number in range(load.jobs)))
    assert done == load.jobs


def run(load: Load) -> None:
    asyncio.run(work(load))
