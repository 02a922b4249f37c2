"""CPU that the SDK adds to a request of FastAPI, beside a handler of bare aiohttp: one submit and k reads each.

    python benchmarks/bench_fastapi.py [--requests 1000] [--running 200] [--rounds 5] [--json FILE]

One uvicorn process has all the handlers, and says how much CPU it has used; the service and the clients are processes
of their own. Rounds are interleaved; medians and ranges are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from fastapi import FastAPI, Request

from kling_async import Job, KlingSession, NoLimit, WatchPolicy
from kling_async.integrations.fastapi import JobDesk, lifespan

IMAGE = "https://pictures.example/face.png"
HEADERS = {"Authorization": "Bearer wsk_benchmark"}
HANDLERS = ("empty", "bare", "session", "desk")


def serve(service: str, running: int) -> None:
    inner = lifespan(
        lambda: KlingSession(
            "wsk_benchmark",
            base_url=service,
            max_in_flight=running,
            rate_limiter=NoLimit(),
            watch=WatchPolicy.fixed(0.001),
        ),
        desk=lambda: JobDesk(queue=100_000),
    )

    @asynccontextmanager
    async def both(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        connector = aiohttp.TCPConnector(limit=100)
        async with inner(app) as state, aiohttp.ClientSession(connector=connector, headers=HEADERS) as http:
            yield {**state, "http": http, "slots": asyncio.Semaphore(running)}

    app = FastAPI(lifespan=both)

    @app.get("/cpu")
    async def cpu() -> float:
        return time.process_time()

    @app.post("/empty")
    async def empty(prompt: str) -> str:
        return prompt

    @app.post("/bare")
    async def bare(prompt: str, request: Request) -> str:
        """What one writes by hand: a shared session, and a semaphore."""
        http: aiohttp.ClientSession = request.state.http
        async with request.state.slots:
            body = {"prompt": prompt, "image": IMAGE, "duration": 5}
            async with http.post(f"{service}/api/v3/kwaivgi/kling-v2.1-i2v-pro", json=body) as reply:
                data = (await reply.json())["data"]
            while data["status"] != "completed":
                async with http.get(f"{service}/api/v3/predictions/{data['id']}/result") as reply:
                    data = (await reply.json())["data"]
        return str(data["outputs"][0])

    @app.post("/session")
    async def session(prompt: str, request: Request) -> str | None:
        desk: JobDesk = request.state.kling
        return (await desk.kling.generate(model="kling-v2.1-pro", prompt=prompt, image=IMAGE)).output

    @app.post("/desk")
    async def through_the_desk(prompt: str, request: Request) -> str | None:
        desk: JobDesk = request.state.kling
        return (await desk.generate(Job(model="kling-v2.1-pro", prompt=prompt, image=IMAGE))).output

    uvicorn.run(app, port=0, log_level="info", access_log=False)


async def load(url: str, requests: int) -> dict[str, tuple[float, float]]:
    """Microseconds of CPU per request, and requests per second, of each handler."""
    found: dict[str, tuple[float, float]] = {}
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=500), timeout=timeout) as http:

        async def cpu() -> float:
            async with http.get(f"{url}/cpu") as reply:
                return float(await reply.json())

        async def one(handler: str, number: int) -> None:
            async with http.post(f"{url}/{handler}", params={"prompt": f"number {number}"}) as reply:
                reply.raise_for_status()
                await reply.read()

        for handler in HANDLERS:
            used, wall = await cpu(), time.perf_counter()
            await asyncio.gather(*(one(handler, number) for number in range(requests)))
            seconds = time.perf_counter() - wall
            found[handler] = ((await cpu() - used) / requests * 1e6, requests / seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--running", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.running)
        return
    here = Path(__file__)
    service = subprocess.Popen(
        [sys.executable, str(here.with_name("server.py")), "4"], stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    address = f"http://127.0.0.1:{service.stdout.readline().strip()}"
    command = [sys.executable, str(here), "--serve", address, "--running", str(given.running)]
    app = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert app.stderr is not None
    try:
        said = next(line for line in app.stderr if "running on" in line)
        url = said.partition("running on ")[2].split()[0]
        asyncio.run(load(url, 50))
        rounds = [asyncio.run(load(url, given.requests)) for _ in range(given.rounds)]
    finally:
        app.terminate()
        service.kill()
        app.wait()
        service.wait()
    about = f"Python {platform.python_version()}, FastAPI {version('fastapi')}, aiohttp {version('aiohttp')}"
    print(f"{given.requests} requests at once, {given.running} running; {given.rounds} rounds; {about}")
    result: dict[str, dict[str, float]] = {}
    for handler in HANDLERS:
        cpu = [each[handler][0] for each in rounds]
        rate = statistics.median(each[handler][1] for each in rounds)
        median = statistics.median(cpu)
        result[handler] = {"cpu_us": median, "per_second": rate}
        print(f"{handler:8} {median:7.0f} µs of CPU ({min(cpu):.0f} to {max(cpu):.0f}), {rate:6.0f} requests/s")
    for handler in ("session", "desk"):
        print(f"{handler} adds {result[handler]['cpu_us'] - result['bare']['cpu_us']:.0f} µs to bare aiohttp")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
