"""A million lazy jobs through 500 slots, over a scripted transport: what they cost, and that memory stays flat.

    python benchmarks/bench_lazy.py [--jobs 1000000] [--running 500]

No sockets: everything measured is the SDK. Beside it: the same jobs through `asyncio.gather` over `generate`, at
a hundredth of the number, because its memory follows the number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from kling_async import HttpRequest, HttpResponse, Job, KlingSession, NoLimit, WatchPolicy
from kling_async.testing import ScriptedTransport

IMAGE = "https://pictures.example/face.png"


def resident() -> float:
    """MiB of memory that the process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Silent(ScriptedTransport):
    """Keeps no record of requests: that would be what grows."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.count = 0

    async def send(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        return self.answer(request)

    def answer(self, request: HttpRequest) -> HttpResponse:
        if request.method == "POST":
            self.count += 1
            data: dict[str, object] = {"id": f"{self.count:032x}", "status": "created"}
        else:
            name = request.url.rsplit("/", 2)[-2]
            data = {"id": name, "status": "completed", "outputs": [f"https://outputs.example/{name}.mp4"]}
        return HttpResponse(status=200, body=json.dumps({"code": 200, "data": data}).encode())


def jobs(count: int) -> Iterator[Job]:
    return (Job(prompt=f"number {number}", image=IMAGE) for number in range(count))


def session(running: int) -> KlingSession:
    return KlingSession(
        "wsk_benchmark",
        transport=Silent(),
        max_in_flight=running,
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(0.001),
    )


async def batch(count: int, running: int) -> list[float]:
    """MiB at every tenth of the way."""
    marks = []
    done = 0
    async with session(running) as kling, kling.batch(jobs(count)) as stream:
        async for outcome in stream:
            done += outcome.ok
            if done % max(count // 10, 1) == 0:
                marks.append(resident())
    assert done == count
    return marks


async def gather(count: int, running: int) -> list[float]:
    async with session(running) as kling:
        done = await asyncio.gather(*(kling.generate(job) for job in jobs(count)))
    assert len(done) == count
    return [resident()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--running", type=int, default=500)
    options = parser.parse_args()
    print(f"{options.jobs} jobs, {options.running} running, Python {platform.python_version()}; MiB resident")
    begin = resident()
    wall, cpu = time.perf_counter(), time.process_time()
    marks = asyncio.run(batch(options.jobs, options.running))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"batch:  {begin:.0f} at the start, at each tenth {' '.join(f'{mark:.0f}' for mark in marks)}")
    print(f"        {options.jobs / wall:.0f} jobs/s, {cpu / options.jobs * 1e6:.0f} us of CPU per job")
    few = max(options.jobs // 100, 1)
    before = resident()
    (after,) = asyncio.run(gather(few, options.running))
    print(f"gather: {few} jobs add {after - before:.0f} MiB, {(after - before) / few * 1024:.1f} KiB per job")


if __name__ == "__main__":
    main()
