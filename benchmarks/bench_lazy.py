"""A million lazy jobs through 500 slots, over a scripted transport: what they cost, and that memory stays flat.

    python benchmarks/bench_lazy.py [--jobs 1000000] [--running 500] [--json FILE] [--quick]

No sockets: everything measured is the SDK. Beside it: the same jobs through `asyncio.gather` over `generate`, at
a hundredth of the number, because its memory follows the number. Each is a process of its own, whose resident memory
is looked at, on Linux; the MiB are all of the process, the KiB per job what it has grown by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator

import attrs

import _suite
from kling_async import HttpRequest, HttpResponse, Job, KlingSession, NoLimit, WatchPolicy
from kling_async.testing import ScriptedTransport

IMAGE = "https://pictures.example/face.png"
BATCH = "kling_async, a batch"
WARM = 100


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


async def batch(count: int, running: int) -> list[int]:
    """Bytes at every tenth of the way."""
    marks = []
    done = 0
    async with session(running) as kling, kling.batch(jobs(count)) as stream:
        async for outcome in stream:
            done += outcome.ok
            if done % (count // 10) == 0:
                marks.append(_suite.resident())
    assert done == count
    return marks


async def gather(count: int, running: int) -> list[int]:
    """Bytes at the end."""
    async with session(running) as kling:
        done = await asyncio.gather(*(kling.generate(job) for job in jobs(count)))
        assert len(done) == count
        return [_suite.resident()]


CONTENDERS = {"batch": batch, "gather": gather}


@attrs.frozen(kw_only=True)
class Took:
    """What the jobs took; `marks` are bytes, of which `begin` were there before."""

    wall: float
    cpu: float
    begin: int
    marks: list[int]


def child(name: str, count: int, running: int) -> None:
    """One contender, in a process of its own; a few jobs first, so that what it works with is loaded."""
    asyncio.run(CONTENDERS[name](WARM, running))
    begin, wall, cpu = _suite.resident(), time.perf_counter(), time.process_time()
    marks = asyncio.run(CONTENDERS[name](count, running))
    took = Took(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, begin=begin, marks=marks)
    print(json.dumps(attrs.asdict(took)))


def measure(name: str, count: int, running: int) -> Took:
    options = ("--jobs", str(count), "--running", str(running))
    return Took(**json.loads(_suite.said([__file__, "--one", name, *options])))


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="a multiple of 1,000")
    parser.add_argument("--running", type=int, default=500)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        child(options.one, options.jobs, options.running)
        return
    if options.quick:
        options.jobs, options.running = 2000, 50
    if options.jobs % 1000:
        parser.error("the jobs are to be a multiple of 1,000")
    part, flat = f"{options.jobs:,} lazy jobs through {options.running} slots", "MiB at the end / at the first tenth"
    about = "a submit and a read each, over a transport in memory: no sockets, no ledger on disk"
    report = _suite.Report(options, notes={part: about})
    few = options.jobs // 100
    for name, count in (("batch", options.jobs), ("gather", few)):
        took = measure(name, count, options.running)
        ours = name == "batch"
        row = BATCH if ours else f"asyncio.gather over generate, {few:,} jobs"
        report.add(part, row, "jobs/s", count / took.wall, baseline=not ours)
        report.add(part, row, "µs of CPU per job", took.cpu / count * 1e6, baseline=not ours)
        report.add(part, row, "KiB per job", (took.marks[-1] - took.begin) / count / 1024, baseline=not ours)
        if ours:
            report.add(part, row, "MiB at the first tenth", took.marks[0] / 2**20)
            report.add(part, row, "MiB at the end", took.marks[-1] / 2**20)
            report.add(part, row, flat, took.marks[-1] / took.marks[0])
    report.bound(part, flat, BATCH, at_most=1.1)
    report.finish()


if __name__ == "__main__":
    main()
