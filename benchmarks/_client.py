"""One client does its load in a process of its own, and says what that took, as JSON.

    python benchmarks/_client.py MODULE '{"reads": 4, "seconds": 0, "load": {"url": ..., "jobs": 100, "running": 50}}'

Before it is measured, the client does a few jobs that end at once.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from contextlib import closing
from http.client import HTTPConnection
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


def main(name: str, asked: str) -> None:
    given = json.loads(asked)
    load = Load(**given["load"])
    client = importlib.import_module(f"contenders.{name}")
    control(load.url, "reads=1&seconds=0")
    client.run(attrs.evolve(load, jobs=min(load.jobs, WARM), interval=0.0))
    served = control(load.url, f"reads={given['reads']}&seconds={given['seconds']}")["served"]
    wall, cpu = time.perf_counter(), time.process_time()
    client.run(load)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    counted = control(load.url)
    assert counted["submits"] == counted["noticed"] == load.jobs, counted
    print(json.dumps(counted | {"wall": wall, "cpu": cpu, "served": counted["served"] - served}))


if __name__ == "__main__":
    main(*sys.argv[1:])
