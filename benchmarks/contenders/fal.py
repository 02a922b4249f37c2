"""`fal-client`: its AsyncClient and a semaphore; polls every 0.1 s by default, plus one request for the result.

Its host setting (`FAL_QUEUE_RUN_HOST`) implies TLS, so its URL constant is replaced instead.
"""

from __future__ import annotations

import asyncio

import fal_client.client

from contenders import KEY, Load, arguments


async def work(load: Load) -> None:
    fal_client.client.QUEUE_URL_FORMAT = f"{load.url}/fal/"
    client = fal_client.AsyncClient(key=KEY)
    slots = asyncio.Semaphore(load.running)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        async with slots:
            application = "kling-video/v2.1"
            if load.interval is None:
                result = await client.subscribe(application, arguments(number))
            else:
                result = await client.subscribe(application, arguments(number), interval=load.interval)
            done += bool(result["video"]["url"])

    await asyncio.gather(*(one(number) for number in range(load.jobs)))
    assert done == load.jobs


def run(load: Load) -> None:
    asyncio.run(work(load))
