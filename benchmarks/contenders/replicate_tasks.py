"""`replicate`: a prediction created and awaited in a task, with a semaphore; polls every 0.5 s by default.

Its `run` holds one request open for up to a minute, which is too short for videos.
"""

from __future__ import annotations

import asyncio

from replicate.client import Client

from contenders import KEY, Load, arguments


async def work(load: Load) -> None:
    client = Client(api_token=KEY, base_url=load.url)
    if load.interval is not None:
        client.poll_interval = load.interval
    slots = asyncio.Semaphore(load.running)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        async with slots:
            prediction = await client.models.predictions.async_create(
                model=("kwaivgi", "kling-v2.1"), input=arguments(number)
            )
            await prediction.async_wait()
            done += bool(prediction.output)

    await asyncio.gather(*(one(number) for number in range(load.jobs)))
    assert done == load.jobs


def run(load: Load) -> None:
    asyncio.run(work(load))
