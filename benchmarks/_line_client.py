"""Run one client over a line in this process and print the measurements as JSON.

    python benchmarks/_line_client.py MODULE LOAD

LOAD is a JSON file with the fields of `LineLoad`. Every job has a picture of its own, and every video is saved.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import attrs

import _suite
from _client import runnable_wait_s


@attrs.frozen(kw_only=True)
class LineLoad:
    """Work for a client.

    Attributes:
        url: base URL of the emulator.
        key: API key.
        now: the emulator's time when it started, in seconds since the epoch.
        started: this machine's time then.
        speed: seconds of the emulator for each second.
        level: level of the account.
        running: maximum number of concurrent jobs.
        pictures: file of each job's picture, or its URL.
        outputs: folder for the videos.
    """

    url: str
    key: str
    now: float
    started: float
    speed: float
    level: str
    running: int
    pictures: list[str]
    outputs: str


def peak_bytes() -> int:
    """Return the highest resident memory of this process; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(name: str, path: str) -> None:
    load = LineLoad(**json.loads(Path(path).read_text()))
    client = importlib.import_module(f"contenders.{name}")
    before, waited = _suite.resident_bytes(), runnable_wait_s()
    cpu, began = time.process_time(), time.perf_counter()
    client.run(load)
    wall, cpu, waited = time.perf_counter() - began, time.process_time() - cpu, runnable_wait_s() - waited
    saved = len(list(Path(load.outputs).iterdir()))
    assert saved == len(load.pictures), f"expected {len(load.pictures)} videos, got {saved}"
    memory = peak_bytes() - before
    print(json.dumps({"seconds": wall * load.speed, "cpu": cpu, "memory": memory, "waited": waited / max(cpu, 1e-9)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
