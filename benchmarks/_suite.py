"""Shared by the scripts: options, server and client processes, figures, tables, JSON.

Every script has `--json FILE`, which writes its results in the format of _results.py, and `--quick`, a short run that
only checks that the script works.
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
ROUND_TIMEOUT_S = 1800.0
"""Time limit of one round of one contender."""
MAX_WAITED_SHARE = 0.1
"""Share of the time a client may wait for its core; above it, wall-clock times are not judged."""

T = TypeVar("T")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts have."""
    result = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    result.add_argument("--json", type=Path, help="file for the results")
    result.add_argument("--quick", action="store_true", help="shortest run; its figures mean nothing")
    return result


def cores() -> tuple[int, int] | None:
    """Return a core for the server and one for the client; None without two cores or CPU affinity."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else None


def start(arguments: Sequence[str], core: int | None, *, errors: bool = False) -> subprocess.Popen[str]:
    """Start a Python process.

    Args:
        arguments: command line of the interpreter.
        core: index into `cores()` to pin the process to; None does not pin it.
        errors: pipe its standard error instead of its standard output.
    """
    stdout, stderr = (None, subprocess.PIPE) if errors else (subprocess.PIPE, None)
    process = subprocess.Popen([sys.executable, *arguments], stdout=stdout, stderr=stderr, text=True)
    usable = cores()
    if core is not None and usable is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {usable[core]})
    return process


def output_of(arguments: Sequence[str], core: int | None = 1) -> str:
    """Run a Python process to its end and return its standard output."""
    process = start(arguments, core)
    try:
        output, _ = process.communicate(timeout=ROUND_TIMEOUT_S)
    finally:
        process.kill()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return output


@contextmanager
def service() -> Iterator[str]:
    """Run server.py and yield its URL."""
    process = start([str(HERE / "server.py")], core=0)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


@attrs.frozen(kw_only=True)
class Measurement:
    """Measurements of one client with one load.

    Attributes:
        wall: elapsed seconds.
        waited: seconds in which the client was runnable but waited for its core.
        cpu: CPU seconds of all its threads.
        submits: number of submits.
        reads: number of status requests, including list pages.
        pages: number of list pages.
        noticed: number of jobs whose end was read.
        delay: mean seconds from the end of a job to the read that reported it.
        served: CPU seconds of the server.
    """

    wall: float
    waited: float
    cpu: float
    submits: int
    reads: int
    pages: int
    noticed: int
    delay: float
    served: float

    @property
    def jobs_per_s(self) -> float:
        return self.submits / self.wall

    @property
    def cpu_us_per_job(self) -> float:
        return self.cpu / self.submits * 1e6


def measure(client: str, load: Load, *, reads: int = 1, seconds: float = 0.0) -> Measurement:
    """Run one round of a client.

    Args:
        client: module of contenders/.
        load: jobs to run.
        reads: number of reads after which a job completes.
        seconds: minimum age at which a job completes.
    """
    settings = {"reads": reads, "seconds": seconds, "load": attrs.asdict(load)}
    return Measurement(**json.loads(output_of([str(HERE / "_client.py"), client, json.dumps(settings)])))


def interleaved(rounds: int, contenders: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Return the results of each contender per round; the contenders take turns within each round."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            progress(f"round {number + 1} of {rounds}: {name}")
            results[name].append(run())
    progress("")
    return results


def resident_bytes() -> int:
    """Return the resident memory of this process; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def progress(text: str) -> None:
    """Replace the progress line if standard error is a terminal."""
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
    installed = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def rounded(figure: float) -> float:
    """Round to four significant digits; more would be noise."""
    return float(f"{figure:.4g}")


def spread(rounds: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    values = {"median": statistics.median(rounds), "low": min(rounds), "high": max(rounds)}
    return {name: rounded(value) for name, value in values.items()}


@attrs.define
class Report:
    """Results of one script: add figures and ratios, then call `finish`.

    Attributes:
        options: command line options of the script.
        notes: sentence for each part.
        figures: figures added so far.
        ratios: ratios added so far.
        disturbed: parts whose clients waited too long for their core.
    """

    options: argparse.Namespace
    notes: dict[str, str] = attrs.Factory(dict)
    figures: list[Figure] = attrs.Factory(list)
    ratios: list[Ratio] = attrs.Factory(list)
    disturbed: set[str] = attrs.Factory(set)

    def add(self, part: str, name: str, unit: str, *rounds: float, baseline: bool = False) -> None:
        """Add the figures of all rounds of one row and unit."""
        figures = tuple(map(rounded, rounds))
        figure = Figure(part=part, name=name, unit=unit, **spread(rounds), baseline=baseline, rounds=figures)
        self.figures.append(figure)

    def note_load(self, part: str, rounds: Sequence[Measurement]) -> None:
        """Add to the notes the server's CPU per job and, if it is high, the time that clients waited for their core."""
        per_job = statistics.median(one.served / one.submits for one in rounds)
        self.notes[part] += f"; the server uses {per_job * 1e6:.0f} µs of CPU per job"
        waited = statistics.median(one.waited / one.wall for one in rounds)
        if waited > MAX_WAITED_SHARE:
            self.notes[part] += f"; the clients waited for their core {waited:.0%} of the time"
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
        """Add the ratio of two figures of a part, with its target.

        Ratios of wall-clock figures are not judged if the clients waited too long for their core.
        """
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
        """Add an absolute target for one figure of a part."""
        self.ratio(part, unit, name, None, at_most=at_most)

    def _rounds(self, part: str, unit: str, name: str) -> Sequence[float]:
        return next(one.rounds for one in self.figures if (one.part, one.unit, one.name) == (part, unit, name))

    def finish(self) -> None:
        """Print the results, and write them to the `--json` file if one was given."""
        for part in dict.fromkeys(figure.part for figure in self.figures):
            print(f"\n{part}" + (f": {self.notes[part]}" if part in self.notes else ""))
            for figure in self.figures:
                if figure.part == part:
                    span = f" ({figure.low:,.4g} to {figure.high:,.4g})" if len(figure.rounds) > 1 else ""
                    print(f"  {figure.name:44}{figure.median:>10,.4g} {figure.unit}{span}")
        for ratio in self.ratios:
            target = f"at least {ratio.at_least}" if ratio.at_least is not None else f"at most {ratio.at_most}"
            column = f"{ratio.part}, {ratio.unit}"
            row = ratio.name if ratio.over is None else f"{ratio.name} / {ratio.over}"
            print(f"{column}: {row} = {ratio.median:.3g}, expected {target}: {ratio.verdict}")
        if self.options.json is not None:
            self._content().write(self.options.json)

    def _content(self) -> Found:
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
