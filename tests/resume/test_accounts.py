"""Several accounts over one ledger: only the account that sent a job settles, follows, or sends it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from kling_async import (
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    Level,
    OtherAccountError,
    PredictionTimeoutError,
    Spent,
    SubmissionUncertainError,
)
from kling_async._core.http import Effect
from kling_async._core.secret import Secret
from kling_async._core.sender import new_sender
from kling_async._session.session import engine_of
from kling_async.emulator import ScaledClock
from kling_async.ledger import Ledger, MemoryLedger, Row, SQLiteLedger, State
from kling_async.testing import LoopClock, ScriptedTransport
from support.service import IMAGE, Service

pytestmark = [pytest.mark.anyio, pytest.mark.promise(1)]

LEVEL = Level("test", 1_000_000, 1_000)
JOB = Job(prompt="a", image=IMAGE)
FIRST: dict[str, Any] = {"api_key": "wsk_first_key"}
OTHERS: dict[str, dict[str, Any]] = {
    "key": {"api_key": "wsk_other_key"},
    "base url": {"api_key": "wsk_first_key", "base_url": "https://proxy.example"},
    "provider": {"api_key": "wsk_first_key", "provider": "gptproto", "base_url": "https://api.wavespeed.ai"},
}


def service_of(**options: Any) -> Service:
    """Return a service whose time passes a hundred times as fast."""
    return Service(clock=cast("LoopClock", ScaledClock(100)), latency=0.001, **options)


@pytest.fixture(params=["memory", "file"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ledger]:
    """Return a factory of the same ledger."""
    memory = MemoryLedger()
    return lambda: memory if request.param == "memory" else SQLiteLedger(tmp_path / "run.db")


def session(service: Service, ledger: Ledger, account: dict[str, Any], **options: Any) -> KlingSession:
    options.setdefault("grace", 1)
    return KlingSession(
        transport=ScriptedTransport(service), level=LEVEL, clock=service.clock, ledger=ledger, **account, **options
    )


def lose_first_reply(service: Service) -> None:
    """Let the service accept the first paid request and drop the reply."""

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and not service.paid:
            service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script


async def leave_in_doubt(ledger: Ledger, **options: Any) -> Service:
    """Leave a job in doubt that the first account has paid for, and return that account's service."""
    service = service_of(**options)
    lose_first_reply(service)
    async with session(service, ledger, FIRST, on_uncertain="hold") as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.submit(JOB, key="k")
    return service


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("on_uncertain", ["reconcile", "resubmit"])
async def test_doubt_of_another_account_is_held(ledger: Callable[[], Ledger], other: str, on_uncertain: Any) -> None:
    """The empty history of another account says nothing."""
    await leave_in_doubt(ledger())
    elsewhere = service_of()
    async with session(elsewhere, ledger(), OTHERS[other], on_uncertain=on_uncertain, sole_user=True) as kling:
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.submit(JOB, key="k")
        # Also together with a doubt of its own, whose settlement covers all doubts.
        lose_first_reply(elsewhere)
        if other != "provider":
            assert (await kling.submit(prompt="b", image=IMAGE)).id == "p00000"
        rows = await engine_of(kling).ledger.rows([State.UNCERTAIN])
        assert "k" in {row.key for row in rows}
    assert "key " in caught.value.message
    assert "wavespeed at https://api.wavespeed.ai" in caught.value.message
    assert "wsk_first" not in str(caught.value)
    assert "same-account" in (caught.value.advice or "")
    assert [body["prompt"] for body in elsewhere.paid] in (["b"], [])


async def test_account_that_sent_the_job_settles_it(ledger: Callable[[], Ledger]) -> None:
    service = await leave_in_doubt(ledger(), echo=lambda inputs: inputs)
    async with session(service_of(), ledger(), OTHERS["key"]) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.submit(JOB, key="k")
    async with session(service, ledger(), FIRST) as kling:
        assert (await kling.submit(JOB, key="k")).id == "p00000"
    assert len(service.paid) == 1


async def test_rotated_key_is_known_by_its_history(tmp_path: Path) -> None:
    """The history of the new key shows a prediction of the old one; from then on both are one account."""
    service = service_of(seconds=30)
    where = tmp_path / "run.db"
    async with session(service, SQLiteLedger(where), FIRST, on_uncertain="hold") as kling:
        await kling.generate(prompt="known", image=IMAGE, key="known")

        def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
            if request.effect is Effect.PAID and body["prompt"] == "a" and len(service.paid) == 1:
                raise ConnectionLostError("dropped")
            return None

        service.script = script
        with pytest.raises(SubmissionUncertainError):
            await kling.submit(JOB, key="k")
    service.script = None
    async with session(service, SQLiteLedger(where), OTHERS["key"]) as kling:
        assert (await kling.submit(JOB, key="k")).id == "p00001"
    # A third session reads it in the ledger: its history has been deleted.
    service.accepted.clear()
    async with session(service, SQLiteLedger(where), OTHERS["key"]) as kling:
        senders = engine_of(kling).senders
        assert len(senders.ids) == 2
    assert len(service.paid) == 2


@pytest.mark.parametrize("other", OTHERS)
async def test_prediction_that_runs_in_another_account_is_neither_polled_nor_sent_again(
    tmp_path: Path, other: str
) -> None:
    service, where = service_of(seconds=1000), tmp_path / "run.db"
    async with session(service, SQLiteLedger(where), FIRST) as kling:
        await kling.submit(JOB, key="k")
    elsewhere = service_of()
    async with session(elsewhere, SQLiteLedger(where), OTHERS[other]) as kling:
        assert kling.statistics().running == 0
        with pytest.raises(OtherAccountError, match="p00000") as caught:
            await kling.generate(JOB, key="k")
    assert (caught.value.spent, caught.value.prediction_id) == (Spent.YES, "p00000")
    assert not elsewhere.paid
    assert not elsewhere.reads
    since, _, inputs = service.accepted["p00000"]
    service.accepted["p00000"] = (since, 0.0, inputs)
    async with session(service, SQLiteLedger(where), FIRST) as kling:
        assert (await kling.generate(JOB, key="k")).id == "p00000"
    assert len(service.paid) == 1


async def test_finished_job_of_another_account_is_handed_out(tmp_path: Path) -> None:
    service, where = service_of(seconds=10), tmp_path / "run.db"
    async with session(service, SQLiteLedger(where), FIRST) as kling:
        await kling.generate(JOB, key="k")
    elsewhere = service_of()
    async with session(elsewhere, SQLiteLedger(where), OTHERS["key"]) as kling:
        assert (await kling.generate(JOB, key="k")).id == "p00000"
    assert not elsewhere.paid


async def test_sender_is_recorded_without_the_key(tmp_path: Path) -> None:
    where = tmp_path / "run.db"
    async with session(service_of(), SQLiteLedger(where), FIRST) as kling:
        await kling.submit(JOB, key="k")
        (row,) = await engine_of(kling).ledger.rows([State.SUBMITTED])
        own = engine_of(kling).senders.own
        assert row.sender == own.id
        assert attrs.astuple(own)[1:3] == ("wavespeed", "https://api.wavespeed.ai")
    assert b"wsk_first" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


async def test_senders_of_sessions_that_opened_the_ledger_at_once_are_one_account() -> None:
    ledger = MemoryLedger()
    async with session(service_of(), ledger, FIRST) as kling:
        senders = engine_of(kling).senders
        row = Row(batch="", key="k", digest="d", model="m", state=State.SUBMITTED, updated_at=0.0)
        key = Secret(FIRST["api_key"])
        for given, of_account in ((key, True), (Secret("wsk_other_key"), False)):
            other = new_sender("wavespeed", "https://api.wavespeed.ai", given)
            await ledger.put_sender(other)
            row = attrs.evolve(row, sender=other.id)
            assert senders.exclude(row)
            await senders.learn(row)
            assert senders.exclude(row) is not of_account


async def test_job_that_runs_in_another_account_is_not_reused(tmp_path: Path) -> None:
    service, where = service_of(seconds=1000), tmp_path / "run.db"
    async with (
        session(service, SQLiteLedger(where), FIRST) as kling,
        kling.batch({"k": JOB}, name="a", deadline=5) as batch,
    ):
        assert [type(outcome.error) async for outcome in batch] == [PredictionTimeoutError]
    elsewhere = service_of()
    async with session(elsewhere, SQLiteLedger(where), OTHERS["key"]) as kling:
        async with kling.batch({"k": JOB}, name="b", seen="reuse") as batch:
            (outcome,) = [outcome async for outcome in batch]
        assert isinstance(outcome.error, OtherAccountError)
        assert not elsewhere.paid
        assert not elsewhere.reads
        (row,) = await engine_of(kling).ledger.rows([State.SUBMITTED])
        assert (row.batch, row.prediction_id) == ("a", "p00000")
