"""The vendor's package `wavespeed` over a line: a thread per running job uploads, runs and downloads."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import wavespeed  # type: ignore[import-untyped]  # ships no types

if TYPE_CHECKING:
    from _line_client import LineLoad


def run(load: LineLoad) -> None:
    client = wavespeed.Client(api_key=load.key, base_url=load.url)

    def one(number: int) -> None:
        inputs = {"prompt": f"number {number}", "image": client.upload(load.pictures[number]), "duration": 5}
        [url] = client.run("kwaivgi/kling-v2.1-i2v-pro", inputs)["outputs"]
        with urllib.request.urlopen(url) as reply:
            Path(load.outputs, f"{number}.mp4").write_bytes(reply.read())

    with ThreadPoolExecutor(load.running) as pool:
        list(pool.map(one, range(len(load.pictures))))
