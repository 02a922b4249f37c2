"""Jobs per second and CPU per job, beside bare aiohttp with a semaphore: one submit and k reads each, all slots busy.

    python benchmarks/bench_throughput.py [--jobs 2000] [--running 200] [--rounds 5] [--reads 4] [--json FILE]

The rounds of both are interleaved; medians and ranges are printed. The server is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import aiohttp

from kling_async import Job, KlingSession, NoLimit, WatchPolicy

IMAGE = "https://pictures.example/face.png"
HEADERS = {"Authorization": "Bearer wsk_benchmark"}


async def bare(url: str, jobs: int, running: int) -> None:
    """What one writes by hand: a session, a semaphore, a task per job."""
    slots = asyncio.Semaphore(running)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        async with slots:
            body = {"prompt": f"number {number}", "image": IMAGE, "duration": 5}
            async with session.post(f"{url}/api/v3/kwaivgi/kling-v2.1-i2v-pro", json=body, headers=HEADERS) as reply:
                data = (await reply.json())["data"]
            while data["status"] != "completed":
                async with session.get(f"{url}/api/v3/predictions/{data['id']}/result", headers=HEADERS) as reply:
                    data = (await reply.json())["data"]
            done += bool(data["outputs"][0])

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
        await asyncio.gather(*(one(number) for number in range(jobs)))
    assert done == jobs


async def kling(url: str, jobs: int, running: int) -> None:
    """The whole SDK: typed jobs, slots, limiter, watcher, events, stream; the ledger is memory."""
    done = 0
    async with KlingSession(
        "wsk_benchmark",
        base_url=url,
        max_in_flight=running,
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(0.001),
    ) as session:
        asked = (Job(model="kling-v2.1-pro", prompt=f"number {number}", image=IMAGE) for number in range(jobs))
        async with session.batch(asked) as batch:
            async for prediction in batch.completed():
                done += bool(prediction.output)
    assert done == jobs


def measure(work: Callable[[str, int, int], Awaitable[None]], url: str, jobs: int, running: int) -> tuple[float, float]:
    """Jobs per second, and microseconds of CPU per job."""

    async def timed() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        await work(url, jobs, running)
        return jobs / (time.perf_counter() - wall), (time.process_time() - cpu) / jobs * 1e6

    return asyncio.run(timed())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--running", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("server.py")), str(options.reads)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        contenders = {"bare aiohttp + semaphore": bare, "kling_async": kling}
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for work in contenders.values():
            measure(work, url, min(options.jobs, 500), options.running)
        for _ in range(options.rounds):
            for name, work in contenders.items():
                figures[name].append(measure(work, url, options.jobs, options.running))
    finally:
        server.kill()
        server.wait()

    print(
        f"{options.jobs} jobs, {options.running} running, 1 submit and {options.reads} reads each, "
        f"{options.rounds} interleaved rounds, Python {platform.python_version()}, aiohttp {version('aiohttp')}"
    )
    print(f"{'':28}{'jobs/s':>10}{'(range)':>16}{'CPU/job':>12}{'(range)':>18}")
    medians = {}
    for name, rounds in figures.items():
        speed, cpu = ([one[index] for one in rounds] for index in (0, 1))
        medians[name] = (statistics.median(speed), statistics.median(cpu))
        print(
            f"{name:28}{medians[name][0]:>10.0f}{f'{min(speed):.0f}-{max(speed):.0f}':>16}"
            f"{medians[name][1]:>9.0f} us{f'{min(cpu):.0f}-{max(cpu):.0f} us':>18}"
        )
    floor, ours = medians["bare aiohttp + semaphore"], medians["kling_async"]
    print(f"{'ratio':28}{ours[0] / floor[0]:>10.2f}{'':16}{ours[1] / floor[1]:>12.2f}")
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "figures": figures}, default=str, indent=1))


if __name__ == "__main__":
    main()
