"""What the scripts share: options, the server and its clients in processes of their own, figures, tables, JSON.

Every script takes `--json FILE` for what it found and `--quick` for a form that only shows that it works. The file is

    {"command", "date", "machine", "versions", "options", "notes": {part: sentence},
     "figures": [{"part", "name", "unit", "median", "low", "high", "rounds", "baseline"}],
     "ratios": [{"part", "name", "over", "unit", "median", "low", "high", "at_least" or "at_most"}]}

A part is a table, a name its row, a unit its column. `baseline` says that the row is not ours. Ratios are of figures of
one part, round by round; their bound is what is aimed at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import attrs

from clients import Load

HERE = Path(__file__).parent
PACKAGES = ("aiohttp", "anyio", "attrs", "cattrs", "fal-client", "fastapi", "httpx", "replicate", "uvloop", "wavespeed")
PATIENCE = 600.0
"""Seconds that one round of one client may take."""

T = TypeVar("T")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the options of all scripts."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--json", type=Path, help="where to write what was found")
    made.add_argument("--quick", action="store_true", help="the shortest form: figures of no worth")
    return made


def cores() -> tuple[int, int] | None:
    """One for the server, one for the client, where a process can be told to keep to it."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else None


def start(arguments: Sequence[str], core: int, *, errors: bool = False) -> subprocess.Popen[str]:
    """A process of Python kept to that one of `cores()`, whose output is read, or what it says as errors."""
    stdout, stderr = (None, subprocess.PIPE) if errors else (subprocess.PIPE, None)
    process = subprocess.Popen([sys.executable, *arguments], stdout=stdout, stderr=stderr, text=True)
    found = cores()
    if found is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {found[core]})
    return process


@contextmanager
def service() -> Iterator[str]:
    """The URL of a server, see server.py."""
    process = start([str(HERE / "server.py")], core=0)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


@attrs.frozen(kw_only=True)
class Took:
    """What a load took a client; the CPU of all its threads. `delay` is from an end to its being read, on average."""

    wall: float
    cpu: float
    submits: int
    reads: int
    pages: int
    noticed: int
    delay: float
    served: float

    @property
    def speed(self) -> float:
        return self.submits / self.wall

    @property
    def each(self) -> float:
        """Microseconds of CPU per job."""
        return self.cpu / self.submits * 1e6


def measure(client: str, load: Load, *, reads: int = 1, seconds: float = 0.0) -> Took:
    """One round of one client, see clients/; a job ends at its k-th read, and not before that age."""
    asked = {"reads": reads, "seconds": seconds, "load": attrs.asdict(load)}
    process = start([str(HERE / "_client.py"), client, json.dumps(asked)], core=1)
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    if process.returncode:
        raise SystemExit(f"{client} did not do its load")
    return Took(**json.loads(said))


def interleaved(rounds: int, contenders: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """What each has in every round; in each round all take their turn."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, once in contenders.items():
            progress(f"round {number + 1} of {rounds}: {name}")
            found[name].append(once())
    progress("")
    return found


def progress(text: str) -> None:
    """Where it stands, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@attrs.frozen(kw_only=True)
class Figure:
    part: str
    name: str
    unit: str
    rounds: tuple[float, ...]
    baseline: bool

    def summary(self) -> dict[str, object]:
        return (
            {"part": self.part, "name": self.name, "unit": self.unit}
            | spread(self.rounds)
            | {
                "rounds": [rounded(one) for one in self.rounds],
                "baseline": self.baseline,
            }
        )


def spread(rounds: Sequence[float]) -> dict[str, object]:
    return {
        "median": rounded(statistics.median(rounds)),
        "low": rounded(min(rounds)),
        "high": rounded(max(rounds)),
    }


def rounded(figure: float) -> float:
    """To four digits: more would be noise."""
    return float(f"{figure:.4g}")


@attrs.define
class Report:
    """What one script found."""

    options: argparse.Namespace
    notes: dict[str, str] = attrs.Factory(dict)
    figures: list[Figure] = attrs.Factory(list)
    ratios: list[dict[str, object]] = attrs.Factory(list)

    def add(self, part: str, name: str, unit: str, *rounds: float, baseline: bool = False) -> None:
        self.figures.append(Figure(part=part, name=name, unit=unit, rounds=rounds, baseline=baseline))

    def serving(self, part: str, rounds: Sequence[Took]) -> None:
        """Note that the server was lighter than the clients."""
        each = statistics.median(took.served / took.submits for took in rounds)
        self.notes[part] += f"; the server spends {each * 1e6:.0f} µs of CPU per job"

    def ratio(
        self,
        part: str,
        unit: str,
        name: str,
        over: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Of two figures of a part, round by round, and what it should be."""
        first, second = (
            next(one for one in self.figures if (one.part, one.name, one.unit) == (part, which, unit))
            for which in (name, over)
        )
        rounds = [ours / theirs for ours, theirs in zip(first.rounds, second.rounds, strict=True)]
        bound = {"at_least": at_least, "at_most": at_most}
        self.ratios.append(
            {"part": part, "name": name, "over": over, "unit": unit}
            | spread(rounds)
            | {key: value for key, value in bound.items() if value is not None}
        )

    def print(self) -> None:
        for part in dict.fromkeys(figure.part for figure in self.figures):
            print(f"\n{part}" + (f": {self.notes[part]}" if part in self.notes else ""))
            for figure in self.figures:
                if figure.part == part:
                    middle, low, high = (
                        f"{value:,.4g}" for value in map(float, map(str, spread(figure.rounds).values()))
                    )
                    print(f"  {figure.name:44}{middle:>10} {figure.unit} ({low} to {high})")
        for ratio in self.ratios:
            aim = f"at least {ratio['at_least']}" if "at_least" in ratio else f"at most {ratio.get('at_most')}"
            where = f"{ratio['part']}, {ratio['unit']}"
            print(f"{where}: {ratio['name']} / {ratio['over']} = {ratio['median']:.3g}, aimed at {aim}")

    def finish(self) -> None:
        """Print it, and write it where that was asked for."""
        self.print()
        if self.options.json is None:
            return
        plain = {
            name: value for name, value in vars(self.options).items() if isinstance(value, int | float | str | bool)
        }
        found = {
            "command": f"python benchmarks/{Path(sys.argv[0]).name}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "versions": versions(),
            "options": plain,
            "notes": self.notes,
            "figures": [figure.summary() for figure in self.figures],
            "ratios": self.ratios,
        }
        self.options.json.write_text(json.dumps(found, indent=1) + "\n")
