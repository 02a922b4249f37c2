"""The shared ledger on a real server: the contract, ownership, leases, slots."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kling_async import ConfigurationError, Job, KeyReusedError, KlingSession, LedgerError, Level
from kling_async.emulator import Emulator
from kling_async.ledger import Content, Entry, Row, SharedLedger, State, open_ledger
from kling_async.ledger._postgres import reader, statements
from kling_async.ledger.postgres import PostgresLedger
from kling_async.testing import check_ledger
from support import postgres
from support.patience import PATIENCE_S
from support.workers import peak

pytestmark = pytest.mark.anyio

LEVEL = Level("test", 1_000_000, 3)
LEASE = 600.0
"""Seconds; none ends by itself while a test runs. Those that are to end are ended by `postgres.end_leases`."""
RARELY = 3600.0
"""Seconds between two looks for news: what comes sooner was brought by a notification."""


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
    """Let go of everything as a killed process does: nothing is handed over."""
    ledger._queue.is_open = False
    for task in ledger._lease._tasks:
        task.cancel()
    await asyncio.gather(*ledger._lease._tasks, return_exceptions=True)
    if ledger._queue._flushing is not None:
        await ledger._queue._flushing
    await ledger._queue._database.aclose()


async def test_the_contract(database: str) -> None:
    await check_ledger(lambda: PostgresLedger(database))
    made = open_ledger(database)
    assert isinstance(made, PostgresLedger)
    assert isinstance(made, SharedLedger)


async def test_what_one_has_in_hand_another_waits_for(database: str) -> None:
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
        with pytest.raises(LedgerError, match="another worker's hand"):
            await other.record(step("k", State.COMPLETED))
        one.note(step("k", State.COMPLETED))
        with anyio.fail_after(PATIENCE_S):
            assert (await other.outcome("b", "k")).state is State.COMPLETED


async def test_what_one_gives_up_another_gets_at_once(database: str) -> None:
    async with opened(database, poll=RARELY) as one, opened(database, poll=RARELY) as other:
        await claim(one, "k")
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim, other, "k")
                await anyio.sleep(0.1)
                one.unclaim("b", "k")
        await other.record(step("k", State.INTENT, attempt=1))


async def test_closing_hands_over_and_dying_leaves_it_to_the_lease(database: str) -> None:
    async with opened(database) as other:
        one = PostgresLedger(database, lease=LEASE)
        await one.open()
        for key in ("pending", "intent", "submitted"):
            await claim(one, key)
        await one.record(step("intent", State.INTENT, attempt=1))
        await one.record(step("submitted", State.INTENT, attempt=1))
        await one.record(step("submitted", State.SUBMITTED, prediction_id="p"))
        await died(one)
        assert await other.claim_unowned([State.SUBMITTED], None) == []
        postgres.end_leases(database, one._lease.worker_id)
        await other._lease.renew()
        assert [row.key for row in await other.claim_unowned([State.SUBMITTED], None)] == ["submitted"]
        (doubtful,) = await other.rows([State.UNCERTAIN])
        assert (doubtful.key, doubtful.error) == ("intent", "its worker ended while it was being submitted")
        assert (await claim(other, "pending")).state is State.PENDING
        async with opened(database) as third:
            await other.aclose()
            assert [row.key for row in await third.claim_unowned([State.SUBMITTED], None)] == ["submitted"]


async def test_who_was_taken_for_dead_may_write_nothing_but_the_id_that_it_alone_knows(database: str) -> None:
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
        # What the other makes of its own, older knowledge does not undo it.
        with pytest.raises(LedgerError, match="another worker's hand"):
            await other.record(step("sent", State.PENDING))
        assert (await other.rows([State.SUBMITTED]))[0].prediction_id == "p"
        await one.aclose()


async def test_what_was_locked_by_a_worker_that_is_cut_off_is_let_go(database: str) -> None:
    async with opened(database) as other, anyio.create_task_group() as tasks:
        await other.enqueue("b", [("k", Content("d"), "m")], at=0.0)
        wire = postgres.Cut(database)
        await tasks.start(wire.serve)
        # A server that does not answer for 2 s is gone, and so is a transaction in which nothing happens.
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


async def test_the_lines_are_the_semaphore_for_all_workers_together(database: str) -> None:
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
        # Sent back to wait, it takes no slot; in doubt, it does.
        other.give_back("b", "k2", error="no image", again=60.0)
        await other.rows([State.PENDING])
        assert len(await one.take(5, LEVEL)) == 2
        await one.record(step("k1", State.COMPLETED))


async def test_what_is_in_doubt_takes_a_slot_as_long_as_it_may_run(database: str) -> None:
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


async def test_starts_are_counted_for_all_workers_together(database: str) -> None:
    level = Level("test", 4, 1_000, 3600.0)
    async with opened(database) as one, opened(database) as other:
        await one.enqueue("b", [(f"k{number}", Content("d"), "m") for number in range(20)], at=0.0)
        first = [*await one.take(3, level), *await other.take(3, level)]
        assert len(first) == 4
        for row, _ in first[:3]:
            await one.record(step(row.key, State.INTENT, attempt=1))
        assert await one.take(3, level) == []
        postgres.rows(database, "UPDATE kling_job SET started_at = started_at - interval '1 hour'")
        # The three have left the window; the one that was taken and has not started still counts.
        assert len(await one.take(20, level)) == 3


async def test_claims_of_many_at_once_never_meet_and_never_exceed_the_cap(database: str) -> None:
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


async def test_a_session_waits_for_a_slot_that_another_process_has(database: str) -> None:
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


async def test_enqueueing_is_all_or_nothing_and_done_once(database: str) -> None:
    async with opened(database) as ledger:
        jobs = [(f"k{number}", Content("d"), "m") for number in range(3)]
        assert await ledger.enqueue("b", jobs, at=0.0) == ["k0", "k1", "k2"]
        assert await ledger.enqueue("b", [*jobs, ("k9", Content("d"), "m")], at=0.0) == ["k9"]
        with pytest.raises(KeyReusedError, match="k1"):
            await ledger.enqueue("b", [("k10", Content("d"), "m"), ("k1", Content("e"), "m")], at=0.0)
        assert await ledger.find("b", "k10") is None
        assert [row.state for row in await ledger.rows(State)] == [State.PENDING] * 4
        async with opened(database):
            workers = reader.workers(database, "default")
        assert [(worker.jobs, worker.lease > 20) for worker in workers] == [(0, True)] * 2


async def test_one_step_that_the_database_refuses_fails_alone(database: str) -> None:
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


async def test_accounts_do_not_see_each_other(database: str) -> None:
    async with opened(database) as one:
        await claim(one, "k")
        other = PostgresLedger(database, account="other")
        await other.open()
        assert await other.rows(State) == []
        assert (await other.claim("b", "k", content=Content("e"), model="m", at=0.0)).state is State.PENDING
        await other.aclose()


async def test_tables_of_a_later_version_are_refused(database: str) -> None:
    async with opened(database):
        pass
    async with opened(database) as again:
        await again._queue.read("UPDATE kling_version SET version = 99", [])
    with pytest.raises(LedgerError, match="later version"):
        await PostgresLedger(database).open()


async def test_a_password_shows_nowhere(database: str, caplog: pytest.LogCaptureFixture) -> None:
    quoted = "geh%3Ae1m%40x%2Fy"
    said = []
    ledger = PostgresLedger(f"postgresql://me:{quoted}@127.0.0.1:1/db?connect_timeout=1", patience=0.2)
    said += [repr(ledger), repr(ledger.address), str(ledger.address)]
    # Should a server or a driver quote it.
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


async def test_a_fork_is_noticed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(database) as ledger:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(LedgerError, match="fork"):
            await ledger.rows([State.PENDING])
        monkeypatch.undo()


async def test_two_sessions_run_batches_side_by_side_within_one_account(database: str, tmp_path: Path) -> None:
    # Half a second each: long enough for all slots to be taken also where nothing is fast.
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


async def test_a_batch_in_a_database_is_resumed_out_of_it(database: str) -> None:
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


async def test_what_an_answer_that_was_lost_had_brought_is_freed(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        await one.enqueue("b", [("k", Content("d"), "m")], at=0.0)
        # Committed, and the connection broke before anybody was told.
        claimed = "UPDATE kling_job SET worker_id = %s, state = 'claimed', slot = true"
        postgres.rows(database, claimed, one._lease.worker_id)
        assert await other.take(1, LEVEL) == []
        await one._lease.renew()
        assert [row.key for row, _ in await other.take(1, LEVEL)] == ["k"]


async def test_a_session_whose_lease_is_about_to_end_sends_nothing(database: str) -> None:
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


async def test_a_doubt_that_stays_one_is_nobodys(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        await claim(one, "k")
        await one.record(step("k", State.INTENT, attempt=1))
        await one.record(step("k", State.UNCERTAIN))
        one.unclaim("b", "k")
        await one.rows(State)
        # Another session looked at the whole history for a job of its own, and found out nothing about this one.
        await other.record(step("k", State.UNCERTAIN, error="held"))
        assert [row.error for row, _ in await one.take(1, LEVEL)] == ["held"]


async def test_the_id_that_came_late_is_not_written_over(database: str) -> None:
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
        with pytest.raises(LedgerError, match="another worker's hand"):
            await other.record(step("k", State.SUBMITTED, prediction_id="counted"))
        assert [row.prediction_id for row in await other.rows([State.SUBMITTED])] == ["told"]
        await one.aclose()


async def test_what_could_not_be_noted_while_the_database_was_away_is_taken_up_again(database: str) -> None:
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
        # Else they were in hand, and nobody's business, as long as the process lives.
        with anyio.fail_after(PATIENCE_S):
            assert (await claim(other, "unsent")).state is State.PENDING
        assert [row.key for row in await other.claim_unowned([State.SUBMITTED], None)] == ["sent"]
        await one.aclose()
        tasks.cancel_scope.cancel()


async def test_an_intent_whose_end_could_not_be_written_down_is_in_doubt_when_it_is_let_go(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        await claim(one, "k")
        await one.record(step("k", State.INTENT, attempt=1))
        one.unclaim("b", "k")
        await one.rows(State)
        ((row, _),) = await other.take(1, LEVEL)
        assert row.state is State.UNCERTAIN
        # And whoever has its answer all the same may still write it down.
        assert (await one.record(step("k", State.SUBMITTED, prediction_id="p"))).prediction_id == "p"


async def test_what_is_asked_for_while_it_closes_is_in_nobodys_hand(database: str) -> None:
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
        assert len(reader.workers(database, "default")) == 1


async def test_a_ledger_that_is_open_is_not_opened_again(database: str) -> None:
    async with opened(database) as one:
        await claim(one, "k")
        with pytest.raises(LedgerError, match="open already"):
            await one.open()
        await one.record(step("k", State.INTENT, attempt=1))


async def test_what_nobody_follows_takes_no_slot_for_ever(database: str) -> None:
    ledger = PostgresLedger(database, runs=3600.0)
    await ledger.open()
    for key in ("a", "b", "c"):
        await claim(ledger, key)
        await ledger.record(step(key, State.INTENT, attempt=1))
        await ledger.record(step(key, State.SUBMITTED, prediction_id=key))
    # Their worker is gone, and no other one runs that would take them.
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


async def test_a_lease_ends_by_the_clock_of_the_database(database: str) -> None:
    async with opened(database) as one:
        await claim(one, "k")
        # Such as of a machine that slept, and whose own clock stood still.
        postgres.end_leases(database, one._lease.worker_id)
        one.fence("b", "k")
        with pytest.raises(LedgerError, match="has ended"):
            await one.record(step("k", State.INTENT, attempt=1))
        await one._lease.renew()
        await one.record(step("k", State.INTENT, attempt=1))
