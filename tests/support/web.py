"""A FastAPI application that uses the integration, served by uvicorn in this process or in one of its own.

`python web.py LEDGER BASE_URL KEY IN_FLIGHT QUEUE` prints the port that it listens at.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from kling_async import Job, KlingSession, Level, NoLimit, WatchPolicy
from kling_async.integrations.fastapi import (
    JobDesk,
    Jobs,
    JobStatus,
    Session,
    accepted,
    add_error_handlers,
    add_webhooks,
    event_stream,
    lifespan,
)
from support.patience import PATIENCE_S


def application(
    session: Callable[[], KlingSession], *, desk: Callable[[], JobDesk] = JobDesk, lasts: float = 60.0, **more: Any
) -> FastAPI:
    app = FastAPI(lifespan=lifespan(session, desk=desk, **more))
    add_error_handlers(app)
    add_webhooks(app)

    @app.post("/videos", status_code=202)
    async def make(request: Request, jobs: Jobs, prompt: str, key: str | None = None, image: str = "") -> JSONResponse:
        status = await jobs.submit(Job(prompt=prompt, image=image or await request.body()), key=key)
        return accepted(status, location=str(request.url_for("look", key=status.key)))

    @app.get("/videos/{key}")
    async def look(key: str, jobs: Jobs) -> JobStatus:
        return await jobs.get(key)

    @app.get("/videos/{key}/events")
    async def events(key: str, request: Request, jobs: Jobs) -> Response:
        return await event_stream(jobs, key, request, lasts=lasts, ping=0.05)

    @app.post("/now")
    async def now(prompt: str, image: str, kling: Session) -> dict[str, str | None]:
        prediction = await kling.generate(prompt=prompt, image=image)
        return {"id": prediction.id, "output": prediction.output}

    @app.post("/patient")
    async def patient(
        prompt: str, image: str, jobs: Jobs, key: str | None = None, seconds: float | None = None
    ) -> dict[str, str | None]:
        try:
            async with asyncio.timeout(seconds):
                prediction = await jobs.generate(Job(prompt=prompt, image=image), key=key)
        except TimeoutError:
            return {"id": None, "output": None}
        return {"id": prediction.id, "output": prediction.output}

    return app


def listening() -> socket.socket:
    """Listen at a free port, which stays reserved; clients may connect before it is served."""
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def address(at: socket.socket) -> str:
    return f"http://127.0.0.1:{at.getsockname()[1]}"


@asynccontextmanager
async def served(app: Any, *, at: socket.socket | None = None, patience: int = 5) -> AsyncIterator[str]:
    """Serve an application with uvicorn in this event loop and yield its URL."""
    at = at or listening()
    config = uvicorn.Config(app, log_config=None, lifespan="on", ws="none", timeout_graceful_shutdown=patience)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([at]))
    with anyio.fail_after(PATIENCE_S):
        while not server.started:
            assert not serving.done(), "uvicorn ended before it started serving"
            await anyio.sleep(0.005)
    try:
        yield address(at)
    finally:
        server.should_exit = True
        await serving


def main() -> None:
    ledger, base_url, key, in_flight, queue = sys.argv[1:]

    def session() -> KlingSession:
        return KlingSession(
            key,
            base_url=base_url,
            ledger=ledger,
            level=Level("test", 1_000_000, int(in_flight)),
            rate_limiter=NoLimit(),
            watch=WatchPolicy.fixed(0.2),
            grace=0.5,
            sole_user=True,
        )

    at = listening()
    print(at.getsockname()[1], flush=True)
    app = application(session, desk=lambda: JobDesk(queue=int(queue)))
    asyncio.run(uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none")).serve([at]))


if __name__ == "__main__":
    main()
