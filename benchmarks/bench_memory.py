"""Memory per running job, beside bare aiohttp with a task per job: a server that never completes any.

    python benchmarks/bench_memory.py [--running 5000] [--interval 10] [--json FILE] [--quick]

Every contender runs in a process of its own: so many jobs run, every one was read once by itself, and what the process
has grown by since the connections stood is divided by them. Resident memory is what the system gives; allocated is what
Python has asked for (tracemalloc, in a run of its own, because it costs memory itself).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import tracemalloc
from collections.abc import Callable

import aiohttp

import _suite
from _client import control
from kling_async import Job, KlingSession, NoLimit, WatchPolicy

IMAGE = "https://pictures.example/face.png"
HEADERS = {"Authorization": "Bearer wsk_benchmark"}
OURS = "kling_async"
MOST = 8
"""KiB that a running job may take."""
NEVER = 10**9
"""Reads after which a job would complete."""
WARM = 200
"""Jobs that run before the first look: connections, caches and code are there then."""


def resident() -> int:
    """Bytes of memory that the process occupies."""
    gc.collect()
    return _suite.resident()


def allocated() -> int:
    """Bytes that Python has asked for."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def until(reached: Callable[[], bool]) -> None:
    while not reached():  # noqa: ASYNC110 -- what is counted knows no event
        await asyncio.sleep(0.05)


async def bare(url: str, running: int, interval: float, weigh: Callable[[], int]) -> int:
    """What one writes by hand: a task per job, which sleeps between its reads."""
    reads = 0

    async def one(number: int) -> None:
        nonlocal reads
        body = {"prompt": f"number {number}", "image": IMAGE, "duration": 5}
        async with session.post(f"{url}/api/v3/kwaivgi/kling-v2.1-i2v-pro", json=body, headers=HEADERS) as reply:
            data = (await reply.json())["data"]
        while data["status"] != "completed":
            await asyncio.sleep(interval)
            async with session.get(f"{url}/api/v3/predictions/{data['id']}/result", headers=HEADERS) as reply:
                data = (await reply.json())["data"]
            reads += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
        tasks = [asyncio.create_task(one(number)) for number in range(WARM)]
        await until(lambda: reads >= WARM)
        before, first = weigh(), reads
        tasks += [asyncio.create_task(one(number)) for number in range(WARM, WARM + running)]
        await until(lambda: reads >= first + running + WARM)
        grown = weigh() - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return grown


async def kling(url: str, running: int, interval: float, weigh: Callable[[], int]) -> int:
    """The whole SDK: a batch; the ledger is memory."""
    async with KlingSession(
        "wsk_benchmark",
        base_url=url,
        max_in_flight=WARM + running,
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(interval),
    ) as session:

        async def begin(start: int, count: int) -> asyncio.Task[None]:
            asked = (
                Job(model="kling-v2.1-pro", prompt=f"number {start + number}", image=IMAGE) for number in range(count)
            )

            async def run() -> None:
                async with session.batch(asked, name=f"from {start}", window=count) as batch:
                    async for _ in batch:
                        pass

            task = asyncio.create_task(run())
            await until(lambda: session.statistics().running == start + count)
            singles = session.statistics().watch.singles
            await until(lambda: session.statistics().watch.singles >= singles + start + count)
            return task

        warm = await begin(0, WARM)
        before = weigh()
        rest = await begin(WARM, running)
        assert session.statistics().running == WARM + running
        grown = weigh() - before
        for task in (warm, rest):
            task.cancel()
        await asyncio.gather(warm, rest, return_exceptions=True)
    return grown


CONTENDERS = {OURS: kling, "bare aiohttp, a task per job": bare}
WAYS = {"resident": resident, "allocated": allocated}


def child(name: str, url: str, how: str, running: int, interval: float) -> None:
    """One contender, looked at in one way: bytes that so many jobs take."""
    if how == "allocated":
        tracemalloc.start()
    # At the end all of them run still, and the session says so.
    logging.disable()
    print(asyncio.run(CONTENDERS[name](url, running, interval, WAYS[how])))


def measure(name: str, how: str, running: int, interval: float) -> float:
    """KiB per job."""
    with _suite.service() as url:
        control(url, f"reads={NEVER}&seconds=0")
        load = ("--running", str(running), "--interval", str(interval))
        return int(_suite.said([__file__, "--one", name, url, how, *load])) / running / 1024


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--running", type=int, default=5000)
    parser.add_argument("--interval", type=float, default=10.0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, url, how = options.one
        child(name, url, how, options.running, options.interval)
        return
    if options.quick:
        options.running, options.interval = 300, 1.0
    part = "Memory of running jobs"
    about = (
        f"{options.running:,} running, each read every {options.interval:g} s; {WARM} more ran before the first look"
    )
    report = _suite.Report(options, notes={part: about})
    for name in CONTENDERS:
        for how in WAYS:
            _suite.progress(f"{name}, {how}")
            figure = measure(name, how, options.running, options.interval)
            report.add(part, name, f"KiB {how} per job", figure, baseline=name != OURS)
    _suite.progress("")
    for how in WAYS:
        report.bound(part, f"KiB {how} per job", OURS, at_most=MOST)
    report.finish()


if __name__ == "__main__":
    main()
