"""What the scripts share: options, the server and its clients in processes of their own, figures, tables, JSON.

Every script takes `--json FILE` for what it found, in the form of _results.py, and `--quick` for a form that only shows
that it works.
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

from _results import Figure, Found, Ratio
from contenders import Load

HERE = Path(__file__).parent
PACKAGES = (
    "aiohttp",
    "anyio",
    "attrs",
    "cattrs",
    "fal-client",
    "fastapi",
    "httpx",
    "obstore",
    "replicate",
    "uvloop",
    "wavespeed",
)
PATIENCE = 1800.0
"""Seconds that one round of one contender may take."""
DISTURBED = 0.1
"""The share of the time that others may have a client's core before times by the clock say nothing."""

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


def start(arguments: Sequence[str], core: int | None, *, errors: bool = False) -> subprocess.Popen[str]:
    """A process of Python kept to that one of `cores()`, if any, whose output is read, or what it says as errors."""
    stdout, stderr = (None, subprocess.PIPE) if errors else (subprocess.PIPE, None)
    process = subprocess.Popen([sys.executable, *arguments], stdout=stdout, stderr=stderr, text=True)
    found = cores()
    if core is not None and found is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {found[core]})
    return process


def said(arguments: Sequence[str], core: int | None = 1) -> str:
    """What such a process says, when it has done its work."""
    process = start(arguments, core)
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return output


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
    """What a load took a client; the CPU of all its threads. `delay` is from an end to its being read, on average.

    `robbed` are the seconds that others had its core when it could have run.
    """

    wall: float
    robbed: float
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
    """One round of one client, see contenders/; a job ends at its k-th read, and not before that age."""
    asked = {"reads": reads, "seconds": seconds, "load": attrs.asdict(load)}
    return Took(**json.loads(said([str(HERE / "_client.py"), client, json.dumps(asked)])))


def interleaved(rounds: int, contenders: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """What each has in every round; in each round all take their turn."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, once in contenders.items():
            progress(f"round {number + 1} of {rounds}: {name}")
            found[name].append(once())
    progress("")
    return found


def resident() -> int:
    """Bytes of memory that this process occupies, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


def rounded(figure: float) -> float:
    """To four digits: more would be noise."""
    return float(f"{figure:.4g}")


def spread(rounds: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(rounds), "low": min(rounds), "high": max(rounds)}
    return {name: rounded(value) for name, value in found.items()}


@attrs.define
class Report:
    """What one script found: added to, then finished."""

    options: argparse.Namespace
    notes: dict[str, str] = attrs.Factory(dict)
    figures: list[Figure] = attrs.Factory(list)
    ratios: list[Ratio] = attrs.Factory(list)
    disturbed: set[str] = attrs.Factory(set)

    def add(self, part: str, name: str, unit: str, *rounds: float, baseline: bool = False) -> None:
        """A figure of every round."""
        figures = tuple(map(rounded, rounds))
        figure = Figure(part=part, name=name, unit=unit, **spread(rounds), baseline=baseline, rounds=figures)
        self.figures.append(figure)

    def serving(self, part: str, rounds: Sequence[Took]) -> None:
        """Note what the server needed, which should be less than what the clients do, and whether all had a core."""
        each = statistics.median(took.served / took.submits for took in rounds)
        self.notes[part] += f"; the server spends {each * 1e6:.0f} µs of CPU per job"
        robbed = statistics.median(took.robbed / took.wall for took in rounds)
        if robbed > DISTURBED:
            self.notes[part] += f"; something else had the core of the clients {robbed:.0%} of the time"
            self.disturbed.add(part)

    def ratio(
        self,
        part: str,
        unit: str,
        name: str,
        over: str | None,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Of two figures of a part, and what it should be; of times by the clock only where all had a core."""
        rounds = self._rounds(part, unit, name)
        if over is not None:
            rounds = [one / other for one, other in zip(rounds, self._rounds(part, unit, over), strict=True)]
        self.ratios.append(
            Ratio(
                part=part,
                name=name,
                over=over,
                unit=unit,
                **spread(rounds),
                at_least=at_least,
                at_most=at_most,
                judged="CPU" in unit or part not in self.disturbed,
            )
        )

    def bound(self, part: str, unit: str, name: str, *, at_most: float) -> None:
        """What a figure of a part should be by itself, whatever others need."""
        self.ratio(part, unit, name, None, at_most=at_most)

    def _rounds(self, part: str, unit: str, name: str) -> Sequence[float]:
        return next(one.rounds for one in self.figures if (one.part, one.unit, one.name) == (part, unit, name))

    def finish(self) -> None:
        """Print it, and write it where that was asked for."""
        for part in dict.fromkeys(figure.part for figure in self.figures):
            print(f"\n{part}" + (f": {self.notes[part]}" if part in self.notes else ""))
            for figure in self.figures:
                if figure.part == part:
                    span = f" ({figure.low:,.4g} to {figure.high:,.4g})" if len(figure.rounds) > 1 else ""
                    print(f"  {figure.name:44}{figure.median:>10,.4g} {figure.unit}{span}")
        for ratio in self.ratios:
            aim = f"at least {ratio.at_least}" if ratio.at_least is not None else f"at most {ratio.at_most}"
            where = f"{ratio.part}, {ratio.unit}"
            what = ratio.name if ratio.over is None else f"{ratio.name} / {ratio.over}"
            print(f"{where}: {what} = {ratio.median:.3g}, to be {aim}: {ratio.verdict}")
        if self.options.json is not None:
            self._found().write(self.options.json)

    def _found(self) -> Found:
        plain = (int, float, str, bool)
        return Found(
            figures=self.figures,
            date=datetime.now(UTC).date().isoformat(),
            machine=machine(),
            versions=versions(),
            command=f"python benchmarks/{Path(sys.argv[0]).name}",
            options={name: value for name, value in vars(self.options).items() if isinstance(value, plain)},
            notes=self.notes,
            ratios=self.ratios,
        )
