"""CPU and memory of a million lazy jobs through 500 slots, over a scripted transport.

    python benchmarks/bench_lazy.py [--jobs 1000000] [--running 500] [--json FILE] [--quick]

There are no sockets, so only the SDK is measured. The baseline runs `asyncio.gather` over `generate` with a hundredth
of the jobs, because its memory grows with their number. Each contender is a process of its own. Memory is resident
(Linux): MiB of the whole process, KiB per job of its growth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Iterator

import attrs

import _suite
from kling_async import HttpRequest, HttpResponse, Job, KlingSession, NoLimit, WatchPolicy
from kling_async.testing import ScriptedTransport

IMAGE = "https://pictures.example/face.png"
BATCH = "kling_async, a batch"
WARM_UP_JOBS = 100
MAX_GROWTH_FACTOR = 1.1


class UnrecordedTransport(ScriptedTransport):
    """A scripted transport without a record of requests, which would grow with their number."""

    def __init__(self) -> None:
        super().__init__(self.respond)
        self.count = 0

    async def send(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        return self.respond(request)

    def respond(self, request: HttpRequest) -> HttpResponse:
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
        transport=UnrecordedTransport(),
        max_in_flight=running,
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(0.001),
        max_reads_per_second=math.inf,
    )


async def batch(count: int, running: int) -> list[int]:
    """Run a batch; return the resident bytes after each tenth of the jobs."""
    marks = []
    done = 0
    async with session(running) as kling, kling.batch(jobs(count)) as stream:
        async for outcome in stream:
            done += outcome.ok
            if done % (count // 10) == 0:
                marks.append(_suite.resident_bytes())
    assert done == count
    return marks


async def gather(count: int, running: int) -> list[int]:
    """Run `asyncio.gather`; return the resident bytes at the end."""
    async with session(running) as kling:
        done = await asyncio.gather(*(kling.generate(job) for job in jobs(count)))
        assert len(done) == count
        return [_suite.resident_bytes()]


CONTENDERS = {"batch": batch, "gather": gather}


@attrs.frozen(kw_only=True)
class Measurement:
    """Measurements of one contender.

    Attributes:
        wall: elapsed seconds.
        cpu: CPU seconds.
        begin: resident bytes before the jobs.
        marks: resident bytes during or after the jobs.
    """

    wall: float
    cpu: float
    begin: int
    marks: list[int]


def child(name: str, count: int, running: int) -> None:
    """Run one contender in this process, after a few warm-up jobs, and print the measurement as JSON."""
    asyncio.run(CONTENDERS[name](WARM_UP_JOBS, running))
    begin, wall, cpu = _suite.resident_bytes(), time.perf_counter(), time.process_time()
    marks = asyncio.run(CONTENDERS[name](count, running))
    result = Measurement(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, begin=begin, marks=marks)
    print(json.dumps(attrs.asdict(result)))


def measure(name: str, count: int, running: int) -> Measurement:
    """Run one contender in a process of its own."""
    options = ("--jobs", str(count), "--running", str(running))
    return Measurement(**json.loads(_suite.output_of([__file__, "--one", name, *options])))


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
        parser.error(f"--jobs: expected a multiple of 1,000, got {options.jobs}")
    part, growth = f"{options.jobs:,} lazy jobs through {options.running} slots", "MiB at the end / at the first tenth"
    about = "one submit and one read each, over an in-memory transport: no sockets, no ledger on disk"
    report = _suite.Report(options, notes={part: about})
    few = options.jobs // 100
    for name, count in (("batch", options.jobs), ("gather", few)):
        result = measure(name, count, options.running)
        ours = name == "batch"
        row = BATCH if ours else f"asyncio.gather over generate, {few:,} jobs"
        report.add(part, row, "jobs/s", count / result.wall, baseline=not ours)
        report.add(part, row, "µs of CPU per job", result.cpu / count * 1e6, baseline=not ours)
        report.add(part, row, "KiB per job", (result.marks[-1] - result.begin) / count / 1024, baseline=not ours)
        if ours:
            report.add(part, row, "MiB at the first tenth", result.marks[0] / 2**20)
            report.add(part, row, "MiB at the end", result.marks[-1] / 2**20)
            report.add(part, row, growth, result.marks[-1] / result.marks[0])
    report.bound(part, growth, BATCH, at_most=MAX_GROWTH_FACTOR)
    report.finish()


if __name__ == "__main__":
    main()
