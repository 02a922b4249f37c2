"""Inside FastAPI, Starlette, or under any ASGI server: one session per process, for all of its requests.

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

Whoever has a job's key can ask for it: a fresh key is not to be guessed; with keys of your own, check whose they are.

**Clients that go away.** Their leaving ends nothing: what was taken is made, is paid for once, and is found by its key.

**Several workers.** Each process has its own session, and so its own slots and ledger: one SQLite ledger has one
writer, and a second process that opens it is refused. Give each its own file and its part of the account's limits
(`max_in_flight`), share the starts per time over Redis (`SharedStartsPerWindow`), and send a key's requests to the
worker that took it; or run one process, which is enough for thousands of jobs, since it only waits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import anyio

from kling_async._session.session import KlingSession
from kling_async.errors import ConfigurationError, KlingError
from kling_async.webhooks import asgi_app

from ._job_service import Change, JobService, JobState, JobStatus
from ._problems import MEDIA_TYPE, answer

try:
    from fastapi import Depends
    from fastapi.sse import EventSourceResponse, format_sse_event
    from starlette.requests import HTTPConnection  # noqa: TC002 -- FastAPI looks at the types of parameters
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("FastAPI is not there: pip install 'kling-async[fastapi]'") from error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from kling_async._core.secret import Secret

__all__ = [
    "Change",
    "JobDesk",
    "JobService",
    "JobState",
    "JobStatus",
    "Jobs",
    "Session",
    "accepted",
    "add_error_handlers",
    "add_webhooks",
    "event_stream",
    "lifespan",
    "problem",
]

log = logging.getLogger("kling_async")

_STATE: Final = "kling"
"""What the desk is called in the lifespan's state."""
_HOOKS: Final = "kling_webhooks"

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]
"""What FastAPI and Starlette take as `lifespan=`."""

JobDesk = JobService
"""The former name of `JobService`, for one version."""


def lifespan(
    session: Callable[[], KlingSession],
    *,
    desk: Callable[[], JobService] = JobService,
    webhooks: bool | str | Secret = False,
) -> Lifespan:
    """A lifespan that opens one session for all requests of the process, and closes it at the end.

    In a lifespan of your own: `async with lifespan(...)(app) as state: yield {**state, ...}`.

    Args:
        session: Makes the session, each time that the application starts. With a ledger in a file, its jobs survive.
        desk: Makes the desk, for other numbers: `lambda: JobService(queue=500)`.
        webhooks: Whether `add_webhooks` is used; or the secret that signs them, which is asked of the service
            otherwise, at the start.
    """

    @asynccontextmanager
    async def run(_: object) -> AsyncGenerator[Mapping[str, Any]]:
        async with session() as kling:
            state: dict[str, Any] = {}
            if webhooks:
                receiver = await kling.webhook_receiver(None if webhooks is True else webhooks)
                state[_HOOKS] = asgi_app(receiver)
            jobs = desk()
            async with jobs.open(kling):
                yield {_STATE: jobs, **state}

    return run


# Coroutine functions, though they wait for nothing: FastAPI runs others in a thread, for every request.
async def _desk(connection: HTTPConnection) -> JobService:
    jobs = getattr(connection.state, _STATE, None)
    if not isinstance(jobs, JobService):
        raise ConfigurationError("the application has no session", advice="FastAPI(lifespan=lifespan(...))")
    return jobs


async def _session(connection: HTTPConnection) -> KlingSession:
    return (await _desk(connection)).kling


Jobs: TypeAlias = Annotated[JobService, Depends(_desk)]
"""A parameter of a handler: the desk of the application, for jobs that outlive their request."""
Session: TypeAlias = Annotated[KlingSession, Depends(_session)]
"""A parameter of a handler: the session of the application."""


def problem(error: KlingError) -> Response:
    """An error as problem details (RFC 9457), with its status and, where asking again may help, `Retry-After`.

    What concerns the operator (key, balance, budget, disk, network) is told by its title alone.
    """
    told = answer(error)
    return Response(json.dumps(told.body), told.status, told.headers, media_type=MEDIA_TYPE)


def add_error_handlers(app: Starlette) -> None:
    """Answer errors of this package that handlers raise with `problem`; those that are the operator's are logged."""

    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, KlingError)  # noqa: S101 -- it is registered for these
        response = problem(error)
        level = logging.WARNING if response.status_code >= 500 or response.status_code == 402 else logging.INFO  # noqa: PLR2004 -- HTTP
        # Without the query: it may hold what only the caller should know.
        log.log(level, "%s %r: %s", request.method, request.url.path, error)
        return response

    app.add_exception_handler(KlingError, handle)


class _Hooks:
    """The route of webhooks: what it calls is there when the application has started."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        receiver = scope.get("state", {}).get(_HOOKS)
        if receiver is None:
            raise ConfigurationError("the application takes no webhooks", advice="lifespan(..., webhooks=True)")
        await receiver(scope, receive, send)


def add_webhooks(app: Starlette, path: str = "/hooks/kling") -> None:
    """Take the service's webhooks at a path: verified, they wake whoever waits. See `kling_async.webhooks`.

    Give the session `webhook_url=` with the public https address of that path, and `lifespan` `webhooks=True`.
    """
    app.router.routes.append(Route(path, _Hooks(), include_in_schema=False))


def accepted(status: JobStatus, *, location: str) -> JSONResponse:
    """202 with the address where the job is found.

    Args:
        status: Of `JobService.submit`.
        location: The address, as of `str(request.url_for("look", key=status.key))`.
    """
    headers = {"Location": location, "Cache-Control": "no-store"}
    return JSONResponse(dataclasses.asdict(status), 202, headers)


async def event_stream(
    jobs: JobService, key: str, request: HTTPConnection, *, lasts: float = 60.0, ping: float = 15.0
) -> Response:
    """A job's changes as server-sent events, for `new EventSource(...)`.

    Each is an event `status` whose data is a `JobStatus`; after the last one comes an event `end`. Cut off, a browser
    connects again by itself and says by `Last-Event-ID` what it has seen: it is sent the rest. One that has seen all is
    answered with 204, by which it stops.

    Args:
        jobs: The desk.
        key: The job's name.
        request: Of the client.
        lasts: Seconds after which the client is made to connect again, so that no stream holds up the server when it
            closes, and none is cut by a proxy in between.
        ping: Seconds of silence after which a comment is sent.

    Raises:
        UnknownJobError: There is no job of this key.
    """
    after = request.headers.get("last-event-id")
    await jobs.get(key)
    if jobs.has_seen_all(key, after):
        return Response(status_code=204)
    # Proxies are not to hold events back.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_events(jobs, key, after, lasts, ping), headers=headers)


async def _events(
    jobs: JobService, key: str, after: str | None, lasts: float, ping: float
) -> AsyncGenerator[bytes, None]:
    yield format_sse_event(retry=1000)
    give_up = anyio.current_time() + lasts
    async with aclosing(jobs.follow(key, after=after, pulse=min(ping, lasts))) as changes:
        async for change in changes:
            if change is None:
                yield format_sse_event(comment="")
            else:
                data = json.dumps(dataclasses.asdict(change.status))
                yield format_sse_event(event="status", id=change.id, data_str=data)
                if change.status.ended:
                    yield format_sse_event(event="end", data_str="{}")
                    return
            if anyio.current_time() >= give_up:
                return
