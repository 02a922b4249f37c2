"""One client does its load in a process of its own, and says what that took, as JSON.

    python benchmarks/_client.py MODULE '{"reads": 4, "seconds": 0, "load": {"url": ..., "jobs": 100, "running": 50}}'

Before it is measured, the client does a few jobs of the kind, none longer than a second: what is loaded at first need,
and stays, is no cost of a job.
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

WARM = 50


def control(url: str, query: str = "") -> dict[str, float]:
    """What the server was asked, see server.py; a query has it begin anew."""
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request("GET", f"/control?{query}")
        found: dict[str, float] = json.loads(connection.getresponse().read())
    return found


def waited() -> float:
    """Seconds that this thread could have run and something else did, where the system tells."""
    told = Path("/proc/thread-self/schedstat")
    return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0


def main(name: str, asked: str) -> None:
    given = json.loads(asked)
    load = Load(**given["load"])
    client = importlib.import_module(f"contenders.{name}")
    control(load.url, f"reads=1&seconds={min(given['seconds'], 1.0)}")
    client.run(attrs.evolve(load, jobs=min(load.jobs, WARM)))
    served = control(load.url, f"reads={given['reads']}&seconds={given['seconds']}")["served"]
    wall, cpu, robbed = time.perf_counter(), time.process_time(), waited()
    client.run(load)
    cpu, wall, robbed = time.process_time() - cpu, time.perf_counter() - wall, waited() - robbed
    counted = control(load.url)
    assert counted["submits"] == counted["noticed"] == load.jobs, counted
    print(json.dumps(counted | {"wall": wall, "cpu": cpu, "robbed": robbed, "served": counted["served"] - served}))


if __name__ == "__main__":
    main(*sys.argv[1:])
