"""Clips with several parents over the shared ledger: parents that end at the same moment in two workers."""

from __future__ import annotations

import anyio
import psycopg
import pytest

from kling_async import FirstFrame, Job, LastFrame, Level, enqueue
from kling_async._core.states import State
from kling_async.ledger._postgres import chains, statements
from kling_async.ledger._postgres.connection import Connection, fetch
from kling_async.ledger._postgres.statements import line_of
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.films import clip
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

LEVEL = Level("test", 1_000_000, 20)
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def end(connection: Connection, account: str, key: str, state: State) -> None:
    """Record the end of a job in a transaction that stays open."""
    (found,) = await fetch(connection, statements.LOCK_LINES, [["films"], [key], account])
    was = line_of(found)
    await fetch(
        connection,
        "UPDATE kling_job SET state = %s, output = 'https://o.example/1', worker_id = NULL WHERE id = %s",
        [state.value, was.id],
    )
    (found,) = await fetch(connection, statements.LOCK_LINES, [["films"], [key], account])
    await chains.follow(connection, [(was, line_of(found))], worker="test")


async def test_clip_is_woken_when_its_parents_end_at_the_same_moment(database: str) -> None:
    """Neither transaction sees the end of the other parent before that is committed."""
    both = Job(model="kling-v2.1-pro-start-end-frame", prompt="c", image=LastFrame("a"), end_image=FirstFrame("b"))
    ledger = PostgresLedger(database)
    await ledger.open()
    await enqueue(ledger, {"a": clip("a"), "b": clip("b"), "c": both}, batch="films")
    ((account,),) = postgres.rows(database, "SELECT DISTINCT account FROM kling_job")
    ended = anyio.Event()
    async with (
        await psycopg.AsyncConnection.connect(database) as one,
        await psycopg.AsyncConnection.connect(database) as two,
    ):
        await end(one, str(account), "a", State.COMPLETED)

        async def second() -> None:
            await end(two, str(account), "b", State.COMPLETED)
            await two.commit()
            ended.set()

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(second)
                while not ended.is_set() and postgres.rows(database, BLOCKED) == [(0,)]:  # noqa: ASYNC110 -- nothing announces it
                    await anyio.sleep(0.02)
                await one.commit()
    taken = await ledger.take(10, LEVEL)
    await ledger.aclose()
    assert [row.key for row, _ in taken] == ["c"]
