"""The same jobs by us and by what else one would use: CPU, status requests, and how late an end is noticed.

    python benchmarks/bench_peers.py [--rounds 3] [--long-rounds 2] [--long 10] [--json FILE] [--quick]

Three loads. In the first all slots are busy and everybody looks as often as its API permits; a job ends at its 4th
read. In the others jobs take a second, and longer, and everybody waits as it does by default; then the peers that look
more often than once a second do it once a second too. The local server speaks everybody's protocol; how each is pointed
at it, and what it does by default, stands in contenders/. Who cannot look as often as it would, for want of CPU, looks
less often. Rounds take turns; the server and every round of a client are
processes of their own, each kept to its core.
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
ONCE_A_SECOND = ", a look a second"

CPU, SPEED, READS, DELAY = "ms of CPU per job", "jobs/s", "status requests per job", "s from end to notice"

Contender = tuple[str, float | None]
"""A module of contenders/, and seconds from look to look."""


def at_once() -> dict[str, Contender]:
    return {name: (client, 0.0) for name, client in CLIENTS.items()}


def waiting() -> dict[str, Contender]:
    """As by default; and a look a second, in the order in which it is shown: ours first."""
    found: dict[str, Contender] = {}
    for name, client in CLIENTS.items():
        found[name] = (client, None)
        if name in {OURS, REPLICATE, FAL}:
            found[name + ONCE_A_SECOND] = (client, 1.0)
    return found


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
    with _suite.service() as url:
        load = Load(url=url, jobs=jobs, running=running)
        found = _suite.interleaved(
            rounds,
            {
                name: functools.partial(
                    _suite.measure, client, attrs.evolve(load, interval=interval), reads=reads, seconds=seconds
                )
                for name, (client, interval) in contenders.items()
            },
        )
    for name, took in found.items():
        figures = {
            CPU: [one.each / 1000 for one in took],
            SPEED: [one.speed for one in took],
            READS: [one.reads / one.submits for one in took],
            DELAY: [one.delay for one in took],
        }
        for unit in units:
            report.add(part, name, unit, *figures[unit], baseline=not name.startswith(OURS))
    report.serving(part, [one for took in found.values() for one in took])


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-rounds", type=int, default=2)
    parser.add_argument("--long", type=float, default=10.0, help="seconds that a long job takes")
    parser.add_argument("--jobs", type=int, default=150)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.long_rounds, options.jobs = 1, 0, 20
    jobs = options.jobs
    report = _suite.Report(options)

    busy, running = "All slots busy, beside the peers", min(jobs, 50)
    report.notes[busy] = f"{jobs} jobs, {running} running, 4 reads each, everybody looks as often as it can"
    compare(report, busy, at_once(), options.rounds, (CPU, SPEED, READS), jobs=jobs, running=running, reads=4)

    units = (CPU, READS, DELAY)
    short, running = "Jobs of 1 s, default settings", min(jobs, 100)
    report.notes[short] = f"{running} jobs, all running"
    compare(report, short, waiting(), options.rounds, units, jobs=running, running=running, seconds=1.0)

    parts = [short]
    long, running = f"Jobs of {options.long:g} s, default settings", min(jobs, 100)
    if options.long_rounds:
        parts.append(long)
        report.notes[long] = f"{running} jobs, all running"
        compare(
            report, long, waiting(), options.long_rounds, units, jobs=running, running=running, seconds=options.long
        )

    for part in parts:
        for peer, most in ((OFFICIAL, 0.2), (HTTPX, 0.2), (FAL, 0.1)):
            report.ratio(part, CPU, OURS, peer, at_most=most)
    report.finish()


if __name__ == "__main__":
    main()
