"""Sessions used from other threads and event loops, over real sockets: refused before anything is paid for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from anyio.from_thread import start_blocking_portal

from kling_async import (
    AiohttpTransport,
    Job,
    KlingSession,
    Prediction,
    Spent,
    StartsPerWindow,
    Status,
    WrongLoopError,
    read_ledger,
)
from kling_async.emulator import Emulator
from support.patience import PATIENCE_S
from support.pictures import png
from support.webhooks import body_of, signed

IMAGE = png()


@asynccontextmanager
async def served(emulator: Emulator, **options: Any) -> AsyncIterator[KlingSession]:
    async with KlingSession(
        emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level="ultra", **options
    ) as kling:
        yield kling


@contextmanager
def elsewhere() -> Iterator[tuple[Emulator, KlingSession, asyncio.AbstractEventLoop]]:
    """Open an emulator and a session in the event loop of another thread."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Emulator(speed=1000, balance=100)) as emulator,
        portal.wrap_async_context_manager(served(emulator)) as kling,
    ):
        yield emulator, kling, portal.call(_running_loop)


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def four(kling: KlingSession) -> list[Prediction | BaseException]:
    jobs = [Job(prompt=f"number {number}", image=IMAGE) for number in range(4)]
    return await asyncio.gather(*(kling.generate(job) for job in jobs), return_exceptions=True)


@pytest.mark.promise(1)
def test_session_of_another_thread_pays_nothing_and_goes_on() -> None:
    with elsewhere() as (emulator, kling, loop):
        errors = asyncio.run(four(kling))
        assert [type(error) for error in errors] == [WrongLoopError] * 4
        assert {error.spent for error in errors if isinstance(error, WrongLoopError)} == {Spent.NO}
        assert emulator.charges() == ()
        # What the error advises.
        prediction = asyncio.run_coroutine_threadsafe(kling.generate(prompt="She turns", image=IMAGE), loop)
        assert prediction.result(PATIENCE_S).status is Status.COMPLETED
        assert len(emulator.charges()) == 1


def test_session_of_another_thread_cannot_be_closed_there() -> None:
    with elsewhere() as (_, kling, loop):
        with pytest.raises(WrongLoopError):
            asyncio.run(kling.aclose())
        assert "open" in repr(kling)
        asyncio.run_coroutine_threadsafe(kling.aclose(), loop).result(PATIENCE_S)
        assert "closed" in repr(kling)


def test_counts_can_be_read_in_any_thread() -> None:
    with elsewhere() as (_, kling, _):
        assert kling.running == ()
        assert kling.statistics().running == 0


async def make_client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


def test_client_session_of_another_loop_is_refused_at_opening() -> None:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Emulator()) as emulator:
        client = portal.call(make_client)

        async def generate() -> None:
            async with served(emulator, client_session=client) as kling:
                await kling.generate(prompt="She turns", image=IMAGE)

        with pytest.raises(WrongLoopError, match="the transport belongs to another event loop"):
            asyncio.run(generate())
        assert emulator.charges() == ()
        portal.call(client.close)


@pytest.mark.promise(1)
def test_transport_and_limiter_of_another_loop_leave_no_doubt(tmp_path: Path) -> None:
    """They are first used within the paid request, or right before it: the job can be run again elsewhere."""
    job = Job(prompt="She turns", image=IMAGE)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Emulator(speed=1000)) as emulator:
        transport, limiter = AiohttpTransport(), StartsPerWindow(100)
        portal.call(transport.open)
        portal.call(limiter.acquire)

        async def generate(**options: Any) -> Prediction:
            async with served(emulator, ledger=tmp_path / "jobs.db", images="inline", **options) as kling:
                return await kling.generate(job, key="k1")

        for options in ({"transport": transport}, {"rate_limiter": limiter}):
            with pytest.raises(WrongLoopError, match="nothing was spent") as caught:
                asyncio.run(generate(**options))
            assert caught.value.spent is Spent.NO
            assert emulator.charges() == ()
            assert [row.state.in_doubt for row in read_ledger(tmp_path / "jobs.db")] == [False]
        assert asyncio.run(generate()).status is Status.COMPLETED
        assert len(emulator.charges()) == 1
        portal.call(transport.aclose)


def test_drain_is_refused_in_another_thread() -> None:
    with elsewhere() as (_, kling, loop):

        async def drain() -> bool:
            async with kling.batch([]) as batch:
                with pytest.raises(WrongLoopError):
                    await asyncio.to_thread(batch.drain)
                drained = asyncio.Event()
                await asyncio.to_thread(loop.call_soon_threadsafe, batch.drain)
                await asyncio.to_thread(loop.call_soon_threadsafe, drained.set)
                await drained.wait()
                return batch.drained

        assert asyncio.run_coroutine_threadsafe(drain(), loop).result(PATIENCE_S)


def test_webhook_received_in_another_loop_is_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    secret, body = "whsec_0123456789abcdef", body_of("p1")
    with elsewhere() as (emulator, kling, loop):
        receiver = asyncio.run_coroutine_threadsafe(kling.webhook_receiver(secret), loop).result(PATIENCE_S)
        headers = signed(secret, body, at=emulator.clock.now())
        with caplog.at_level(logging.ERROR):
            assert asyncio.run(receiver.receive(headers, body)) == 500
        assert "run_coroutine_threadsafe" in caplog.text
        assert asyncio.run_coroutine_threadsafe(receiver.receive(headers, body), loop).result(PATIENCE_S) == 200
