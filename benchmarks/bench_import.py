"""What importing adds to importing aiohttp, and how many distributions a core install is.

    python benchmarks/bench_import.py [--rounds 15] [--json FILE] [--quick]

Each figure is of fresh processes, interleaved with those of the baseline. CPU time: it is what the import costs on a
busy machine too. `import kling_async` loads a name's module when the name is first used, and a session loads what it
works with when it is opened: the row of the session is what a program pays, all in all, that opens one.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import _suite

OPENED = """
import asyncio
from kling_async import KlingSession

async def main():
    async with KlingSession("a-key-that-is-sent-nowhere"):
        pass

asyncio.run(main())
"""
BASELINE, NAMES, PACKAGE = "import aiohttp", "from kling_async import Job, KlingSession", "import kling_async"
ROWS = {
    BASELINE: ("", "import aiohttp"),
    "the same, and a session opened and closed": ("import aiohttp", OPENED),
    NAMES: ("import aiohttp", NAMES),
    PACKAGE: ("import aiohttp", PACKAGE),
}
"""What is there already, and what is measured."""
SCRIPT = """
import time
{before}
wall, cpu = time.perf_counter(), time.process_time()
{measured}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
MOST, DISTRIBUTIONS = 60, 16
"""Milliseconds that may be added, and how many distributions there may be."""


def measure(before: str, measured: str) -> tuple[float, float]:
    """Milliseconds: on the clock, and of CPU."""
    wall, cpu = (float(part) for part in _suite.said(["-c", SCRIPT.format(before=before, measured=measured)]).split())
    return 1000 * wall, 1000 * cpu


def needed(lines: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """The distributions that requirements name, and all that those need here; they have to be installed."""
    found: set[str] = set()
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            name = canonicalize_name(requirement.name)
            found |= {name} | needed(requires(name) or [], requirement.extras)
    return found


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    part, cpu = "Import", "ms of CPU"
    about = f"{options.rounds} fresh processes each; what is ours comes on top, where aiohttp is imported already"
    report = _suite.Report(options, notes={part: about})
    for row in () if options.quick else ROWS.values():
        measure(*row)
    found = _suite.interleaved(options.rounds, {name: functools.partial(measure, *row) for name, row in ROWS.items()})
    for name, rounds in found.items():
        on_the_clock, of_cpu = zip(*rounds, strict=True)
        report.add(part, name, cpu, *of_cpu, baseline=name == BASELINE)
        report.add(part, name, "ms", *on_the_clock, baseline=name == BASELINE)
    for name in (PACKAGE, NAMES):
        report.bound(part, cpu, name, at_most=MOST)

    # By what is declared: the package need not be installed where this runs.
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    core = {canonicalize_name(project["name"])} | needed(project["dependencies"])
    part, count = "A core install", "distributions"
    report.notes[part] = ", ".join(sorted(core))
    report.add(part, "kling_async", count, len(core))
    report.add(part, "aiohttp alone", count, len(needed(["aiohttp"])), baseline=True)
    report.bound(part, count, "kling_async", at_most=DISTRIBUTIONS)
    report.finish()


if __name__ == "__main__":
    main()
