"""CPU, status requests and delay of this package, compared with the vendor's client and other polling clients.

    python benchmarks/bench_peers.py [--rounds 3] [--long-rounds 2] [--long 10] [--json FILE] [--quick]

Three loads. In the first, all slots are busy, every client polls as often as its API permits, and a job ends at its 4th
read. In the others, jobs take one second and longer, and every client polls at its default interval; clients that poll
more than once a second are also measured at once a second. The local server implements all protocols; contenders/ shows
how each client is configured and its default interval. A client that is short of CPU polls less often than configured.
The clients take turns within each round; the server and each round of a client are processes of their own, each pinned
to a core.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import attrs

import _suite
from contenders import Load

OURS = "kling_async"
BARE, HTTPX, OFFICIAL = "bare aiohttp + semaphore", "httpx by hand", "wavespeed, threads"
FAL, REPLICATE = "fal-client", "replicate"
CLIENTS = {
    OURS: "kling",
    BARE: "bare",
    HTTPX: "httpx_by_hand",
    OFFICIAL: "official",
    REPLICATE: "replicate_tasks",
    FAL: "fal",
}
EVERY_SECOND = ", polling every second"

CPU, SPEED, READS, DELAY = "ms of CPU per job", "jobs/s", "status requests per job", "s from end to notice"

Contender = tuple[str, float | None]
"""Module of contenders/, and seconds between polls; None for the client's default."""


def without_interval() -> dict[str, Contender]:
    return {name: (client, 0.0) for name, client in CLIENTS.items()}


def with_default_interval() -> dict[str, Contender]:
    """Return all clients with their default interval, and those below one second also with one second."""
    contenders: dict[str, Contender] = {}
    for name, client in CLIENTS.items():
        contenders[name] = (client, None)
        if name in {OURS, REPLICATE, FAL}:
            contenders[name + EVERY_SECOND] = (client, 1.0)
    return contenders


def compare(
    report: _suite.Report,
    part: str,
    contenders: Mapping[str, Contender],
    rounds: int,
    units: Sequence[str],
    *,
    jobs: int,
    running: int,
    reads: int = 1,
    seconds: float = 0.0,
) -> None:
    """Measure all contenders with one load and add the figures to the report."""
    with _suite.service() as url:
        load = Load(url=url, jobs=jobs, running=running)
        results = _suite.interleaved(
            rounds,
            {
                name: functools.partial(
                    _suite.measure, client, attrs.evolve(load, interval=interval), reads=reads, seconds=seconds
                )
                for name, (client, interval) in contenders.items()
            },
        )
    for name, rounds_of_one in results.items():
        figures = {
            CPU: [one.cpu_us_per_job / 1000 for one in rounds_of_one],
            SPEED: [one.jobs_per_s for one in rounds_of_one],
            READS: [one.reads / one.submits for one in rounds_of_one],
            DELAY: [one.delay for one in rounds_of_one],
        }
        for unit in units:
            report.add(part, name, unit, *figures[unit], baseline=not name.startswith(OURS))
    report.note_load(part, [one for rounds_of_one in results.values() for one in rounds_of_one])


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-rounds", type=int, default=2)
    parser.add_argument("--long", type=float, default=10.0, help="duration of a long job in seconds")
    parser.add_argument("--jobs", type=int, default=150)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.long_rounds, options.jobs = 1, 0, 20
    jobs = options.jobs
    report = _suite.Report(options)

    busy, running = "All slots busy, with peers", min(jobs, 50)
    report.notes[busy] = f"{jobs} jobs, {running} running, 4 reads each, every client polls as often as it can"
    compare(report, busy, without_interval(), options.rounds, (CPU, SPEED, READS), jobs=jobs, running=running, reads=4)

    units = (CPU, READS, DELAY)
    short, running = "Jobs of 1 s, default settings", min(jobs, 100)
    report.notes[short] = f"{running} jobs, all running"
    compare(report, short, with_default_interval(), options.rounds, units, jobs=running, running=running, seconds=1.0)

    parts = [short]
    long, running = f"Jobs of {options.long:g} s, default settings", min(jobs, 100)
    if options.long_rounds:
        parts.append(long)
        report.notes[long] = f"{running} jobs, all running"
        compare(
            report,
            long,
            with_default_interval(),
            options.long_rounds,
            units,
            jobs=running,
            running=running,
            seconds=options.long,
        )

    for part in parts:
        for peer, at_most in ((OFFICIAL, 0.2), (HTTPX, 0.2), (FAL, 0.1)):
            report.ratio(part, CPU, OURS, peer, at_most=at_most)
    report.finish()


if __name__ == "__main__":
    main()
