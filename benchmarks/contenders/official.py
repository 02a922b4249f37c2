"""The vendor's package `wavespeed`: blocking, so a thread per running job; polls every second by default."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import wavespeed  # type: ignore[import-untyped]  # ships no types

from contenders import KEY, Load, arguments


def run(load: Load) -> None:
    client = wavespeed.Client(api_key=KEY, base_url=load.url)
    options = {} if load.interval is None else {"poll_interval": load.interval}

    def one(number: int) -> bool:
        return bool(client.run("kwaivgi/kling-v2.1-i2v-pro", arguments(number), **options)["outputs"][0])

    with ThreadPoolExecutor(load.running) as pool:
        assert sum(pool.map(one, range(load.jobs))) == load.jobs
