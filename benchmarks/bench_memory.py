"""Memory per running job, compared with bare aiohttp and a task per job, at a server that completes no job.

    python benchmarks/bench_memory.py [--running 5000] [--interval 10] [--json FILE] [--quick]

Each contender runs in a process of its own. Memory is measured after the connections are open, and again when all jobs
run and each was read once; the growth is divided by the number of jobs. Resident memory is counted by the system,
allocated memory by tracemalloc, in a separate run because it needs memory itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import math
import tracemalloc
from collections.abc import Callable

import aiohttp

import _suite
from _client import control
from kling_async import Job, KlingSession, NoLimit, WatchPolicy

IMAGE = "https://pictures.example/face.png"
HEADERS = {"Authorization": "Bearer wsk_benchmark"}
OURS = "kling_async"
MAX_KIB_PER_JOB = 8
READS_TO_COMPLETE = 10**9
"""Reads after which a job completes: never in this benchmark."""
WARM_UP_JOBS = 200
"""Jobs that run before the first measurement, to open connections, fill caches and load code."""
POLL_INTERVAL_S = 0.05


def resident() -> int:
    """Return the resident bytes of the process."""
    gc.collect()
    return _suite.resident_bytes()


def allocated() -> int:
    """Return the bytes allocated by Python."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def until(reached: Callable[[], bool]) -> None:
    while not reached():  # noqa: ASYNC110 -- the counters have no event
        await asyncio.sleep(POLL_INTERVAL_S)


async def bare(url: str, running: int, interval: float, memory: Callable[[], int]) -> int:
    """Hand-written: a task per job that sleeps between its reads. Return the growth in bytes."""
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
        tasks = [asyncio.create_task(one(number)) for number in range(WARM_UP_JOBS)]
        await until(lambda: reads >= WARM_UP_JOBS)
        before, first = memory(), reads
        tasks += [asyncio.create_task(one(number)) for number in range(WARM_UP_JOBS, WARM_UP_JOBS + running)]
        await until(lambda: reads >= first + running + WARM_UP_JOBS)
        growth = memory() - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return growth


async def kling(url: str, running: int, interval: float, memory: Callable[[], int]) -> int:
    """The whole SDK: a batch with a ledger in memory. Return the growth in bytes."""
    async with KlingSession(
        "wsk_benchmark",
        base_url=url,
        max_in_flight=WARM_UP_JOBS + running,
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(interval),
        max_reads_per_second=math.inf,
    ) as session:

        async def start_batch(start: int, count: int) -> asyncio.Task[None]:
            jobs = (
                Job(model="kling-v2.1-pro", prompt=f"number {start + number}", image=IMAGE) for number in range(count)
            )

            async def run() -> None:
                async with session.batch(jobs, name=f"from {start}", window=count) as batch:
                    async for _ in batch:
                        pass

            task = asyncio.create_task(run())
            await until(lambda: session.statistics().running == start + count)
            singles = session.statistics().watch.singles
            await until(lambda: session.statistics().watch.singles >= singles + start + count)
            return task

        warm_up = await start_batch(0, WARM_UP_JOBS)
        before = memory()
        measured = await start_batch(WARM_UP_JOBS, running)
        assert session.statistics().running == WARM_UP_JOBS + running
        growth = memory() - before
        for task in (warm_up, measured):
            task.cancel()
        await asyncio.gather(warm_up, measured, return_exceptions=True)
    return growth


CONTENDERS = {OURS: kling, "bare aiohttp, a task per job": bare}
MEMORY_KINDS = {"resident": resident, "allocated": allocated}


def child(name: str, url: str, kind: str, running: int, interval: float) -> None:
    """Run one contender in this process and print its growth in bytes."""
    if kind == "allocated":
        tracemalloc.start()
    # The session would warn about the jobs that still run when it is closed.
    logging.disable()
    print(asyncio.run(CONTENDERS[name](url, running, interval, MEMORY_KINDS[kind])))


def measure(name: str, kind: str, running: int, interval: float) -> float:
    """Run one contender in a process of its own and return KiB per job."""
    with _suite.service() as url:
        control(url, f"reads={READS_TO_COMPLETE}&seconds=0")
        load = ("--running", str(running), "--interval", str(interval))
        return int(_suite.output_of([__file__, "--one", name, url, kind, *load])) / running / 1024


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--running", type=int, default=5000)
    parser.add_argument("--interval", type=float, default=10.0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, url, kind = options.one
        child(name, url, kind, options.running, options.interval)
        return
    if options.quick:
        options.running, options.interval = 300, 1.0
    part = "Memory of running jobs"
    about = f"{options.running:,} running, each read every {options.interval:g} s, after {WARM_UP_JOBS} warm-up jobs"
    report = _suite.Report(options, notes={part: about})
    for name in CONTENDERS:
        for kind in MEMORY_KINDS:
            _suite.progress(f"{name}, {kind}")
            figure = measure(name, kind, options.running, options.interval)
            report.add(part, name, f"KiB {kind} per job", figure, baseline=name != OURS)
    _suite.progress("")
    for kind in MEMORY_KINDS:
        report.bound(part, f"KiB {kind} per job", OURS, at_most=MAX_KIB_PER_JOB)
    report.finish()


if __name__ == "__main__":
    main()
