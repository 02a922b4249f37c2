"""CPU of a FastAPI request that makes a video, compared with a handler that uses bare aiohttp: one submit, k reads.

    python benchmarks/bench_fastapi.py [--requests 1000] [--running 200] [--rounds 5] [--json FILE] [--quick]

One uvicorn process has all handlers and reports its CPU time; the service and the clients are separate processes. The
handlers take turns within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvicorn
from fastapi import FastAPI, Request

import _suite
from _client import control
from kling_async import Job, KlingSession, NoLimit, WatchPolicy
from kling_async.integrations.fastapi import JobService, lifespan

IMAGE = "https://pictures.example/face.png"
HEADERS = {"Authorization": "Bearer wsk_benchmark"}
HANDLERS = {
    "kling_async, session": "session",
    "kling_async, job service": "jobs",
    "bare aiohttp": "bare",
    "empty handler": "empty",
}
MAX_QUEUED_JOBS = 100_000
WARM_UP_REQUESTS = 50


def serve(service: str, running: int) -> None:
    """Serve the application with all handlers; blocks."""
    inner = lifespan(
        lambda: KlingSession(
            "wsk_benchmark",
            base_url=service,
            max_in_flight=running,
            rate_limiter=NoLimit(),
            watch=WatchPolicy.fixed(0.001),
            max_reads_per_second=math.inf,
        ),
        desk=lambda: JobService(queue=MAX_QUEUED_JOBS),
    )

    @asynccontextmanager
    async def resources(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        connector = aiohttp.TCPConnector(limit=100)
        async with inner(app) as state, aiohttp.ClientSession(connector=connector, headers=HEADERS) as http:
            yield {**state, "http": http, "slots": asyncio.Semaphore(running)}

    app = FastAPI(lifespan=resources)

    @app.get("/cpu")
    async def cpu() -> float:
        return time.process_time()

    @app.post("/empty")
    async def empty(prompt: str) -> str:
        return prompt

    @app.post("/bare")
    async def bare(prompt: str, request: Request) -> str:
        """Hand-written: a shared client session and a semaphore."""
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
        job_service: JobService = request.state.kling
        return (await job_service.kling.generate(model="kling-v2.1-pro", prompt=prompt, image=IMAGE)).output

    @app.post("/jobs")
    async def jobs(prompt: str, request: Request) -> str | None:
        job_service: JobService = request.state.kling
        return (await job_service.generate(Job(model="kling-v2.1-pro", prompt=prompt, image=IMAGE))).output

    uvicorn.run(app, port=0, log_level="info", access_log=False)


async def load(url: str, handler: str, requests: int) -> tuple[float, float]:
    """Send all requests at once; return CPU milliseconds per request and requests per second."""
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=500), timeout=timeout) as http:

        async def cpu() -> float:
            async with http.get(f"{url}/cpu") as reply:
                return float(await reply.json())

        async def one(number: int) -> None:
            async with http.post(f"{url}/{handler}", params={"prompt": f"number {number}"}) as reply:
                reply.raise_for_status()
                await reply.read()

        used, wall = await cpu(), time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(requests)))
        seconds = time.perf_counter() - wall
        return (await cpu() - used) / requests * 1e3, requests / seconds


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--running", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.running)
        return
    if options.quick:
        options.requests, options.running, options.rounds = 50, 20, 1
    part = "A FastAPI request that makes a video"
    about = f"{options.requests:,} requests at once, {options.running} running, 1 submit and 4 reads each"
    report = _suite.Report(options, notes={part: about})
    with _suite.service() as service:
        control(service, "reads=4&seconds=0")
        app = _suite.start([__file__, "--serve", service, "--running", str(options.running)], core=1, errors=True)
        assert app.stderr is not None
        try:
            line = next(line for line in app.stderr if "running on" in line)
            url = line.partition("running on ")[2].split()[0]

            def run(handler: str, requests: int) -> tuple[float, float]:
                return asyncio.run(load(url, handler, requests))

            for handler in HANDLERS.values():
                run(handler, WARM_UP_REQUESTS)
            runs = {name: functools.partial(run, handler, options.requests) for name, handler in HANDLERS.items()}
            results = _suite.interleaved(options.rounds, runs)
        finally:
            app.terminate()
            app.communicate()
    for name, rounds in results.items():
        cpu, speed = zip(*rounds, strict=True)
        baseline = not name.startswith("kling_async")
        report.add(part, name, "ms of CPU per request", *cpu, baseline=baseline)
        report.add(part, name, "requests/s", *speed, baseline=baseline)
    report.finish()


if __name__ == "__main__":
    main()
