"""FastAPI and Starlette, under any ASGI server: one session per process, shared by all requests.

::

    app = FastAPI(lifespan=lifespan(lambda: KlingSession(ledger="app.db")))
    add_error_handlers(app)

    @app.post("/videos", status_code=202)
    async def make(prompt: str, image: str, jobs: Jobs) -> JSONResponse:
        status = await jobs.submit(Job(prompt=prompt, image=image))
        return accepted(status, location=f"/videos/{status.key}")

    @app.get("/videos/{key}")
    async def look(key: str, jobs: Jobs) -> JobStatus:
        return await jobs.get(key)

    @app.get("/videos/{key}/events")
    async def events(key: str, request: Request, jobs: Jobs) -> Response:
        return await event_stream(jobs, key, request)

Keys are bearer tokens: generated ones are unguessable. With `caller=`, the name of a client as your login knows it,
keys belong to callers: the key of one is a 404 to another.

**Clients that disconnect.** An accepted job runs on, is paid for once, and is found by its key.

**Several workers.** Each process has its own session, hence its own slots and ledger: a SQLite ledger has a single
writer, and a second process that opens it is refused. Give each process its own file and its share of the account's
limits (`max_in_flight`), share the starts per time over Redis (`SharedStartsPerWindow`), and route requests about a key
to the worker that accepted it. Or run one process: it only waits, so it is enough for thousands of jobs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import anyio

from kling_async._core.media import MAX_IMAGE_BYTES
from kling_async._log import log
from kling_async._session.session import KlingSession
from kling_async.errors import ConfigurationError, KlingError
from kling_async.webhooks import asgi_app

from ._job_service import JobService
from ._job_status import Change, JobPage, JobState, JobStatus
from ._problems import MEDIA_TYPE, answer

try:
    from fastapi import Depends, HTTPException
    from fastapi.sse import EventSourceResponse, format_sse_event
    from starlette.requests import HTTPConnection, Request  # noqa: TC002 -- FastAPI resolves types of parameters
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("FastAPI is not installed: pip install 'kling-async[fastapi]'") from error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from kling_async._core.secret import Secret

__all__ = [
    "ACCEPTED",
    "PICTURE_BODY",
    "Change",
    "JobDesk",
    "JobPage",
    "JobService",
    "JobState",
    "JobStatus",
    "Jobs",
    "Picture",
    "Session",
    "accepted",
    "add_error_handlers",
    "add_webhooks",
    "event_stream",
    "lifespan",
    "problem",
]

_SERVICE_STATE: Final = "kling"
"""Name of the job service in the lifespan's state."""
_WEBHOOKS_STATE: Final = "kling_webhooks"
"""Name of the webhook application in the lifespan's state."""

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]
"""Type of the argument `lifespan=` of FastAPI and Starlette."""

JobDesk = JobService
"""The former name of `JobService`, for one version."""


def lifespan(
    session: Callable[[], KlingSession],
    *,
    desk: Callable[[], JobService] = JobService,
    webhooks: bool | str | Secret = False,
) -> Lifespan:
    """Return a lifespan that opens one session for all requests of the process and closes it at the end.

    In a lifespan of your own: `async with lifespan(...)(app) as state: yield {**state, ...}`.

    Args:
        session: Returns the session, each time the application starts. With a ledger in a file, jobs survive restarts.
        desk: Returns the job service, to set its options: `lambda: JobService(queue=500)`.
        webhooks: True if `add_webhooks` is used, or the secret that signs them; with True the secret is requested
            from the service at the start.
    """

    @asynccontextmanager
    async def run(_: object) -> AsyncGenerator[Mapping[str, Any]]:
        async with session() as kling:
            state: dict[str, Any] = {}
            if webhooks:
                receiver = await kling.webhook_receiver(None if webhooks is True else webhooks)
                state[_WEBHOOKS_STATE] = asgi_app(receiver)
            jobs = desk()
            async with jobs.open(kling):
                yield {_SERVICE_STATE: jobs, **state}

    return run


_NO_LIFESPAN: Final = (
    "the application has no session, because its lifespan did not run: expected FastAPI(lifespan=lifespan(...)) under "
    "a server that runs it. In tests, enter Starlette's client (`with TestClient(app) as http:`), or give "
    "httpx.ASGITransport the result of `kling_async.testing.started(app)`; `uvicorn --lifespan off` runs none. Nothing "
    "was sent"
)


# Coroutine functions, because FastAPI would run plain functions in a thread for every request.
async def _job_service(connection: HTTPConnection) -> JobService:
    jobs = getattr(connection.state, _SERVICE_STATE, None)
    if not isinstance(jobs, JobService):
        # No KlingError: the handler of those would answer with a 500 without words, which no test client raises.
        raise RuntimeError(_NO_LIFESPAN)  # noqa: TRY004 -- it is missing, rather than of another type
    return jobs


async def _session(connection: HTTPConnection) -> KlingSession:
    return (await _job_service(connection)).kling


Jobs: TypeAlias = Annotated[JobService, Depends(_job_service)]
"""Handler parameter: the job service of the application, for jobs that outlive their request."""
Session: TypeAlias = Annotated[KlingSession, Depends(_session)]
"""Handler parameter: the session of the application."""


def problem(error: KlingError) -> Response:
    """Return an error as problem details (RFC 9457), with `Retry-After` where a later attempt may succeed.

    Errors that are yours, not the client's (key, balance, budget, disk, network), show a generic title.
    """
    answered = answer(error)
    return Response(json.dumps(answered.body), answered.status, answered.headers, media_type=MEDIA_TYPE)


def add_error_handlers(app: Starlette) -> None:
    """Respond with `problem` to errors of this package that handlers raise, and log them; yours as warnings."""

    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, KlingError)  # noqa: S101 -- registered for KlingError only
        response = problem(error)
        level = logging.WARNING if response.status_code >= 500 or response.status_code == 402 else logging.INFO  # noqa: PLR2004 -- HTTP
        # Without the query, which may hold the client's secrets.
        log.log(level, "%s %r: %s", request.method, request.url.path, error)
        return response

    app.add_exception_handler(KlingError, handle)


class _WebhookRoute:
    """Route of webhooks; the receiver it calls exists once the application has started."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        receiver = scope.get("state", {}).get(_WEBHOOKS_STATE)
        if receiver is None:
            raise ConfigurationError(
                "the application was started without webhooks", advice="lifespan(..., webhooks=True)"
            )
        await receiver(scope, receive, send)


def add_webhooks(app: Starlette, path: str = "/hooks/kling") -> None:
    """Receive the service's webhooks at a path; see `kling_async.webhooks`.

    Give the session `webhook_url=` with the public https URL of that path, and `lifespan` `webhooks=True`.
    """
    app.router.routes.append(Route(path, _WebhookRoute(), include_in_schema=False))


ACCEPTED: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "model": JobStatus,
        "description": "The job is recorded, and will run.",
        "headers": {"Location": {"description": "URL of the job", "schema": {"type": "string"}}},
    }
}
"""Schema of the response of `accepted`, for OpenAPI: `@app.post("/videos", status_code=202, responses=ACCEPTED)`."""

PICTURE_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png")},
    }
}
"""Schema of a request whose body is a `Picture`, for OpenAPI: `@app.post("/uploads", openapi_extra=PICTURE_BODY)`."""


async def _picture(request: Request) -> bytes:
    """Return the body of a request."""
    # Before they send these types for a page of another site, browsers ask.
    if request.headers.get("content-type") not in PICTURE_BODY["requestBody"]["content"]:
        raise HTTPException(415, "Expected a JPEG or PNG as the body, with its type in the header Content-Type.")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_IMAGE_BYTES:
            raise HTTPException(413, f"Expected a picture of up to {MAX_IMAGE_BYTES // 2**20} MB.")
    return bytes(content)


Picture: TypeAlias = Annotated[bytes, Depends(_picture)]
"""Handler parameter: the JPEG or PNG that is the body of the request, of up to 10 MB."""


def accepted(status: JobStatus, *, location: str) -> JSONResponse:
    """Return a 202 with the URL of the job.

    Args:
        status: Result of `JobService.submit`.
        location: URL of the job, such as `str(request.url_for("look", key=status.key))`.
    """
    headers = {"Location": location, "Cache-Control": "no-store"}
    return JSONResponse(dataclasses.asdict(status), 202, headers)


async def event_stream(
    jobs: JobService,
    key: str,
    request: HTTPConnection,
    *,
    caller: str | None = None,
    lasts: float = 60.0,
    ping: float = 15.0,
) -> Response:
    """Return a job's changes as server-sent events, for `new EventSource(...)`.

    Each change is an event `status` whose data is a `JobStatus`; an event `end` follows the last one. After a broken
    connection, a browser reconnects by itself with `Last-Event-ID` and gets the changes after it; with none left, it
    gets a 204, which ends the reconnecting.

    Args:
        jobs: The job service.
        key: The job's key.
        request: The client's request.
        caller: The caller that the key belongs to.
        lasts: Seconds after which the stream ends and the client reconnects, so that streams neither delay the
            server's shutdown nor are cut by proxies.
        ping: Seconds without a change after which a comment is sent.

    Raises:
        UnknownJobError: There is no job with this key.
    """
    after = request.headers.get("last-event-id")
    await jobs.get(key, caller=caller)
    if jobs.has_seen_all(key, after, caller=caller):
        return Response(status_code=204)
    changes = jobs.follow(key, caller=caller, after=after, pulse=min(ping, lasts))
    # Keeps proxies from buffering events.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_events(changes, lasts), headers=headers)


async def _events(changes: AsyncGenerator[Change | None, None], lasts: float) -> AsyncGenerator[bytes, None]:
    yield format_sse_event(retry=1000)
    ends_at = anyio.current_time() + lasts
    async with aclosing(changes):
        async for change in changes:
            if change is None:
                yield format_sse_event(comment="")
            else:
                data = json.dumps(dataclasses.asdict(change.status))
                yield format_sse_event(event="status", id=change.id, data_str=data)
                if change.status.ended:
                    yield format_sse_event(event="end", data_str="{}")
                    return
            if anyio.current_time() >= ends_at:
                return
