"""Example: a page that makes a video of an uploaded picture and shows its price first.

`python -m kling_async.examples.studio --emulator` needs no key; without `--emulator` it uses the real, paid service.
The page has no login, and every visitor can spend the account's money, so it listens on this computer only, and answers
only under this computer's names.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse

from kling_async import MODELS, Job, KlingSession, UnknownJobError
from kling_async.emulator import Emulator
from kling_async.integrations.fastapi import (
    ACCEPTED,
    PICTURE_BODY,
    Jobs,
    JobStatus,
    Picture,
    Session,
    accepted,
    add_error_handlers,
    event_stream,
    lifespan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.job import JobFields

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
OFFERED_MODELS = MODELS[:3]
NAMES = ("127.0.0.1", "localhost")


def studio(session: Callable[[], KlingSession], videos: Path) -> FastAPI:
    """Return the application.

    Args:
        session: Creates the session. With a ledger file, jobs survive the end of this process.
        videos: Folder for the videos.
    """
    app = FastAPI(title="Kling studio", lifespan=lifespan(session))
    add_error_handlers(app)
    # Against DNS rebinding: the page of a foreign name that resolves to this computer would be of the same origin.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(HERE / "studio.html", headers=HEADERS)

    @app.get("/assets/{name}")
    async def asset(name: str) -> FileResponse:
        if name not in {"studio.js", "studio.css"}:
            raise HTTPException(404)
        return FileResponse(HERE / name, headers=HEADERS)

    @app.get("/models")
    async def models() -> list[dict[str, Any]]:
        return [
            {
                "name": model.name,
                "prices": {seconds: str(model.price(seconds)) for seconds in model.durations},
                "negative": model.negative_prompt,
            }
            for model in OFFERED_MODELS
        ]

    @app.post("/videos", status_code=202, responses=ACCEPTED, openapi_extra=PICTURE_BODY)
    async def make(
        *,
        image: Picture,
        prompt: str,
        model: str,
        duration: int,
        negative_prompt: str | None = None,
        request: Request,
        jobs: Jobs,
    ) -> JSONResponse:
        fields: JobFields = {"model": model, "prompt": prompt, "image": image, "duration": duration}
        if negative_prompt:
            fields["negative_prompt"] = negative_prompt
        status = await jobs.submit(Job(**fields))
        return accepted(status, location=str(request.url_for("look", key=status.key)))

    @app.get("/videos/{key}")
    async def look(key: str, jobs: Jobs) -> JobStatus:
        return await jobs.get(key)

    @app.get("/videos/{key}/events")
    async def events(key: str, request: Request, jobs: Jobs) -> Response:
        return await event_stream(jobs, key, request)

    @app.get("/videos/{key}/video")
    async def video(key: str, jobs: Jobs, kling: Session) -> FileResponse:
        status = await jobs.get(key)
        if status.state != "completed" or status.prediction_id is None:
            raise UnknownJobError("there is no video yet", key=key)
        # The service keeps videos for 7 days. A video that is already in the folder is not downloaded again.
        saved = await kling.save(status.prediction_id, videos)
        return FileResponse(saved.path, media_type="video/mp4", headers=HEADERS)

    return app


class Server(uvicorn.Server):
    """Server that prints its address once it accepts requests."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and print the address."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"Open http://127.0.0.1:{port} in your browser; Ctrl-C ends it.", flush=True)  # noqa: T201 -- addressed to the user


async def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m kling_async.examples.studio", description="Kling in the browser.")
    parser.add_argument("--emulator", action="store_true", help="use an emulator: no key, no cost")
    parser.add_argument("--port", type=int, default=8080, help="0 chooses a free one; default: 8080")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("videos"),
        help="folder for the videos and the ledger; default: videos",
    )
    given = parser.parse_args()
    try:
        listener = socket.create_server(("127.0.0.1", given.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        parser.error(f"port {given.port} is in use by another program; choose another one with --port")
    given.folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {"ledger": given.folder / "studio.db"}
        if given.emulator:
            emulator = await stack.enter_async_context(Emulator(speed=10))
            # The emulator's predictions end with it, so the ledger stays in memory.
            options = {"api_key": emulator.api_key, "base_url": emulator.base_url, "clock": emulator.clock}
            options["level"] = "gold"
        app = studio(lambda: KlingSession(**options), given.folder)
        print(f"Videos are saved in {given.folder.resolve()}.")  # noqa: T201 -- addressed to the user
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        with suppress(asyncio.CancelledError):
            await Server(config).serve(sockets=[listener])
            # The server repeats the signal that ended it, which cancels this task at its next await: here, and not
            # while the emulator closes its sockets.
            await anyio.lowlevel.checkpoint()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
