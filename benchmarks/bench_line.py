"""Over a line far from the service: starts per minute, the time to the last file, status requests, memory.

    python benchmarks/bench_line.py [--only PART ...] [--levels NAME ...] [--peers JOBS ...] [--json FILE] [--quick]

The emulator is at the end of a line "wan" (ticket 0.3 s, picture 1.0 s, submit 0.5 s, output 2 s) or "thin" (the same,
and 2 MB/s for uploads), in a process of its own. Every job has a picture file of its own, of 100 kB, or a URL, and its
video is saved; predictions take 75 s, more or less, each as long with every client.

The ideal time is that of a schedule without any overhead: the same durations in the same order, the same slots and the
same sliding window of starts, and one job's own way on the line. Large runs are in scaled time; those beside the peers
are in real time, with as many threads or tasks as jobs, up to 300: `--peers 1000` takes ten minutes.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

import _suite
from kling_async import LEVELS
from kling_async.emulator import NETWORKS

OURS, OFFICIAL, HTTPX = "kling_async", "wavespeed, threads", "httpx by hand"
CLIENTS = {OURS: "line_kling", OFFICIAL: "line_official", HTTPX: "line_httpx"}
TIME, OVER, STARTS = "s to the last file", "time over ideal", "starts per minute"
LOOKS, REFUSED, MEMORY = "status requests per job", "refused submits", "MB of RSS growth"
SHARE = "share of the line's bandwidth"
PICTURE_BYTES = 100_000
MAX_WAITED = 0.5
"""Seconds for which a client may wait for a core, for each second that it has one; above it, times are not judged."""
OWN_WAY_ROUTES = ("upload_ticket", "upload_put", "submit", "result", "output")


@attrs.frozen(kw_only=True)
class Run:
    """A run of one client.

    Attributes:
        client: row of the table.
        level: level of the account.
        jobs: number of jobs.
        speed: seconds of the emulator for each second.
        network: name of the line.
        urls: whether pictures are given as URLs.
        running: threads or tasks of a peer; ours runs what the level permits.
        timing: seconds of every prediction; None for the emulator's, each by its prompt.
    """

    client: str
    level: str
    jobs: int
    speed: float = 1.0
    network: str = "wan"
    urls: bool = False
    running: int = 0
    timing: float | None = None


@attrs.frozen(kw_only=True)
class Measured:
    """Measurements of a run; times in seconds of the emulator."""

    seconds: float
    ideal: float
    starts: float
    looks: float
    refused: int
    memory: float
    share: float
    cpu: float
    waited: float


def ideal(spans: Sequence[tuple[float, float]], level: str, network: str, *, urls: bool) -> float:
    """Return the seconds of a schedule without overhead.

    Args:
        spans: start and end of every prediction, in the order of starts.
        level: level of the account.
        network: name of the line.
        urls: whether no pictures are uploaded.
    """
    limits = LEVELS[level]
    window: deque[float] = deque()
    running: list[float] = []
    start = 0.0
    for began, ended in spans:
        if len(window) == limits.starts:
            start = max(start, window.popleft() + limits.per)
        if len(running) == limits.in_flight:
            start = max(start, heapq.heappop(running))
        window.append(start)
        heapq.heappush(running, start + ended - began)
    latency = NETWORKS[network].latency  # type: ignore[index]  # one of the names
    return max(running) + sum(latency[route] for route in OWN_WAY_ROUTES[2 if urls else 0 :])


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write valid PNGs, each with other bytes, and return their paths."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = 300
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]))
    tail = chunk(b"IDAT", zlib.compress(bytes(size * (size + 1)), 9)) + chunk(b"IEND", b"")
    filling = os.urandom(PICTURE_BYTES - len(head) - len(tail) - 20)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(head + chunk(b"teXt", number.to_bytes(8, "big") + filling) + tail)
    return [str(path) for path in paths]


def measure(run: Run) -> Measured:
    """Run a client against an emulator of its own."""
    _suite.progress(f"{run.client}, {run.level}, {run.jobs} jobs over {run.network}")
    settings: dict[str, Any] = {"network": run.network, "level": run.level, "speed": run.speed}
    settings |= {} if run.timing is None else {"timing": run.timing}
    server = subprocess.Popen(
        [sys.executable, str(_suite.HERE / "_line_server.py"), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder, outputs = Path(scratch), Path(scratch, "outputs")
        outputs.mkdir()
        pictures = [f"https://pictures.example/{number}.png" for number in range(run.jobs)]
        if not run.urls:
            pictures = write_pictures(folder, run.jobs)
        try:
            assert server.stdout is not None
            load: dict[str, Any] = json.loads(server.stdout.readline()) | {"started": time.time()}
            load |= {"speed": run.speed, "level": run.level, "running": run.running or run.jobs}
            (folder / "load.json").write_text(json.dumps(load | {"pictures": pictures, "outputs": str(outputs)}))
            command = [str(_suite.HERE / "_line_client.py"), CLIENTS[run.client], str(folder / "load.json")]
            mine = json.loads(_suite.output_of(command, core=None))
            found = json.loads(server.communicate()[0])
        finally:
            server.kill()
    assert not found["paid_twice"], found
    spans = found["spans"]
    uploading = spans[-1][0] - found["uploading_since"]
    up = NETWORKS[run.network].bandwidth.up  # type: ignore[index]  # one of the names
    return Measured(
        seconds=mine["seconds"],
        ideal=ideal(spans, run.level, run.network, urls=run.urls),
        starts=60 * len(spans) / (spans[-1][0] - spans[0][0]),
        looks=found["looks"] / run.jobs,
        refused=found["refused"],
        memory=mine["memory"] / 1e6,
        share=run.jobs * PICTURE_BYTES / uploading / up,
        cpu=mine["cpu"],
        waited=mine["waited"],
    )


def note_load(report: _suite.Report, part: str, measured: Measured) -> None:
    """Judge nothing in a part whose client waited for a core for half as long as it had one."""
    if measured.waited > MAX_WAITED:
        report.notes[part] += f"; a client waited for its core {measured.waited:.0%} of the time that it had it"
        report.disturbed.add(part)


def levels(report: _suite.Report, names: Sequence[str], *, quick: bool) -> None:
    """Measure ours on every level, with pictures from disk and as URLs."""
    part = "Far from the service, by level"
    report.notes[part] = "a line with the latencies of a wide-area one, default settings"
    for level, jobs, speed, urls, at_most in (
        ("silver", 1000, 3.0, False, 1.05),
        ("gold", 5000, 1.0, False, 1.05),
        ("ultra", 10_000, 1.0, False, 1.10),
        ("silver", 1000, 3.0, True, None),
    ):
        if level not in names or (quick and (level != "silver" or urls)):
            continue
        jobs_, timing = (30, 20.0) if quick else (jobs, None)
        one = measure(
            Run(client=OURS, level=level, jobs=jobs_, speed=10.0 if quick else speed, urls=urls, timing=timing)
        )
        row = f"{OURS}, {level}, {jobs_:,} jobs, pictures {'as URLs' if urls else 'from disk'}"
        figures = {OVER: one.seconds / one.ideal, TIME: one.seconds, STARTS: one.starts, LOOKS: one.looks}
        for unit, figure in (figures | {REFUSED: one.refused, MEMORY: one.memory}).items():
            report.add(part, row, unit, figure)
        note_load(report, part, one)
        if at_most is not None:
            report.bound(part, OVER, row, at_most=at_most)


def thin(report: _suite.Report, *, quick: bool) -> None:
    """Measure ours where 2 MB/s is what limits it."""
    part = "A thin line"
    jobs = 60 if quick else 1000
    report.notes[part] = f"{jobs:,} pictures of 100 kB at 2 MB/s, gold; from the first ticket to the last start"
    one = measure(Run(client=OURS, level="gold", jobs=jobs, speed=2.0, network="thin", timing=20.0))
    for unit, figure in {SHARE: one.share, TIME: one.seconds, MEMORY: one.memory}.items():
        report.add(part, OURS, unit, figure)
    note_load(report, part, one)
    report.ratio(part, SHARE, OURS, None, at_least=0.9)


def peers(report: _suite.Report, counts: Sequence[int], *, quick: bool) -> None:
    """Measure ours beside the peers, in real time."""
    for jobs in [10] if quick else counts:
        running = min(jobs, 300)
        part = f"{jobs:,} jobs far from the service, beside the peers"
        report.notes[part] = f"silver, pictures from disk, peers in {running} threads or tasks, real time"
        for client in CLIENTS if jobs <= running else (OURS, OFFICIAL):
            timing = 5.0 if quick else None
            one = measure(Run(client=client, level="silver", jobs=jobs, running=running, timing=timing))
            figures = {TIME: one.seconds, LOOKS: one.looks, "s of CPU": one.cpu, MEMORY: one.memory}
            for unit, figure in figures.items():
                report.add(part, client, unit, figure, baseline=client != OURS)
            if client == OURS:
                # The one whose work is done by the thread that is measured.
                note_load(report, part, one)
        report.ratio(part, TIME, OURS, OFFICIAL, at_most=1.0)


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=["levels", "thin", "peers"], default=["levels", "thin", "peers"])
    parser.add_argument("--levels", nargs="*", choices=["silver", "gold", "ultra"], default=["silver", "gold", "ultra"])
    parser.add_argument("--peers", nargs="*", type=int, default=[50, 200], help="numbers of jobs beside the peers")
    options = parser.parse_args()
    report = _suite.Report(options)
    if "levels" in options.only:
        levels(report, options.levels, quick=options.quick)
    if "thin" in options.only:
        thin(report, quick=options.quick)
    if "peers" in options.only:
        peers(report, options.peers, quick=options.quick)
    report.finish()


if __name__ == "__main__":
    main()
