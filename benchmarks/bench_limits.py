"""Adaptive slots against fixed slots, when the service has an undocumented concurrency limit that changes.

    python benchmarks/bench_limits.py [--jobs 4000] [--ceiling 300] [--speed 60] [--json FILE] [--quick]

The emulator's limit is 100, then 40, then 100 again, depending on the number of accepted jobs; the session is
configured for 300. It runs over sockets, on the emulator's clock.
"""

from __future__ import annotations

import asyncio
import base64
import time
import zlib

import _suite
from kling_async import Job, KlingSession, NoLimit, WatchPolicy, events
from kling_async._session.session import engine_of
from kling_async.emulator import Emulator, Level


def picture() -> str:
    """Return a valid PNG as a data URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = 300
    head = chunk(b"IHDR", size.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]))
    body = chunk(b"IDAT", zlib.compress(bytes(size * (size + 1)), 9))
    png = b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


async def run(jobs: int, ceiling: int, speed: float, *, adaptive: bool) -> tuple[int, float]:
    """Run the jobs; return the number of refused submits and the elapsed minutes on the emulator's clock."""

    def limit(accepted: int) -> Level:
        return Level(10**6, 40 if 0.35 * jobs <= accepted < 0.6 * jobs else 100)

    accepted = 0

    def observe(event: events.Event) -> None:
        nonlocal accepted
        if isinstance(event, events.Accepted):
            accepted += 1
            emulator.set_level(limit(accepted))

    image = picture()
    async with Emulator(level=limit(0), speed=speed, profile="tiny", balance=10**6) as emulator:
        began = time.perf_counter()
        async with KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            clock=emulator.clock,
            max_in_flight=ceiling,
            adaptive=adaptive,
            rate_limiter=NoLimit(),
            watch=WatchPolicy.fixed(30.0),
            observers=[observe],
        ) as kling:
            job_stream = (Job(prompt=f"number {number}", image=image) for number in range(jobs))
            async with kling.batch(job_stream) as batch:
                completed = [outcome.ok async for outcome in batch].count(True)
            refusals = engine_of(kling).gate.refusals
        seconds = time.perf_counter() - began
        print(
            f"{'adaptive' if adaptive else 'fixed':>9}: {completed} of {jobs} completed, "
            f"{refusals.total()} submits refused "
            f"({', '.join(f'{count} {kind.value}' for kind, count in refusals.items())}), "
            f"peak {emulator.peak_running}, {seconds * speed / 60:.0f} emulator minutes, {seconds:.0f} s"
        )
        return refusals.total(), seconds * speed / 60


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--ceiling", type=int, default=300)
    parser.add_argument("--speed", type=float, default=60.0)
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.speed = 200, 300.0
    part = "A changing concurrency limit"
    about = f"limit 100, then 40, then 100; {options.jobs:,} jobs, up to {options.ceiling} slots"
    report = _suite.Report(options, notes={part: about})
    for adaptive in (True, False):
        refused, minutes = asyncio.run(run(options.jobs, options.ceiling, options.speed, adaptive=adaptive))
        name = "kling_async, adaptive slots" if adaptive else "kling_async, fixed slots"
        report.add(part, name, "refused submits", refused, baseline=not adaptive)
        report.add(part, name, "emulator minutes", minutes, baseline=not adaptive)
    report.finish()


if __name__ == "__main__":
    main()
