"""Every public coroutine, context manager and iterator that belongs to an event loop is refused in any other one.

Found by introspection: a new public member with `async` is either tried here, or listed with the reason why not.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import anyio
import procrastinate
import pytest
from anyio.from_thread import start_blocking_portal

import kling_async
from kling_async import LEVELS, AiohttpTransport, Job, KlingError, KlingSession, StartsPerWindow, Worker, WrongLoopError
from kling_async import enqueue as enqueue_jobs
from kling_async._core.content import Content
from kling_async._core.sender import new_sender
from kling_async.gallery import Gallery
from kling_async.integrations.fastapi import JobService, event_stream
from kling_async.integrations.procrastinate import KlingTasks
from kling_async.ledger import Entry, SQLiteLedger, State
from kling_async.ledger.postgres import PostgresLedger
from kling_async.limits.shared import SharedStartsPerWindow
from kling_async.testing import ScriptedTransport

Opened = Callable[[Path, str], AbstractAsyncContextManager[Any]]

APART = (
    "kling_async.cli",
    "kling_async.emulator",
    "kling_async.examples",
    "kling_async.testing",
    "kling_async.__main__",
)
"""Programs that run a loop of their own, the emulator, which pays for nothing, and tools for tests."""

UNBOUND = {
    "Clock": "a protocol",
    "DoubtWindow": "a part of a session, which checks",
    "Gate": "a part of a session, which checks",
    "Ledger": "a protocol",
    "Live": "a part of a gallery, which checks",
    "ListeningRateLimiter": "a protocol",
    "Manifest": "reads a file in a thread, for any loop",
    "MemoryLedger": "rows in dictionaries, without futures; its session checks",
    "NoLimit": "holds nothing",
    "Pause": "a part of a session, which checks",
    "RateLimiter": "a protocol",
    "SharedLedger": "a protocol",
    "Slot": "a part of a session, which checks",
    "Slots": "a part of a session, which checks",
    "Target": "a protocol",
    "WebhookReceiver": "holds no future; the `deliver` of a session checks, and the service sends the webhook again",
    "join": "uses the loop that it is called in",
    "read_frame": "uses the loop that it is called in",
    "save_output": "uses the loop that it is called in",
    "serve_gallery": "uses the loop that it is called in",
}
"""Public classes and functions with `async` that work in any loop, with the reason."""

ENTRIES = {"__aenter__", "open"}
"""Members that are refused for being open already, before the loop matters."""
OF_THE_BLOCK = {"Batch.__aenter__", "Batch.__aexit__", "Gallery.__aenter__", "Gallery.__aexit__"}
"""Members that an `async with` calls once each; a batch that is entered in another loop is tried below."""


async def nothing(request: object) -> Any:
    raise AssertionError(f"a request was sent: {request}")


class NeverStarts:
    """Rate limiter that lets no job start."""

    async def acquire(self) -> None:
        await anyio.sleep_forever()


def new_session(**options: Any) -> KlingSession:
    return KlingSession("wsk_key", transport=ScriptedTransport(nothing), **options)


@asynccontextmanager
async def session(folder: Path, database: str) -> AsyncIterator[KlingSession]:
    del database
    async with new_session(ledger=folder / "jobs.db") as kling:
        yield kling


@asynccontextmanager
async def batch(folder: Path, database: str) -> AsyncIterator[Any]:
    async with session(folder, database) as kling, kling.batch([]) as opened:
        yield opened


@asynccontextmanager
async def worker(folder: Path, database: str) -> AsyncIterator[Worker]:
    del folder
    async with new_session(ledger=database) as kling:
        yield Worker(kling)


@asynccontextmanager
async def job_service(folder: Path, database: str) -> AsyncIterator[JobService]:
    del folder, database
    service = JobService()
    async with new_session(rate_limiter=NeverStarts()) as kling, service.open(kling):
        # Its state is read without the ledger.
        await service.submit(Job(prompt="She turns", image="https://pictures.example/face.png"), key="k")
        yield service


@asynccontextmanager
async def sqlite(folder: Path, database: str) -> AsyncIterator[SQLiteLedger]:
    del database
    ledger = SQLiteLedger(folder / "jobs.db")
    await ledger.open()
    yield ledger
    await ledger.aclose()


@asynccontextmanager
async def postgres(folder: Path, database: str) -> AsyncIterator[PostgresLedger]:
    del folder
    ledger = PostgresLedger(database)
    await ledger.open()
    yield ledger
    await ledger.aclose()


@asynccontextmanager
async def tasks(folder: Path, database: str) -> AsyncIterator[KlingTasks]:
    async with postgres(folder, database) as ledger:
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database))
        task: Any = None
        yield KlingTasks(app, ledger, task)


@asynccontextmanager
async def transport(folder: Path, database: str) -> AsyncIterator[AiohttpTransport]:
    del folder, database
    opened = AiohttpTransport()
    await opened.open()
    yield opened
    await opened.aclose()


@asynccontextmanager
async def limiter(folder: Path, database: str) -> AsyncIterator[StartsPerWindow]:
    del folder, database
    used = StartsPerWindow(100)
    await used.acquire()
    yield used


@asynccontextmanager
async def shared_limiter(folder: Path, database: str) -> AsyncIterator[SharedStartsPerWindow]:
    del folder, database
    async with SharedStartsPerWindow("redis://127.0.0.1:1/0", 100) as opened:
        yield opened


@asynccontextmanager
async def gallery(folder: Path, database: str) -> AsyncIterator[Gallery]:
    del database
    async with Gallery(folder) as opened:
        yield opened


BOUND: dict[str, Opened] = {
    "AiohttpTransport": transport,
    "Batch": batch,
    "Gallery": gallery,
    "JobService": job_service,
    "KlingSession": session,
    "KlingTasks": tasks,
    "PostgresLedger": postgres,
    "SQLiteLedger": sqlite,
    "SharedStartsPerWindow": shared_limiter,
    "StartsPerWindow": limiter,
    "Worker": worker,
}
"""Public classes that belong to an event loop, each with how one is opened in a folder or a database."""

REQUEST: Any = SimpleNamespace(headers={})
FUNCTIONS: dict[str, tuple[Opened, Callable[[Any], Any]]] = {
    "enqueue": (postgres, lambda ledger: enqueue_jobs(ledger, [])),
    "event_stream": (job_service, lambda jobs: event_stream(jobs, "k", REQUEST)),
}
"""Public functions that are given an object of an event loop."""

ARGUMENTS: dict[str, Any] = {
    "at": 0.0,
    "batch": "b",
    "content": Content("{}"),
    "digests": [],
    "entry": Entry(batch="b", key="k", state=State.INTENT, at=0.0),
    "jobs": [],
    "key": "k",
    "level": LEVELS["bronze"],
    "limit": 1,
    "model": "m",
    "now": 0.0,
    "prediction_id": "p",
    "prediction_ids": [],
    "sender": new_sender("wavespeed", "https://a.example", None),
    "states": [],
}
"""Arguments by name, where a check of the argument comes first; others are an `object()`, which nothing accepts."""


def is_async(value: object) -> bool:
    function = inspect.unwrap(value) if callable(value) else value
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def async_members(cls: type) -> set[str]:
    """Return the names of the public coroutine functions, async iterators and async context managers of a class."""
    special = {"__aenter__", "__aexit__", "__aiter__", "__anext__"}
    return {name for name in dir(cls) if (name in special or name[0] != "_") and is_async(getattr(cls, name, None))}


def public() -> Iterator[object]:
    """Yield the public objects of the package."""
    for found in pkgutil.walk_packages(kling_async.__path__, "kling_async."):
        if found.name.startswith(APART) or any(part.startswith("_") for part in found.name.split(".")):
            continue
        module = importlib.import_module(found.name)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == found.name]
        for name in getattr(module, "__all__", own):
            yield getattr(module, name)
    for name in kling_async.__all__:
        yield getattr(kling_async, name)


def async_names() -> set[str]:
    """Return the names of all public classes and functions of the package that have anything asynchronous."""
    return {
        value.__name__
        for value in public()
        if isinstance(value, type | FunctionType)
        and not value.__name__.startswith("_")
        and not value.__module__.startswith((*APART, "kling_async._clock"))
        and (async_members(value) if inspect.isclass(value) else is_async(value))
    }


async def use(value: Any) -> None:
    """Await a coroutine, enter a context manager, or take the first item of an iterator."""
    if inspect.isawaitable(value):
        await value
    elif hasattr(value, "__aenter__"):
        async with value:
            pass
    else:
        await anext(value)


async def result_of(opened: Any, member: str) -> str:
    """Call a member with its required arguments, and return what it raised, or "accepted"."""
    function = getattr(opened, member)
    known = {**ARGUMENTS, "kling": getattr(opened, "kling", None)}
    call = inspect.Signature(
        [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]
    ).bind_partial()
    call.arguments |= {name: known.get(name, object()) for name in call.signature.parameters}
    try:
        await use(function(*call.args, **call.kwargs))
    except WrongLoopError as error:
        return str(error)
    except KlingError as error:
        return type(error).__name__ if member in ENTRIES else repr(error)
    except BaseException as error:  # noqa: BLE001 -- it is the finding
        return repr(error)
    return "accepted"


def says_what_to_do(said: str) -> bool:
    return all(word in said for word in ("another event loop", "nothing was spent", "run_coroutine_threadsafe"))


def test_every_asynchronous_class_and_function_is_listed() -> None:
    found = async_names()
    assert found == BOUND.keys() | FUNCTIONS.keys() | UNBOUND.keys()


@pytest.mark.parametrize("name", BOUND)
def test_use_in_another_loop_is_refused(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    database = request.getfixturevalue("database") if BOUND[name] in {worker, postgres, tasks} else ""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(BOUND[name](tmp_path, database)) as opened,
    ):

        async def results() -> dict[str, str]:
            members = {member for member in async_members(type(opened)) if f"{name}.{member}" not in OF_THE_BLOCK}
            return {member: await result_of(opened, member) for member in sorted(members)}

        found = asyncio.run(results())
    opens = {"SessionClosedError", "LedgerError"}
    wrong = {
        member: said
        for member, said in found.items()
        if not says_what_to_do(said) and not (member in ENTRIES and said in opens)
    }
    assert wrong == {}


def test_batch_entered_in_another_loop_is_refused(tmp_path: Path) -> None:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(session(tmp_path, "")) as kling,
        pytest.raises(WrongLoopError),
    ):
        asyncio.run(use(kling.batch([])))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_in_another_loop_is_refused(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    opens, call = FUNCTIONS[name]
    database = request.getfixturevalue("database") if opens is postgres else ""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(opens(tmp_path, database)) as opened:

        async def use_it() -> None:
            await use(call(opened))

        with pytest.raises(WrongLoopError):
            asyncio.run(use_it())


OPENINGS: dict[str, Callable[[Path], Any]] = {
    "AiohttpTransport": lambda _: AiohttpTransport().open(),
    "Gallery": lambda folder: Gallery(folder).__aenter__(),
    "KlingSession": lambda folder: KlingSession("wsk_key", ledger=folder / "jobs.db").__aenter__(),
    "PostgresLedger": lambda _: PostgresLedger("postgresql://nobody@127.0.0.1:1/none").open(),
    "SQLiteLedger": lambda folder: SQLiteLedger(folder / "jobs.db").open(),
    "SharedStartsPerWindow": lambda _: SharedStartsPerWindow("redis://127.0.0.1:1/0", 1).acquire(),
    "StartsPerWindow": lambda _: StartsPerWindow(1).acquire(),
}
"""Opening of each class that needs no open session for it."""


@pytest.mark.parametrize("name", OPENINGS)
def test_opening_under_another_library_is_refused(name: str, tmp_path: Path) -> None:
    """Another library, such as trio, steps a coroutine while no loop of asyncio runs."""
    opening = OPENINGS[name](tmp_path)
    with pytest.raises(WrongLoopError, match=r"needs asyncio.*nothing was spent.*asyncio\.run.*trio"):
        opening.send(None)
    assert list(tmp_path.iterdir()) == []
