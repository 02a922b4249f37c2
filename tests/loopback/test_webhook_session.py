"""Sessions with webhooks: the emulator delivers to the session's own receiver."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kling_async import (
    ConfigurationError,
    GPTProto,
    Job,
    KlingSession,
    Level,
    State,
    SubmissionUncertainError,
    WatchPolicy,
    read_ledger,
)
from kling_async.emulator import Call, Emulator, ManualClock, faults
from kling_async.webhooks import aiohttp_handler
from support.manual import running
from support.pictures import png

pytestmark = pytest.mark.anyio

PICTURE = png()
LEVEL = Level("wide", 1_000_000, 1_000)
JOBS = 60


@asynccontextmanager
async def told(emulator: Emulator, **options: Any) -> AsyncIterator[KlingSession]:
    """Open a session with a webhook receiver on its own socket."""
    app = web.Application()
    runner = web.AppRunner(app)
    handlers: list[Any] = []

    async def hook(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await handlers[0](request)
        return response

    app.router.add_route("*", "/hooks", hook)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            clock=emulator.clock,
            level=LEVEL,
            webhook_url=f"http://127.0.0.1:{runner.addresses[0][1]}/hooks",
            **options,
        ) as kling:
            handlers.append(aiohttp_handler(await kling.webhook_receiver()))
            yield kling
    finally:
        await runner.cleanup()


def jobs(count: int = JOBS) -> list[Job]:
    return [Job(model="kling-v2.1-pro", prompt=f"number {number}", image=PICTURE) for number in range(count)]


def looks(emulator: Emulator) -> int:
    routes = Counter(request.route for request in emulator.requests)
    return routes["result"] + routes["list"]


async def test_delivered_webhooks_need_few_reads() -> None:
    # Time stops while a delivery is in flight: on a busy machine it would be late, and polled for.
    clock = ManualClock()
    async with Emulator(level="ultra", clock=clock, profile="tiny", seed=3) as emulator, running(clock):
        async with (
            told(emulator, watch=WatchPolicy.webhook_first()) as kling,
            kling.batch(jobs()) as batch,
        ):
            assert all([outcome.ok async for outcome in batch])
            assert kling.running == ()
        assert len(emulator.charges()) == JOBS
        assert looks(emulator) <= 2 * JOBS, "a safety net"


def _lost(call: Call) -> bool:
    """Select every delivery, retries included, of half of the predictions."""
    return zlib.crc32(str(call.body["id"]).encode()) % 2 == 0


async def test_lost_deliveries_cost_no_more_than_default_polling() -> None:
    spent: dict[str, int] = {}
    for name in ("balanced", "webhook first"):
        clock = ManualClock()
        async with Emulator(level="ultra", clock=clock, profile="tiny", seed=3) as emulator, running(clock):
            emulator.faults.add("webhook", faults.Drop(), times=None, when=_lost)
            if name == "balanced":
                async with (
                    KlingSession(
                        emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level=LEVEL
                    ) as kling,
                    kling.batch(jobs()) as batch,
                ):
                    assert all([outcome.ok async for outcome in batch])
            else:
                async with told(emulator, watch=name) as kling, kling.batch(jobs()) as batch:
                    assert all([outcome.ok async for outcome in batch])
            spent[name] = looks(emulator)
    assert 0 < spent["webhook first"] <= spent["balanced"], spent


async def test_delivery_settles_doubt_at_once(tmp_path: Path) -> None:
    """There is no echo and the key is shared: without the token the job would be held."""
    ledger = tmp_path / "run.db"
    async with Emulator(level="ultra", speed=60, profile="tiny") as emulator:
        emulator.faults.add("submit", faults.AcceptThenDrop(), times=4)
        async with told(emulator, ledger=ledger, grace=86_400) as kling, kling.batch(jobs(4), name="b") as batch:
            outcomes = [outcome async for outcome in batch]
        assert [outcome.error for outcome in outcomes] == [None] * 4
        charged = {charge.prediction_id for charge in emulator.charges()}
        assert {outcome.prediction.id for outcome in outcomes if outcome.prediction} == charged
        by_id = {record.id: record.inputs["prompt"] for record in emulator.predictions()}
        for outcome in outcomes:
            assert outcome.prediction is not None
            assert by_id[outcome.prediction.id] == outcome.job.prompt
    assert len(charged) == 4
    text = ledger.read_bytes()
    assert b"kling_token" not in text


async def test_delivery_after_give_up_is_recorded(tmp_path: Path) -> None:
    ledger = tmp_path / "run.db"
    async with Emulator(level="ultra", speed=60, profile="tiny") as emulator:
        emulator.faults.add("submit", faults.AcceptThenDrop())
        async with told(emulator, ledger=ledger, on_uncertain="hold") as kling:
            with pytest.raises(SubmissionUncertainError):
                await kling.generate(jobs(1)[0], key="a")
            (charge,) = emulator.charges()
            done = await kling.wait(charge.prediction_id)
            while not any(delivery.status == 200 for delivery in emulator.deliveries):
                await emulator.clock.sleep(1)
            again = await kling.generate(jobs(1)[0], key="a")
            assert again.id == done.id
    (row,) = read_ledger(ledger)
    assert row.state is State.COMPLETED
    assert len(emulator.charges()) == 1


def test_unreachable_url_or_provider_without_webhooks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="https"):
        KlingSession("key", webhook_url="http://example.com/hooks")
    with pytest.raises(ConfigurationError, match="webhook"):
        KlingSession(provider=GPTProto(api_key="key"), webhook_url="https://example.com/hooks")
