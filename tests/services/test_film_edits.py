"""Clips of the shared ledger that get other content, or lose their videos, before what continues them is sent."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import pytest

from kling_async import Level, State, Worker, enqueue
from kling_async._core.content import Content
from kling_async.ledger import Entry
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.films import chain
from support.patience import PATIENCE_S
from support.service import Service, open_session

pytestmark = pytest.mark.anyio

LEVEL = Level("test", 1_000_000, 20)
NEW = Content('{"prompt":"new"}')
MODEL = "kwaivgi/kling-v2.1-i2v-standard"
NUMBERS = itertools.count()
VIDEO = (State.SUBMITTED, State.COMPLETED, State.DOWNLOADED)


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(database, lease=600.0)
    await ledger.open()
    await enqueue(ledger, chain("film", 3), batch="films")
    yield ledger
    await ledger.aclose()


async def take(ledger: PostgresLedger) -> list[str]:
    return [row.key for row, _ in await ledger.take(10, LEVEL)]


async def send(ledger: PostgresLedger, key: str, states: Sequence[State], *, attempt: int = 1) -> None:
    """Record the course of a job that was taken, and release it."""
    about: dict[str, Any] = {"batch": "films", "key": key, "at": 2.0}
    await ledger.record(Entry(**about, state=State.INTENT, attempt=attempt))
    prediction_id = f"p{next(NUMBERS)}"
    for state in states:
        path = "a.mp4" if state is State.DOWNLOADED else None
        await ledger.record(Entry(**about, state=state, prediction_id=prediction_id, path=path))
    ledger.give_back("films", key, again=60.0)


def states(url: str) -> dict[object, object]:
    return dict(postgres.rows(url, "SELECT key, state FROM kling_job"))  # type: ignore[arg-type]  # pairs


@pytest.mark.parametrize(
    "course", [VIDEO, (*VIDEO[:2], State.EXPIRED)], ids=["video that is saved", "video that is gone"]
)
async def test_clip_waits_for_the_new_video_of_a_kept_one(
    ledger: PostgresLedger, database: str, course: tuple[State, ...]
) -> None:
    assert await take(ledger) == ["film-0"]
    await send(ledger, "film-0", course)
    kept = await ledger.renew("films", "film-0", content=NEW, model=MODEL, at=3.0)
    assert kept is not None
    assert kept.key == "film-0~1"
    assert await take(ledger) == ["film-0"], "film-1 begins with a frame of the new video"
    await send(ledger, "film-0", VIDEO)
    assert await take(ledger) == ["film-1"]
    await send(ledger, "film-1", VIDEO)
    assert await take(ledger) == ["film-2"]
    assert states(database)["film-0~1"] == course[-1].value


@pytest.fixture
async def other(database: str) -> AsyncIterator[PostgresLedger]:
    """Another worker."""
    other = PostgresLedger(database, lease=600.0)
    await other.open()
    yield other
    await other.aclose()


async def renew_below(ledger: PostgresLedger, other: PostgresLedger) -> None:
    """Give a clip other content in one worker, after another one has claimed what continues it."""
    assert await take(ledger) == ["film-0"]
    await send(ledger, "film-0", VIDEO)
    assert await take(ledger) == ["film-1"]
    await other.renew("films", "film-0", content=NEW, model=MODEL, at=3.0)


async def test_clip_that_is_sent_while_its_parent_gets_other_content_is_not_held(
    ledger: PostgresLedger, other: PostgresLedger
) -> None:
    """Its worker stops, and another one has to watch it: it is paid."""
    await renew_below(ledger, other)
    await ledger.record(Entry(batch="films", key="film-1", state=State.INTENT, at=4.0, attempt=1))
    await ledger.record(Entry(batch="films", key="film-1", state=State.SUBMITTED, at=4.0, prediction_id="p"))
    await ledger.aclose()
    assert sorted(await take(other)) == ["film-0", "film-1"]


async def test_clip_that_is_given_back_while_its_parent_gets_other_content_is_held(
    ledger: PostgresLedger, other: PostgresLedger
) -> None:
    await renew_below(ledger, other)
    ledger.give_back("films", "film-1", again=0.001)
    assert await take(ledger) == ["film-0"]
    await send(ledger, "film-0", VIDEO)
    assert await take(ledger) == ["film-1"]


async def test_clip_waits_for_the_new_video_of_a_failed_one(ledger: PostgresLedger, database: str) -> None:
    assert await take(ledger) == ["film-0"]
    await send(ledger, "film-0", [State.SUBMITTED, State.FAILED])
    assert not await take(ledger)
    assert states(database)["film-2"] == "skipped"
    assert await ledger.renew("films", "film-0", content=NEW, model=MODEL, at=3.0) is None
    assert await take(ledger) == ["film-0"]
    await send(ledger, "film-0", VIDEO, attempt=2)
    assert await take(ledger) == ["film-1"]


async def test_clip_waits_for_the_new_video_of_one_that_was_handed_out_again(ledger: PostgresLedger) -> None:
    assert await take(ledger) == ["film-0"]
    await ledger.record(
        Entry(batch="films", key="film-0", state=State.REUSED, at=2.0, reused="p1", output="https://o.example/1")
    )
    ledger.give_back("films", "film-0")
    assert await ledger.renew("films", "film-0", content=NEW, model=MODEL, at=3.0) is None
    assert await take(ledger) == ["film-0"]


async def test_clip_that_was_sent_stays_with_the_video_that_it_continues(ledger: PostgresLedger, database: str) -> None:
    for key in ("film-0", "film-1"):
        assert await take(ledger) == [key]
        await send(ledger, key, VIDEO)
    await ledger.renew("films", "film-0", content=NEW, model=MODEL, at=3.0)
    assert sorted(await take(ledger)) == ["film-0", "film-2"]
    of = "SELECT p.key FROM kling_parent o JOIN kling_job p ON p.id = o.parent JOIN kling_job c ON c.id = o.job"
    assert postgres.rows(database, f"{of} WHERE c.key = 'film-1'") == [("film-0~1",)]


async def test_clip_that_continues_nothing_any_more_is_made_at_once(ledger: PostgresLedger) -> None:
    assert await take(ledger) == ["film-0"]
    assert await ledger.renew("films", "film-1", content=NEW, model=MODEL, at=3.0) is None
    assert await take(ledger) == ["film-1"]


async def test_clip_whose_video_is_gone_is_told_once(ledger: PostgresLedger, database: str) -> None:
    assert await take(ledger) == ["film-0"]
    await send(ledger, "film-0", (*VIDEO[:2], State.EXPIRED))
    service = Service()
    async with open_session(service, ledger=database) as kling, anyio.create_task_group() as tasks:
        tasks.start_soon(Worker(kling).run)
        with anyio.fail_after(PATIENCE_S):
            await ledger.outcome("films", "film-1")
        tasks.cancel_scope.cancel()
    assert states(database) == {"film-0": "expired", "film-1": "rejected", "film-2": "skipped"}
    found = await ledger.find("films", "film-1")
    assert found is not None
    assert "the video of the job 'film-0' is neither saved nor at the service any more" in str(found[0].error)
    assert not service.paid
