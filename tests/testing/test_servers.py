"""The emulator in a thread, and applications whose lifespans run, as tests of handlers use them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from kling_async import KlingSession
from kling_async.emulator import Emulator, ManualClock, faults
from kling_async.integrations.fastapi import lifespan
from kling_async.testing import EmulatorThread, served, started
from kling_async.testing.plugin import kling_emulator_options, kling_server
from support.patience import PATIENCE_S
from support.web import application

__all__ = ["kling_emulator_options", "kling_server"]

ASKED = {"prompt": "Waves", "image": "https://pictures.example/lake.png"}


def test_starlettes_client_drives_handlers(kling_server: EmulatorThread) -> None:
    with TestClient(application(KlingSession)) as http:
        assert http.post("/now", params=ASKED).json()["output"]
    assert len(kling_server.charges()) == 1
    assert kling_server.call(Emulator.double_paid) == ()


@pytest.mark.anyio
async def test_httpx_drives_handlers_in_the_same_event_loop(kling_server: EmulatorThread) -> None:
    async with (
        started(application(KlingSession)) as running,
        httpx.AsyncClient(transport=httpx.ASGITransport(running), base_url="http://test") as http,
    ):
        response = await http.post("/now", params=ASKED, timeout=PATIENCE_S)
        assert response.json()["output"]
        assert (await http.get("/videos/none")).status_code == 404
    assert len(kling_server.charges()) == 1


def test_uvicorn_serves_handlers_and_closes_their_session(kling_server: EmulatorThread) -> None:
    opened: list[KlingSession] = []

    def session() -> KlingSession:
        opened.append(KlingSession())
        return opened[0]

    with served(application(session)) as url:
        assert httpx.post(f"{url}/now", params=ASKED, timeout=PATIENCE_S).status_code == 200
    assert "closed" in repr(opened[0])
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_faults_are_scripted_from_the_test(kling_server: EmulatorThread) -> None:
    kling_server.faults.add("submit", faults.Status(400, message="no"))
    with TestClient(application(KlingSession)) as http:
        assert http.post("/now", params=ASKED).status_code == 422
    assert kling_server.charges() == ()
    assert [request.route for request in kling_server.requests] == ["submit"]


def test_other_processes_use_it_by_the_environment(kling_server: EmulatorThread) -> None:
    script = "import asyncio, kling_async\nasync def main():\n async with kling_async.KlingSession() as kling:\n"
    script += "  print(await kling.balance())\nasyncio.run(main())"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == 1000
    assert kling_server.environment["WAVESPEED_BASE_URL"] == kling_server.base_url


def test_variables_of_a_proxy_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    with EmulatorThread(profile="tiny") as server:
        assert server.environment["NO_PROXY"] == "intranet.example,127.0.0.1"


def test_clock_of_one_event_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="ManualClock"):
        EmulatorThread(clock=ManualClock(), profile="tiny")


@pytest.mark.parametrize("handled", [False, True])
def test_handler_without_lifespan_says_so(handled: bool) -> None:  # noqa: FBT001 -- a case
    app = application(KlingSession) if handled else FastAPI()
    if not handled:
        app.router.routes.extend(application(KlingSession).routes)
    with pytest.raises(RuntimeError, match="its lifespan did not run"):
        TestClient(app).get("/videos/any")


@pytest.mark.anyio
async def test_httpx_without_lifespan_raises_instead_of_a_500() -> None:
    transport = httpx.ASGITransport(application(KlingSession))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        with pytest.raises(RuntimeError, match=r"kling_async\.testing\.started"):
            await http.get("/videos/any")


def broken(when: str) -> Callable[[object], AbstractAsyncContextManager[Mapping[str, Any]]]:
    @asynccontextmanager
    async def run(_: object) -> AsyncIterator[Mapping[str, Any]]:
        if when == "start":
            raise LookupError("no table")
        yield {"known": 1}
        raise LookupError("no table")

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["start", "end"])
async def test_errors_of_a_lifespan_are_raised(when: str) -> None:
    entered = False
    with pytest.raises(LookupError, match="no table"):
        async with started(FastAPI(lifespan=broken(when))):
            entered = True
    assert entered == (when == "end")


def test_application_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="did not start"), served(FastAPI(lifespan=broken("start"))):
        pass


@pytest.mark.anyio
async def test_error_of_the_test_ends_the_lifespan(kling_server: EmulatorThread) -> None:
    opened = KlingSession()
    with pytest.raises(ZeroDivisionError):
        async with started(FastAPI(lifespan=lifespan(lambda: opened))):
            assert "open" in repr(opened)
            raise ZeroDivisionError
    assert "closed" in repr(opened)


@pytest.mark.anyio
@pytest.mark.parametrize("cancelled", [False, True])
async def test_application_is_shut_down_when_the_block_ends_early(cancelled: bool) -> None:  # noqa: FBT001 -- a case
    said: list[str] = []

    @asynccontextmanager
    async def run(_: object) -> AsyncIterator[None]:
        yield
        await anyio.lowlevel.checkpoint()
        said.append("shut down")  # not in `finally`: reached by a shutdown only

    with anyio.CancelScope() as scope, contextlib.suppress(ZeroDivisionError):
        async with started(FastAPI(lifespan=run)):
            if not cancelled:
                raise ZeroDivisionError
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert (said, scope.cancelled_caught) == (["shut down"], cancelled)


@pytest.mark.anyio
async def test_cancelled_start_leaves_no_task() -> None:
    async def silent(*_: object) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    before = asyncio.all_tasks()
    with anyio.CancelScope() as scope:
        async with started(silent):
            pytest.fail("it did not start")
    assert scope.cancelled_caught
    assert asyncio.all_tasks() == before


@pytest.mark.anyio
async def test_aiohttp_reads_events_of_a_served_application(kling_server: EmulatorThread) -> None:
    with served(application(KlingSession)) as url:
        async with aiohttp.ClientSession(url, trust_env=True) as http:
            async with http.post("/videos", params={**ASKED, "key": "a"}) as response:
                assert response.status == 202
            async with http.get("/videos/a/events", timeout=aiohttp.ClientTimeout(PATIENCE_S)) as response:
                assert "event: end" in await response.text()
