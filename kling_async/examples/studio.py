"""A studio in the browser: a picture in, a prompt, its price, a video out. It is an example: read it from above.

`python -m kling_async.examples.studio --emulator` needs no key; without `--emulator` it is the real service, and paid.
Whoever reaches the page can spend the account's money: it listens on this computer only, and has no login.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from kling_async import MODELS, Job, KlingSession, UnknownJobError
from kling_async.emulator import Emulator
from kling_async.integrations.fastapi import (
    Jobs,
    JobStatus,
    Session,
    accepted,
    add_error_handlers,
    event_stream,
    lifespan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
LARGEST = 10 * 2**20
OFFERED = MODELS[:3]


async def picture(request: Request) -> bytes:
    """The body of a request: a picture, and not more than the models take."""
    # No other site can send these types without being asked by the browser first.
    if request.headers.get("content-type") not in {"image/jpeg", "image/png"}:
        raise HTTPException(415, "A JPEG or a PNG, please.")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST:
            raise HTTPException(413, "The picture has more than 10 MB.")
    return bytes(content)


def studio(session: Callable[[], KlingSession], videos: Path) -> FastAPI:
    """The application.

    Args:
        session: Makes the session; with a ledger in a file, nothing is lost when this process ends.
        videos: The folder for the videos.
    """
    app = FastAPI(title="Kling studio", lifespan=lifespan(session))
    add_error_handlers(app)

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
            {"name": model.name, "prices": {seconds: str(model.price(seconds)) for seconds in model.durations}}
            for model in OFFERED
        ]

    @app.post("/videos", status_code=202)
    async def make(
        *,
        image: Annotated[bytes, Depends(picture)],
        prompt: str,
        model: str,
        duration: int,
        request: Request,
        jobs: Jobs,
    ) -> JSONResponse:
        status = await jobs.submit(Job(model=model, prompt=prompt, image=image, duration=duration))
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
        # The service keeps it for 7 days, this folder as long as you like; asked for again, it is there already.
        saved = await kling.save(status.prediction_id, videos)
        return FileResponse(saved.path, media_type="video/mp4", headers=HEADERS)

    return app


async def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m kling_async.examples.studio", description="Kling in the browser.")
    parser.add_argument("--emulator", action="store_true", help="without a key, and for nothing")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--folder", type=Path, default=Path("kling-studio"), help="for the ledger and the videos")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {"ledger": given.folder / "studio.db"}
        if given.emulator:
            emulator = await stack.enter_async_context(Emulator(speed=10))
            # What an emulator knows ends with it: its ledger is memory.
            options = {"api_key": emulator.api_key, "base_url": emulator.base_url, "clock": emulator.clock}
            options["level"] = "gold"
        app = studio(lambda: KlingSession(**options), given.folder)
        print(f"Open http://127.0.0.1:{given.port} in your browser; Ctrl-C ends it.", flush=True)  # noqa: T201 -- for the user
        config = uvicorn.Config(app, port=given.port, log_level="warning", timeout_graceful_shutdown=3)
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
