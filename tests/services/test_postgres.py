"""The shared ledger on a real server: the contract, ownership, leases, slots."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from psycopg.conninfo import conninfo_to_dict

from kling_async import ConfigurationError, Job, KeyReusedError, KlingSession, LedgerError, Level
from kling_async._core.budget import Cap
from kling_async.emulator import Emulator
from kling_async.ledger import Content, Entry, Row, SharedLedger, State, open_ledger, read_ledger, read_steps
from kling_async.ledger._postgres import reader, statements
from kling_async.ledger._postgres.connection import Address
from kling_async.ledger.postgres import PostgresLedger
from kling_async.testing import check_ledger
from support import postgres
from support.edits import check_edits
from support.leaks import error_of, leaks, raised_by, stopped_at
from support.patience import PATIENCE_S
from support.workers import peak

pytestmark = pytest.mark.anyio

LEVEL = Level("test", 1_000_000, 3)
LEASE = 600.0
"""Lease in seconds, longer than any test; `postgres.end_leases` ends leases on purpose."""
RARELY = 3600.0
"""Seconds between two polls; anything sooner came by a notification."""


def step(key: str, state: State, **fields: object) -> Entry:
    return Entry(batch="b", key=key, state=state, at=1.0, **fields)  # type: ignore[arg-type]  # each by its test


async def claim(ledger: PostgresLedger, key: str) -> Row:
    return await ledger.claim("b", key, content=Content("d"), model="m", at=0.0)


@asynccontextmanager
async def opened(url: str, *, poll: float = 0.2) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(url, lease=LEASE, poll=poll, patience=PATIENCE_S)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def died(ledger: PostgresLedger) -> None:
    """Drop a ledger as a killed process does, without handing over its rows."""
    ledger._queue.is_open = False
    for task in ledger._lease._tasks:
        task.cancel()
    await asyncio.gather(*ledger._lease._tasks, return_exceptions=True)
    if ledger._queue._flushing is not None:
        await ledger._queue._flushing
    await ledger._queue._database.aclose()


async def test_postgres_ledger_satisfies_contract(database: str) -> None:
    await check_ledger(lambda: PostgresLedger(database))
    made = open_ledger(database)
    assert isinstance(made, PostgresLedger)
    assert isinstance(made, SharedLedger)


async def test_ledger_can_be_edited(database: str) -> None:
    await check_edits(lambda: PostgresLedger(database), database)


async def test_job_whose_video_is_being_saved_gets_no_other_content(database: str) -> None:
    """Another process would record the old video in the new row."""
    async with opened(database) as ledger:
        await claim(ledger, "k")
        await ledger.record(step("k", State.INTENT, attempt=1))
        await ledger.record(step("k", State.SUBMITTED, prediction_id="p"))
        await ledger.record(step("k", State.COMPLETED))
        ledger.unclaim("b", "k")
        with pytest.raises(LedgerError, match="not saved yet, so it is not made again now; nothing was sent"):
            await ledger.renew("b", "k", content=Content("new"), model="m", at=9.0)


async def test_values_that_no_column_holds_are_replaced(database: str) -> None:
    async with opened(database) as ledger:
        await claim(ledger, "k")
        await ledger.record(step("k", State.INTENT, attempt=1))
        await ledger.record(step("k", State.SUBMITTED, prediction_id="p\0"))
        row = await ledger.record(step("k", State.FAILED, error="no\ud800", code=10**30))
        assert (row.prediction_id, row.error, row.code) == ("p\N{REPLACEMENT CHARACTER}", "no?", None)
        with pytest.raises(LedgerError, match="no text that the ledger can hold"):
            await claim(ledger, "k\0")


async def test_worker_waits_for_row_leased_by_another(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        assert (await claim(one, "k")).state is State.PENDING
        waited: list[Row] = []

        async def wait() -> None:
            waited.append(await claim(other, "k"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.1)
            with pytest.raises(LedgerError, match="has ended"):
                await other.record(step("k", State.INTENT, attempt=1))
            await one.record(step("k", State.INTENT, attempt=1))
            assert waited == []
            await one.record(step("k", State.SUBMITTED, prediction_id="p"))
        assert waited[0].prediction_id == "p"
        with pytest.raises(LedgerError, match="claimed by another worker"):
            await other.record(step("k", State.COMPLETED))
        one.note(step("k", State.COMPLETED))
        with anyio.fail_after(PATIENCE_S):
            assert (await other.outcome("b", "k")).state is State.COMPLETED


async def test_released_row_is_claimed_at_once(database: str) -> None:
    async with opened(database, poll=RARELY) as one, opened(database, poll=RARELY) as other:
        await claim(one, "k")
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim, other, "k")
                await anyio.sleep(0.1)
                one.unclaim("b", "k")
        await other.record(step("k", State.INTENT, attempt=1))


async def test_close_hands_over_rows_and_death_waits_for_lease(database: str) -> None:
    async with opened(database) as other:
        one = PostgresLedger(database, lease=LEASE)
        await one.open()
        for key in ("pending", "intent", "submitted"):
            await claim(one, key)
        await one.record(step("intent", State.INTENT, attempt=1))
        await one.record(step("submitted", State.INTENT, attempt=1))
        await one.record(step("submitted", State.SUBMITTED, prediction_id="p"))
        await died(one)
        assert await other.claim_unowned([State.SUBMITTED]) == []
        postgres.end_leases(database, one._lease.worker_id)
        await other._lease.renew()
        assert [row.key for row in await other.claim_unowned([State.SUBMITTED])] == ["submitted"]
        (doubtful,) = await other.rows([State.UNCERTAIN])
        assert (doubtful.key, doubtful.error) == ("intent", "its worker ended while it was being submitted")
        assert (await claim(other, "pending")).state is State.PENDING
        async with opened(database) as third:
            await other.aclose()
            assert [row.key for row in await third.claim_unowned([State.SUBMITTED])] == ["submitted"]


@pytest.mark.promise(1)
async def test_jobs_that_another_account_has_sent_are_not_claimed(database: str) -> None:
    async with opened(database) as ledger:
        for key, sender in (("mine", "me"), ("theirs", "them"), ("unrecorded", None)):
            await claim(ledger, key)
            await ledger.record(step(key, State.INTENT, attempt=1, sender=sender))
            await ledger.record(step(key, State.SUBMITTED, prediction_id=key))
            await claim(ledger, f"{key} in doubt")
            await ledger.record(step(f"{key} in doubt", State.INTENT, attempt=1, sender=sender))
            await ledger.record(step(f"{key} in doubt", State.UNCERTAIN))
    async with opened(database) as other:
        taken = [row.key for row, _ in await other.take(9, LEVEL, senders=["me"])]
        assert sorted(taken) == ["mine", "mine in doubt", "unrecorded", "unrecorded in doubt"]
        assert await other.claim_unowned([State.SUBMITTED], ["me"]) == []
        assert [row.key for row in await other.claim_unowned([State.SUBMITTED], ["them"])] == ["theirs"]


async def test_fenced_worker_may_write_only_its_prediction_id(database: str) -> None:
    async with opened(database) as other:
        one = PostgresLedger(database, lease=LEASE)
        await one.open()
        for key in ("claimed", "sent"):
            await claim(one, key)
        await one.record(step("sent", State.INTENT, attempt=1))
        one._lease._tasks[0].cancel()
        one._lease._ends_at -= LEASE
        postgres.end_leases(database, one._lease.worker_id)
        with pytest.raises(LedgerError, match="has ended"):
            one.fence("b", "sent")
        await other._lease.renew()
        await claim(other, "claimed")
        await claim(other, "sent")
        with pytest.raises(LedgerError, match="has ended"):
            await one.record(step("claimed", State.INTENT, attempt=1))
        row = await one.record(step("sent", State.SUBMITTED, prediction_id="p"))
        assert row.prediction_id == "p"
        # A step of the other worker, based on older data, does not undo it.
        with pytest.raises(LedgerError, match="claimed by another worker"):
            await other.record(step("sent", State.PENDING))
        assert (await other.rows([State.SUBMITTED]))[0].prediction_id == "p"
        await one.aclose()


async def test_locks_of_disconnected_worker_are_released(database: str) -> None:
    async with opened(database) as other, anyio.create_task_group() as tasks:
        await other.enqueue("b", [("k", Content("d"), "m")], at=0.0)
        wire = postgres.Cut(database)
        await tasks.start(wire.serve)
        # A server silent for 2 s counts as gone, and an idle transaction is ended.
        one = PostgresLedger(wire.url, lease=4.0, patience=0.5)
        await one.open()
        locked = anyio.Event()

        async def hang(connection: Any) -> None:
            await connection.execute(statements.LOCK_ACCOUNT.encode(), [one.account])
            wire.cut()
            locked.set()
            await connection.execute(b"SELECT 1")

        async def ask() -> None:
            with pytest.raises(LedgerError, match="cannot be reached"):
                await one._queue.do(hang)

        tasks.start_soon(ask)
        await locked.wait()
        with anyio.fail_after(PATIENCE_S):
            assert [row.key for row, _ in await other.take(1, LEVEL)] == ["k"]
        wire.mend()
        await one.aclose()
        tasks.cancel_scope.cancel()


async def test_rows_are_semaphore_for_all_workers(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        await one.enqueue("b", [(f"k{number}", Content("d"), "m") for number in range(10)], at=0.0)
        taken = await one.take(2, LEVEL)
        assert [row.key for row, _ in taken] == ["k0", "k1"]
        assert taken[0][1] == Content("d")
        assert [row.key for row, _ in await other.take(5, LEVEL)] == ["k2"]
        assert await one.take(5, LEVEL) == []
        for key in ("k0", "k1"):
            await one.record(step(key, State.INTENT, attempt=1))
            await one.record(step(key, State.SUBMITTED, prediction_id=key))
        assert await other.take(5, LEVEL) == []
        one.note(step("k0", State.COMPLETED))
        one.give_back("b", "k0")
        # A requeued row takes no slot; one in doubt does.
        other.give_back("b", "k2", error="no image", again=60.0)
        await other.rows([State.PENDING])
        assert len(await one.take(5, LEVEL)) == 2
        await one.record(step("k1", State.COMPLETED))


async def test_doubt_takes_slot_while_prediction_may_run(database: str) -> None:
    ledger = PostgresLedger(database, runs=3600.0)
    await ledger.open()
    await ledger.enqueue("b", [(f"k{number}", Content("d"), "m") for number in range(9)], at=0.0)
    for row, _ in await ledger.take(3, LEVEL):
        await ledger.record(step(row.key, State.INTENT, attempt=1))
        await ledger.record(step(row.key, State.UNCERTAIN))
        ledger.give_back("b", row.key, again=60.0)
    assert await ledger.take(9, LEVEL) == []
    postgres.rows(database, "UPDATE kling_job SET started_at = started_at - interval '1 hour'")
    assert len(await ledger.take(9, LEVEL)) == 3
    await ledger.aclose()


async def test_start_rate_is_shared_by_all_workers(database: str) -> None:
    level = Level("test", 4, 1_000, 3600.0)
    async with opened(database) as one, opened(database) as other:
        await one.enqueue("b", [(f"k{number}", Content("d"), "m") for number in range(20)], at=0.0)
        first = [*await one.take(3, level), *await other.take(3, level)]
        assert len(first) == 4
        for row, _ in first[:3]:
            await one.record(step(row.key, State.INTENT, attempt=1))
        assert await one.take(3, level) == []
        postgres.rows(database, "UPDATE kling_job SET started_at = started_at - interval '1 hour'")
        # Three starts have left the window; the one granted but not started still counts.
        assert len(await one.take(20, level)) == 3


async def test_concurrent_claims_are_disjoint_and_within_cap(database: str) -> None:
    async with opened(database) as one, opened(database) as other, opened(database) as third:
        await one.enqueue("b", [(f"k{number}", Content("d"), "m") for number in range(600)], at=0.0)
        level = Level("test", 1_000_000, 50)
        most = 0
        done: list[str] = []

        async def work(ledger: PostgresLedger) -> None:
            nonlocal most
            while len(done) < 600:
                taken = await ledger.take(7, level)
                ((running,),) = await ledger._queue.read("SELECT count(*) FROM kling_job WHERE slot", [])
                most = max(most, running)
                for row, _ in taken:
                    await ledger.record(step(row.key, State.REJECTED))
                    ledger.give_back("b", row.key)
                    done.append(row.key)

        async with anyio.create_task_group() as tasks:
            for ledger in (one, other, third):
                for _ in range(5):
                    tasks.start_soon(work, ledger)
        assert len(done) == len(set(done)) == 600
        assert 7 < most <= 50


async def test_session_waits_for_slot_of_other_process(database: str) -> None:
    async with opened(database, poll=RARELY) as one, opened(database, poll=RARELY) as other:
        for key in ("a", "b", "c"):
            await claim(one, key)
            await one.admit("b", key, LEVEL)
        await claim(other, "d")
        with anyio.move_on_after(0.3) as waited:
            await other.admit("b", "d", LEVEL)
        assert waited.cancelled_caught
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.admit, "b", "d", LEVEL)
                one.unclaim("b", "a")


async def test_enqueue_is_atomic_and_idempotent(database: str) -> None:
    async with opened(database) as ledger:
        jobs = [(f"k{number}", Content("d"), "m") for number in range(3)]
        assert await ledger.enqueue("b", jobs, at=0.0) == ["k0", "k1", "k2"]
        assert await ledger.enqueue("b", [*jobs, ("k9", Content("d"), "m")], at=0.0) == ["k9"]
        with pytest.raises(KeyReusedError, match="k1"):
            await ledger.enqueue("b", [("k10", Content("d"), "m"), ("k1", Content("e"), "m")], at=0.0)
        assert await ledger.find("b", "k10") is None
        assert [row.state for row in await ledger.rows(State)] == [State.PENDING] * 4
        async with opened(database):
            workers = reader.workers(Address(database), "default")
        assert [(worker.jobs, worker.lease > 20) for worker in workers] == [(0, True)] * 2


async def test_rejected_step_fails_alone(database: str) -> None:
    async with opened(database) as ledger:
        for key in ("a", "b", "c"):
            await claim(ledger, key)
            await ledger.record(step(key, State.INTENT, attempt=1))
        ends = await asyncio.gather(
            *(
                ledger.record(step(key, State.SUBMITTED, prediction_id=id_))
                for key, id_ in [("a", "p"), ("b", "p"), ("c", "q")]
            ),
            return_exceptions=True,
        )
        assert [isinstance(end, Row) for end in ends] == [True, False, True]
        assert "refused a step" in str(ends[1])


async def test_accounts_are_isolated(database: str) -> None:
    async with opened(database) as one:
        await claim(one, "k")
        other = PostgresLedger(database, account="other")
        await other.open()
        assert await other.rows(State) == []
        assert (await other.claim("b", "k", content=Content("e"), model="m", at=0.0)).state is State.PENDING
        await other.aclose()


async def test_later_tables_are_refused(database: str) -> None:
    async with opened(database):
        pass
    async with opened(database) as again:
        await again._queue.read("UPDATE kling_version SET version = 99", [])
    with pytest.raises(LedgerError, match="later version"):
        await PostgresLedger(database).open()


def test_parameters_of_the_url_take_precedence() -> None:
    address = Address("postgresql://me@h/db?connect_timeout=7&keepalives_count=9")
    parameters = conninfo_to_dict(address.parameters(name="reader", answer_within=1))
    assert parameters == {
        "user": "me",
        "host": "h",
        "dbname": "db",
        "application_name": "reader",
        "connect_timeout": "7",
        "tcp_user_timeout": "1000",
        "keepalives_idle": "1",
        "keepalives_interval": "1",
        "keepalives_count": "9",
    }


async def test_password_is_never_shown(database: str, caplog: pytest.LogCaptureFixture) -> None:
    quoted = "geh%3Ae1m%40x%2Fy"
    said = []
    ledger = PostgresLedger(f"postgresql://me:{quoted}@127.0.0.1:1/db?connect_timeout=1", patience=0.2)
    said += [repr(ledger), repr(ledger.address), str(ledger.address)]
    # Even if a server or driver quotes it.
    said.append(ledger.address.redact(f"trouble with geh:e1m@x/y, given as postgresql://me:{quoted}@127.0.0.1:1/db"))
    with pytest.raises(LedgerError, match="cannot be reached") as caught:
        await ledger.open()
    said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
    for broken in (
        f"postgresql://me:{quoted}%zz@h/db",
        f"postgresql://me:{quoted}@h/db?no=1",
    ):
        with pytest.raises(ConfigurationError, match="cannot be read") as refused:
            open_ledger(broken)
        said += [str(refused.value), repr(refused.value.__cause__)]
    said += [record.getMessage() for record in caplog.records]
    assert "postgresql://me@127.0.0.1:1/db" in said[0]
    assert not [text for text in said if "e1m" in text]


async def test_ledger_detects_fork(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(database) as ledger:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(LedgerError, match="fork"):
            await ledger.rows([State.PENDING])
        monkeypatch.undo()


async def test_two_sessions_run_batches_within_one_account(database: str, tmp_path: Path) -> None:
    # Half a second each, long enough for all slots to be taken on a slow machine.
    async with Emulator(level="gold", profile="tiny", timing=10.0, speed=20, downloads=False) as emulator:

        def jobs(name: str) -> list[tuple[str, Job]]:
            return [
                (f"job-{number}", Job(prompt=f"{name} {number}", image="https://p.example/face.png"))
                for number in range(12)
            ]

        async def run(name: str) -> list[list[str]]:
            async with KlingSession(
                emulator.api_key,
                base_url=emulator.base_url,
                clock=emulator.clock,
                ledger=database,
                level="gold",
                max_in_flight=4,
            ) as kling:

                async def outcomes(batch_name: str) -> list[str]:
                    folder = tmp_path / name / batch_name
                    async with kling.batch(jobs(batch_name), name=batch_name, save_to=folder) as batch:
                        return sorted([outcome.key async for outcome in batch if outcome.ok])

                return list(await asyncio.gather(outcomes("shared"), outcomes(name)))

        done = await asyncio.gather(run("one"), run("two"))
        everything = sorted(key for key, _ in jobs(""))
        assert [keys for batches in done for keys in batches] == [everything] * 4
        assert len(emulator.charges()) == 3 * 12
        assert peak(emulator.predictions()) == 4
    assert postgres.rows(database, "SELECT 1 FROM kling_job WHERE worker_id IS NOT NULL OR slot") == []


async def test_batch_resumes_from_database(database: str) -> None:
    jobs = {f"job-{number}": Job(prompt=f"{number}", image="https://p.example/face.png") for number in range(6)}
    async with Emulator(level="gold", profile="tiny", timing=1.0, speed=20, downloads=False) as emulator:

        def session() -> KlingSession:
            return KlingSession(
                emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level="gold", ledger=database
            )

        async with session() as kling, kling.batch(jobs, name="spring") as batch:
            assert [outcome.ok async for outcome in batch] == [True] * 6
        async with session() as kling, kling.resume(name="spring") as batch:
            assert sorted([outcome.key async for outcome in batch if outcome.ok]) == sorted(jobs)
        assert len(emulator.charges()) == 6


async def test_rows_of_lost_claim_response_are_released(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        await one.enqueue("b", [("k", Content("d"), "m")], at=0.0)
        # Committed, but the connection broke before the response.
        claimed = "UPDATE kling_job SET worker_id = %s, state = 'claimed', slot = true"
        postgres.rows(database, claimed, one._lease.worker_id)
        assert await other.take(1, LEVEL) == []
        await one._lease.renew()
        assert [row.key for row, _ in await other.take(1, LEVEL)] == ["k"]


async def test_session_near_lease_end_sends_nothing(database: str) -> None:
    async with Emulator(level="gold", profile="tiny", timing=0.1, speed=20, downloads=False) as emulator:
        ledger = PostgresLedger(database, lease=LEASE)
        async with KlingSession(
            emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, ledger=ledger, level="gold"
        ) as kling:
            ledger._lease._ends_at -= 0.95 * LEASE
            with pytest.raises(LedgerError, match="lease on job late has ended") as caught:
                await kling.submit(prompt="a", image="https://p.example/a.png", key="late")
            assert not emulator.charges()
            assert caught.value.advice
            found = await ledger.find("", "late")
            assert found is not None
            assert found[0].state is State.PENDING
            await ledger._lease.renew()
            await kling.generate(prompt="a", image="https://p.example/a.png", key="late")
            assert len(emulator.charges()) == 1


async def test_unsettled_doubt_has_no_owner(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        await claim(one, "k")
        await one.record(step("k", State.INTENT, attempt=1))
        await one.record(step("k", State.UNCERTAIN))
        one.unclaim("b", "k")
        await one.rows(State)
        # Another session read the whole history for its own job and found no evidence for this one.
        await other.record(step("k", State.UNCERTAIN, error="held"))
        assert [row.error for row, _ in await one.take(1, LEVEL)] == ["held"]


async def test_late_prediction_id_is_not_overwritten(database: str) -> None:
    async with opened(database) as other:
        one = PostgresLedger(database, lease=LEASE)
        await one.open()
        await claim(one, "k")
        await one.record(step("k", State.INTENT, attempt=1))
        one._lease._tasks[0].cancel()
        postgres.end_leases(database, one._lease.worker_id)
        await other._lease.renew()
        await claim(other, "k")
        await one.record(step("k", State.SUBMITTED, prediction_id="told"))
        with pytest.raises(LedgerError, match="claimed by another worker"):
            await other.record(step("k", State.SUBMITTED, prediction_id="counted"))
        assert [row.prediction_id for row in await other.rows([State.SUBMITTED])] == ["told"]
        await one.aclose()


async def test_rows_unrecorded_during_outage_are_resumed(database: str) -> None:
    async with opened(database) as other, anyio.create_task_group() as tasks:
        wire = postgres.Cut(database)
        await tasks.start(wire.serve)
        one = PostgresLedger(wire.url, lease=LEASE, patience=0.1)
        await one.open()
        for key in ("sent", "unsent"):
            await claim(one, key)
        await one.record(step("sent", State.INTENT, attempt=1))
        await one.record(step("sent", State.SUBMITTED, prediction_id="p"))
        one._queue._database._within = 0.5
        wire.cut()
        one.note(step("sent", State.COMPLETED))
        one.unclaim("b", "unsent")
        with pytest.raises(LedgerError, match="cannot be reached"):
            await one.rows(State)
        wire.mend()
        await one._lease.renew()
        # Otherwise the rows would stay owned but unattended for the life of the process.
        with anyio.fail_after(PATIENCE_S):
            assert (await claim(other, "unsent")).state is State.PENDING
        assert [row.key for row in await other.claim_unowned([State.SUBMITTED])] == ["sent"]
        await one.aclose()
        tasks.cancel_scope.cancel()


async def test_released_intent_without_recorded_end_is_in_doubt(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        await claim(one, "k")
        await one.record(step("k", State.INTENT, attempt=1))
        one.unclaim("b", "k")
        await one.rows(State)
        ((row, _),) = await other.take(1, LEVEL)
        assert row.state is State.UNCERTAIN
        # A worker that has the response may still record it.
        assert (await one.record(step("k", State.SUBMITTED, prediction_id="p"))).prediction_id == "p"


@pytest.mark.parametrize("before", [State.PENDING, State.REJECTED, State.SKIPPED, State.FAILED])
async def test_reserved_price_counts_for_every_worker_from_any_state(database: str, before: State) -> None:
    cap = Cap(Decimal(1), ("b",))
    async with opened(database, poll=RARELY) as one, opened(database, poll=RARELY) as other:
        for ledger, key in ((one, "a"), (other, "b")):
            await claim(ledger, key)
            if before is State.FAILED:
                await ledger.record(step(key, State.INTENT, attempt=1, cost=Decimal(0)))
                await ledger.record(step(key, State.SUBMITTED, prediction_id=key))
            if before is not State.PENDING:
                await ledger.record(step(key, before))
                await claim(ledger, key)
        await one.admit("b", "a", LEVEL, Decimal("0.8"), [cap])
        with anyio.move_on_after(0.3) as waited:
            await other.admit("b", "b", LEVEL, Decimal("0.8"), [cap])
        assert waited.cancelled_caught, "both were given the same dollar"


async def test_claim_during_close_is_refused(database: str) -> None:
    async with opened(database) as other:
        one = PostgresLedger(database)
        await one.open()
        await claim(one, "before")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.aclose)
            await anyio.lowlevel.checkpoint()
            with pytest.raises(LedgerError, match="not open"):
                await claim(one, "after")
        one.unclaim("b", "before")
        assert await other._queue.read("SELECT 1 FROM kling_job WHERE worker_id IS NOT NULL", []) == []
        assert len(reader.workers(Address(database), "default")) == 1


async def test_open_ledger_cannot_be_reopened(database: str) -> None:
    async with opened(database) as one:
        await claim(one, "k")
        with pytest.raises(LedgerError, match="open already"):
            await one.open()
        await one.record(step("k", State.INTENT, attempt=1))


async def test_unfollowed_row_releases_slot_eventually(database: str) -> None:
    ledger = PostgresLedger(database, runs=3600.0)
    await ledger.open()
    for key in ("a", "b", "c"):
        await claim(ledger, key)
        await ledger.record(step(key, State.INTENT, attempt=1))
        await ledger.record(step(key, State.SUBMITTED, prediction_id=key))
    # Their worker is gone, and no other worker runs to claim them.
    await ledger.aclose()
    async with opened(database) as other:
        other._queue._runs = 3600.0
        await claim(other, "d")
        with anyio.move_on_after(0.3) as waited:
            await other.admit("b", "d", LEVEL)
        assert waited.cancelled_caught
        postgres.rows(database, "UPDATE kling_job SET started_at = started_at - interval '1 hour'")
        with anyio.fail_after(PATIENCE_S):
            await other.admit("b", "d", LEVEL)


async def test_lease_expires_by_database_clock(database: str) -> None:
    async with opened(database) as one:
        await claim(one, "k")
        # As on a machine that slept, whose own clock stood still.
        postgres.end_leases(database, one._lease.worker_id)
        one.fence("b", "k")
        with pytest.raises(LedgerError, match="has ended"):
            await one.record(step("k", State.INTENT, attempt=1))
        await one._lease.renew()
        await one.record(step("k", State.INTENT, attempt=1))


PASSWORD = "password-of-the-database"
UNREACHABLE = f"postgresql://me:{PASSWORD}@127.0.0.1:1/db?connect_timeout=2"


@pytest.mark.promise(8)
async def test_error_of_the_driver_does_not_show_the_password() -> None:
    errors = [await error_of(PostgresLedger(UNREACHABLE, patience=0.01).open())]
    errors += [raised_by(partial(list, read(UNREACHABLE))) for read in (read_ledger, read_steps)]
    for error in errors:
        assert isinstance(error, LedgerError)
        assert not leaks(error, [PASSWORD])


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.promise(8)
async def test_cancelled_connecting_does_not_show_the_password(number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ledger = PostgresLedger(UNREACHABLE.replace(":1/", f":{silent.getsockname()[1]}/"))
        error = await error_of(stopped_at(number, ledger.open(), None))
    assert isinstance(error, asyncio.CancelledError)
    assert not leaks(error, [PASSWORD])
