"""Clips with several parents over the shared ledger: parents that end at the same moment in two workers."""

from __future__ import annotations

import json
import os
from typing import Any

import anyio
import psycopg
import pytest

from kling_async import FirstFrame, Job, LastFrame, Level, enqueue
from kling_async._core.states import State
from kling_async.ledger import Entry
from kling_async.ledger._postgres import chains, statements
from kling_async.ledger._postgres.connection import Connection, fetch
from kling_async.ledger._postgres.statements import line_of
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.films import chain, clip
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

JOBS = int(os.environ.get("KLING_CLAIM_JOBS", "20000"))
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


async def test_films_come_out_one_after_the_other(database: str) -> None:
    ledger = PostgresLedger(database, lease=600.0)
    await ledger.open()
    try:
        for film in ("a", "b"):
            await enqueue(ledger, chain(film, 3), batch="films")
        made: list[str] = []
        while taken := await ledger.take(1, LEVEL):
            ((row, _),) = taken
            made.append(row.key)
            about: dict[str, Any] = {"batch": "films", "key": row.key, "at": 2.0}
            await ledger.record(Entry(**about, state=State.INTENT))
            for state in (State.SUBMITTED, State.COMPLETED):
                await ledger.record(Entry(**about, state=state, prediction_id=row.key, output="https://o.example/1"))
            ledger.give_back("films", row.key)
    finally:
        await ledger.aclose()
    assert made == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]


def explained(url: str, query: str, values: Any) -> list[dict[str, Any]]:
    """Return the nodes of a statement's plan."""
    with psycopg.connect(url) as connection:
        found = connection.execute(b"EXPLAIN (FORMAT JSON) " + query.encode(), values).fetchone()
        assert found is not None
        connection.rollback()
    plan = found[0] if isinstance(found[0], list) else json.loads(found[0])

    def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
        return [node, *(each for below in node.get("Plans", ()) for each in nodes(below))]

    return nodes(plan[0]["Plan"])


FILL = """
WITH made AS (
  INSERT INTO kling_job(account, batch, key, digest, model, state, updated_at, due_at)
  SELECT %(account)s, 'films', concat('f', n, '-', step), concat(n, '-', step), 'm',
    CASE WHEN step = 0 AND n > 10 THEN 'completed' ELSE 'pending' END, 0,
    CASE WHEN step = 0 THEN now() ELSE 'infinity' END
  FROM generate_series(1, %(films)s) AS n, generate_series(0, 3) AS step RETURNING id, key)
INSERT INTO kling_parent(job, parent)
SELECT c.id, p.id FROM made c JOIN made p
  ON p.key = concat(split_part(c.key, '-', 1), '-', split_part(c.key, '-', 2)::int - 1)
"""


@pytest.mark.timeout(600)
async def test_clips_are_woken_and_skipped_by_indexes(database: str) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await enqueue(ledger, {"a": clip("a")}, batch="other")
    ((account,),) = postgres.rows(database, "SELECT account FROM kling_job")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(FILL.encode(), {"account": account, "films": JOBS // 4})
        connection.execute("ANALYZE kling_job, kling_parent")
    await ledger.aclose()
    ids = [id_ for (id_,) in postgres.rows(database, "SELECT id FROM kling_job WHERE state = 'pending' LIMIT 5")]
    for query, values in (
        (statements.LOCK_CHILDREN, [ids]),
        (statements.WAKE, {"ids": ids, "worker": "w"}),
        (statements.SKIP, {"ids": ids, "worker": "w"}),
        (statements.LOCK_PARENTS, {"account": account, "batches": ["films"], "parents": ["f1-0"]}),
        (statements.HOLD, {"ids": ids}),
    ):
        found = explained(database, query, values)
        scans = [node for node in found if node["Node Type"] == "Seq Scan"]
        assert not scans, (query, scans)
