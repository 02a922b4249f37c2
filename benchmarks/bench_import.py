"""What importing adds to importing aiohttp, and what a core install consists of.

    python benchmarks/bench_import.py [--rounds 15] [--json FILE]

Each figure is of fresh processes, interleaved with those of the baseline. CPU time: it is what the import costs on a
busy machine too. `import kling_async` loads a name's module when the name is first used, and a session loads what it
works with when it is opened: the last row is what a program pays, all in all, that opens one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

OPENED = """
import asyncio
from kling_async import KlingSession

async def main():
    async with KlingSession("a-key-that-is-sent-nowhere"):
        pass

asyncio.run(main())
"""
ROWS = {
    "import aiohttp": ("", "import aiohttp"),
    "import kling_async": ("import aiohttp", "import kling_async"),
    "from kling_async import Job, KlingSession": ("import aiohttp", "from kling_async import Job, KlingSession"),
    "the same, and a session opened and closed": ("import aiohttp", OPENED),
}
"""What is there already, and what is measured."""
SCRIPT = """
import time
{before}
wall, cpu = time.perf_counter(), time.process_time()
{measured}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def measure(before: str, measured: str) -> tuple[float, float]:
    """Milliseconds: on the clock, and of CPU."""
    script = SCRIPT.format(before=before, measured=measured)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    wall, cpu = (1000 * float(part) for part in ran.stdout.split())
    return wall, cpu


def installed(name: str, found: set[str]) -> set[str]:
    """A distribution and all that it needs here, without extras."""
    if name in found:
        return found
    found.add(name)
    for line in requires(name) or []:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            try:
                version(needed.name)
            except PackageNotFoundError:
                continue
            installed(needed.name.lower().replace("_", "-"), found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for row in ROWS.values():
        measure(*row)
    for _ in range(options.rounds):
        for name, row in ROWS.items():
            figures[name].append(measure(*row))

    print(
        f"{options.rounds} fresh processes each, interleaved, "
        f"Python {platform.python_version()}, aiohttp {version('aiohttp')}"
    )
    print(f"{'':44}{'CPU':>10}{'(range)':>16}{'wall':>12}")
    for name, rounds in figures.items():
        wall, cpu = ([one[index] for one in rounds] for index in (0, 1))
        added = "" if name == "import aiohttp" else "+"
        print(
            f"{name:44}{added + format(statistics.median(cpu), '.1f'):>7} ms"
            f"{f'{min(cpu):.1f}-{max(cpu):.1f} ms':>19}{statistics.median(wall):>9.1f} ms"
        )
    # By what is declared: the package need not be installed where this runs.
    core = Path(__file__).parents[1] / "pyproject.toml"

    needed: set[str] = {"kling-async"}
    for line in tomllib.loads(core.read_text())["project"]["dependencies"]:
        installed(Requirement(line).name, needed)
    print(f"a core install is {len(needed)} distributions: {', '.join(sorted(needed))}")
    if options.json:
        shown = {"options": vars(options), "figures": figures, "distributions": sorted(needed)}
        options.json.write_text(json.dumps(shown, default=str, indent=1))


if __name__ == "__main__":
    main()
