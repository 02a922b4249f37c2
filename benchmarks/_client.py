"""Run one client with a load in this process and print the measurements as JSON.

    python benchmarks/_client.py MODULE '{"reads": 4, "seconds": 0, "load": {"url": ..., "jobs": 100, "running": 50}}'

A few warm-up jobs of at most one second run first, so that lazy imports do not count as the cost of a job.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from contenders import Load

WARM_UP_JOBS = 50


def control(url: str, query: str = "") -> dict[str, float]:
    """Return the server's counts; with a query, also reset it. See server.py."""
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request("GET", f"/control?{query}")
        counts: dict[str, float] = json.loads(connection.getresponse().read())
    return counts


def runnable_wait_s() -> float:
    """Return the seconds this thread was runnable but waited for a core; 0 where the system does not report it."""
    schedstat = Path("/proc/thread-self/schedstat")
    return int(schedstat.read_text().split()[1]) / 1e9 if schedstat.exists() else 0.0


def main(name: str, settings_json: str) -> None:
    settings = json.loads(settings_json)
    load = Load(**settings["load"])
    client = importlib.import_module(f"contenders.{name}")
    control(load.url, f"reads=1&seconds={min(settings['seconds'], 1.0)}")
    client.run(attrs.evolve(load, jobs=min(load.jobs, WARM_UP_JOBS)))
    served = control(load.url, f"reads={settings['reads']}&seconds={settings['seconds']}")["served"]
    wall, cpu, waited = time.perf_counter(), time.process_time(), runnable_wait_s()
    client.run(load)
    cpu, wall, waited = time.process_time() - cpu, time.perf_counter() - wall, runnable_wait_s() - waited
    counts = control(load.url)
    assert counts["submits"] == counts["noticed"] == load.jobs, counts
    print(json.dumps(counts | {"wall": wall, "cpu": cpu, "waited": waited, "served": counts["served"] - served}))


if __name__ == "__main__":
    main(*sys.argv[1:])
