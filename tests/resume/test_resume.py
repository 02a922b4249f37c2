"""The same call again over a ledger file: nothing is paid twice, and no paid job is lost.

In real time, because the ledger writes in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kling_async import Job, KeyReusedError, LedgerError, State, WatchPolicy, read_ledger
from kling_async.ledger import MemoryLedger, SQLiteLedger
from support.patience import PATIENCE_S
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

FAST = WatchPolicy.fixed(0.05)


def jobs(count: int) -> Iterator[Job]:
    return (Job(prompt=f"number {number}", image=IMAGE) for number in range(count))


async def test_repeated_batch_pays_nothing(tmp_path: Path) -> None:
    service = Service(seconds=0.3, latency=0.001, failures={"number 3": {"code": 1405}})
    ledger = tmp_path / "run.db"
    async with open_session(service, watch=FAST, ledger=ledger) as kling, kling.batch(jobs(10), name="b") as batch:
        first = {outcome.key: outcome async for outcome in batch}
    reads = service.reads
    shuffled = [Job(prompt="new", image=IMAGE), *list(jobs(10))[::-1]]
    async with open_session(service, watch=FAST, ledger=ledger) as kling, kling.batch(shuffled, name="b") as batch:
        second = {outcome.key: outcome async for outcome in batch}
    assert len(service.paid) == 11
    assert second.keys() > first.keys()
    for key, outcome in first.items():
        assert second[key].ok == outcome.ok
        assert (one := outcome.prediction) is not None
        assert (two := second[key].prediction) is not None
        assert (two.id, two.outputs) == (one.id, one.outputs)
    new = [key for key in second if key not in first]
    assert service.reads - reads <= 20, f"only {new} is read"


async def test_resumed_batch_follows_running_jobs_and_settles_doubts(tmp_path: Path) -> None:
    service = Service(seconds=3600.0, latency=0.001)
    ledger = tmp_path / "run.db"
    async with (
        open_session(service, watch=FAST, ledger=ledger, max_in_flight=4) as kling,
        kling.batch(jobs(4), name="b") as batch,
    ):
        async with asyncio.timeout(PATIENCE_S):
            while batch.statistics().running < 4:  # noqa: ASYNC110 -- nothing announces it
                await asyncio.sleep(0.01)
    assert {row.state for row in read_ledger(ledger)} == {State.SUBMITTED}
    async with open_session(service, watch=FAST, ledger=ledger, max_in_flight=4) as kling:
        assert len(kling.running) == 4
        assert kling._engine.slots.taken == 4
        service.seconds = 0.1
        service.accepted = {id_: (since, 0.1, body) for id_, (since, _, body) in service.accepted.items()}
        async with kling.batch(jobs(6), name="b") as batch:
            outcomes = [outcome async for outcome in batch]
    assert all(outcome.ok for outcome in outcomes)
    assert len(service.paid) == 6
    assert service.peak <= 4


async def test_key_with_changed_content_is_refused(tmp_path: Path) -> None:
    service = Service(seconds=0.2, latency=0.001)
    ledger = tmp_path / "run.db"
    async with open_session(service, watch=FAST, ledger=ledger) as kling:
        first = await kling.generate(prompt="x", image=IMAGE, key="mine")
        again = await kling.generate(prompt="x", image=IMAGE, key="mine")
        assert again.id == first.id
        with pytest.raises(KeyReusedError, match="other content"):
            await kling.generate(prompt="y", image=IMAGE, key="mine")
    assert len(service.paid) == 1


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_second_session_on_open_ledger_is_refused(tmp_path: Path, kind: str) -> None:
    service = Service(seconds=0.2, latency=0.05)
    ledger = MemoryLedger() if kind == "memory" else SQLiteLedger(tmp_path / "run.db")
    async with open_session(service, watch=FAST, ledger=ledger) as kling:
        first = asyncio.create_task(kling.generate(prompt="x", image=IMAGE, key="x"))
        await asyncio.sleep(0.02)
        with pytest.raises(LedgerError, match="open in another session"):
            async with open_session(service, ledger=ledger):
                pass
        async with asyncio.timeout(PATIENCE_S):
            assert (await first).output
            assert (await kling.generate(prompt="y", image=IMAGE)).output
    async with open_session(service, watch=FAST, ledger=ledger) as kling:
        assert (await kling.generate(prompt="z", image=IMAGE)).output
    assert len(service.paid) == 3
