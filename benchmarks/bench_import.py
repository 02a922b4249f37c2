"""Import time on top of aiohttp's, and the number of distributions in a core install.

    python benchmarks/bench_import.py [--rounds 15] [--json FILE] [--quick]

Each figure comes from fresh processes, interleaved with those of the baseline. CPU time is judged, since it does not
depend on other load. The package loads the module of a name on first use, and a session loads its parts when it is
opened; the row with a session is the total cost for a program that opens one.
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

OPEN_SESSION = """
import asyncio
from kling_async import KlingSession

async def main():
    async with KlingSession("unused-key"):
        pass

asyncio.run(main())
"""
BASELINE, NAMES, PACKAGE = "import aiohttp", "from kling_async import Job, KlingSession", "import kling_async"
ROWS = {
    BASELINE: ("", "import aiohttp"),
    "the same, with a session opened and closed": ("import aiohttp", OPEN_SESSION),
    NAMES: ("import aiohttp", NAMES),
    PACKAGE: ("import aiohttp", PACKAGE),
}
"""Code to run before and code to measure, by row."""
SCRIPT = """
import time
{before}
wall, cpu = time.perf_counter(), time.process_time()
{measured}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
MAX_IMPORT_CPU_MS = 60
MAX_DISTRIBUTIONS = 16


def measure(before: str, measured: str) -> tuple[float, float]:
    """Return elapsed milliseconds and CPU milliseconds."""
    # Without the working folder, which may be a checkout that was never compiled.
    output = _suite.output_of(["-P", "-c", SCRIPT.format(before=before, measured=measured)])
    wall, cpu = (float(part) for part in output.split())
    return 1000 * wall, 1000 * cpu


def dependencies(lines: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """Return the distributions of the requirements and, recursively, of theirs; all must be installed."""
    names: set[str] = set()
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            name = canonicalize_name(requirement.name)
            names |= {name} | dependencies(requires(name) or [], requirement.extras)
    return names


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    part, cpu = "Import", "ms of CPU"
    about = f"{options.rounds} fresh processes each; our rows are the time on top of aiohttp's"
    report = _suite.Report(options, notes={part: about})
    for row in () if options.quick else ROWS.values():
        measure(*row)
    results = _suite.interleaved(options.rounds, {name: functools.partial(measure, *row) for name, row in ROWS.items()})
    for name, rounds in results.items():
        wall_ms, cpu_ms = zip(*rounds, strict=True)
        report.add(part, name, cpu, *cpu_ms, baseline=name == BASELINE)
        report.add(part, name, "ms", *wall_ms, baseline=name == BASELINE)
    for name in (PACKAGE, NAMES):
        report.bound(part, cpu, name, at_most=MAX_IMPORT_CPU_MS)

    # Read from pyproject.toml: the package itself need not be installed.
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    core = {canonicalize_name(project["name"])} | dependencies(project["dependencies"])
    part, count = "A core install", "distributions"
    report.notes[part] = ", ".join(sorted(core))
    report.add(part, "kling_async", count, len(core))
    report.add(part, "aiohttp alone", count, len(dependencies(["aiohttp"])), baseline=True)
    report.bound(part, count, "kling_async", at_most=MAX_DISTRIBUTIONS)
    report.finish()


if __name__ == "__main__":
    main()
