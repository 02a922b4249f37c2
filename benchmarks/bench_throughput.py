"""Jobs per second and CPU per job, compared with bare aiohttp and a semaphore: one submit and k reads, all slots busy.

    python benchmarks/bench_throughput.py [--jobs 2000] [--running 200] [--rounds 5] [--reads 4] [--json FILE] [--quick]

A second baseline is an asyncio protocol without an HTTP library, the upper limit for Python. Every client polls as
often as it can. The clients take turns within each round; the server and each round of a client are processes of their
own, each pinned to a core.
"""

from __future__ import annotations

import functools

import attrs

import _suite
from contenders import Load

BARE, RAW = "bare aiohttp + semaphore", "a bare asyncio protocol"
OURS, LEDGER, SPEED = "kling_async", "kling_async, ledger on disk", "kling_async, with the extra speed"
CONTENDERS: dict[str, tuple[str, bool]] = {
    OURS: ("kling", False),
    LEDGER: ("kling", True),
    SPEED: ("kling_speed", False),
    BARE: ("bare", False),
    RAW: ("raw", False),
}


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--running", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=4)
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.running, options.rounds = 60, 20, 1

    part, speed, cpu = "All slots busy", "jobs/s", "µs of CPU per job"
    about = f"{options.jobs:,} jobs, {options.running} running, 1 submit and {options.reads} reads each"
    report = _suite.Report(options, notes={part: about})
    with _suite.service() as url:
        load = Load(url=url, jobs=options.jobs, running=options.running, interval=0.0)
        results = _suite.interleaved(
            options.rounds,
            {
                name: functools.partial(_suite.measure, client, attrs.evolve(load, ledger=ledger), reads=options.reads)
                for name, (client, ledger) in CONTENDERS.items()
            },
        )
    for name, rounds in results.items():
        baseline = name not in {OURS, LEDGER, SPEED}
        report.add(part, name, speed, *(one.jobs_per_s for one in rounds), baseline=baseline)
        report.add(part, name, cpu, *(one.cpu_us_per_job for one in rounds), baseline=baseline)
    report.note_load(part, [one for rounds in results.values() for one in rounds])
    report.ratio(part, speed, OURS, BARE, at_least=0.8)
    report.ratio(part, speed, LEDGER, BARE, at_least=0.65)
    # The same targets as CPU: on an idle core, 1 / 0.8 and 1 / 0.65.
    report.ratio(part, cpu, OURS, BARE, at_most=1.25)
    report.ratio(part, cpu, LEDGER, BARE, at_most=1.54)
    report.finish()


if __name__ == "__main__":
    main()
