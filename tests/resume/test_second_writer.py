"""A second process that writes the same ledger, past the lock beside it: each job is paid once, and no paid id is lost.

Files, locks and SQLite are real; a lock conflicts between two sessions of one process as between two processes.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import HttpRequest, HttpResponse, Job, KlingSession, LedgerError, Outcome, Spent, State, WatchPolicy
from kling_async._core.http import Effect
from kling_async.ledger import Content, Entry, Row, SQLiteLedger, read_ledger
from kling_async.ledger._sqlite.reader import writer_of
from support.patience import PATIENCE_S
from support.service import IMAGE, Service, open_session
from support.writers import start_writer

pytestmark = pytest.mark.anyio
JOBS = 12


def jobs() -> dict[str, Job]:
    return {f"k{number}": Job(prompt=f"number {number}", image=IMAGE) for number in range(JOBS)}


def session(service: Service, path: Path, **options: Any) -> KlingSession:
    # Most jobs have been claimed and wait for a slot when the other session opens the ledger.
    given = {"ledger": path, "max_in_flight": 2, "grace": 0.05, "watch": WatchPolicy.fixed(0.02), **options}
    return open_session(service, **given)


async def run(service: Service, path: Path) -> list[Outcome]:
    async with session(service, path) as kling, kling.batch(jobs(), name="b") as batch:
        return [outcome async for outcome in batch]


def assert_paid_once(service: Service, path: Path) -> None:
    assert Counter(body["prompt"] for body in service.paid) == Counter(job.prompt for job in jobs().values())
    assert {row.prediction_id for row in read_ledger(path)} == set(service.accepted)


def lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def step(state: State, at: float = 1.0, **fields: Any) -> Entry:
    return Entry(batch="b", key="k", state=state, at=at, **fields)


async def opened(path: Path, *steps: Entry) -> SQLiteLedger:
    """Return an open ledger with a job that went through these steps."""
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.claim("b", "k", content=Content("d"), model="m", at=0.0)
    for one in steps:
        await ledger.record(one)
    return ledger


@pytest.mark.promise(1, 2)
async def test_second_writer_supersedes_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Regression: with the lock file removed, both sent the jobs that waited in the first one."""
    service, path = Service(seconds=0.05, latency=0.005, echo=lambda inputs: inputs), tmp_path / "run.db"
    service.epoch = service.clock.now() - service.clock.monotonic()
    async with session(service, path) as kling, kling.batch(jobs(), name="b") as batch:
        outcomes = [await anext(batch) for _ in range(2)]
        lock_of(path).unlink()
        second = asyncio.create_task(run(service, path))
        outcomes += [outcome async for outcome in batch]
        await second
    refused = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert refused
    for error in refused:
        assert isinstance(error, LedgerError)
        assert error.spent is Spent.NO
        assert "another writer" in error.message
        assert "has opened the ledger" in error.message
    assert "another writer" in caplog.text
    assert all(outcome.ok for outcome in await run(service, path))
    assert_paid_once(service, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.db"]


async def test_first_writer_notices_second_one_that_has_ended(tmp_path: Path) -> None:
    service, path = Service(seconds=0.05, latency=0.005, echo=lambda inputs: inputs), tmp_path / "run.db"
    service.epoch = service.clock.now() - service.clock.monotonic()
    sent, reply = asyncio.Event(), asyncio.Event()

    async def hold() -> HttpResponse:
        sent.set()
        await reply.wait()
        return service.accept({"prompt": "number 0"})

    def script(request: HttpRequest, body: dict[str, Any]) -> Any:
        return hold() if request.effect is Effect.PAID and body["prompt"] == "number 0" else None

    async with session(service, path, max_in_flight=1) as kling, kling.batch(jobs(), name="b") as batch:
        service.script = script
        await sent.wait()
        lock_of(path).unlink()
        service.script = None
        async with session(service, path, on_uncertain="hold") as other, other.batch(jobs(), name="b") as again:
            assert Counter(outcome.ok for outcome in [outcome async for outcome in again]) == {True: 11, False: 1}
        reply.set()
        outcomes = [outcome async for outcome in batch]
    assert Counter(type(outcome.error) for outcome in outcomes) == {LedgerError: 11, type(None): 1}
    assert_paid_once(service, path)


@pytest.mark.parametrize("links", [1, 2])
async def test_lock_follows_symbolic_links(tmp_path: Path, links: int) -> None:
    """Regression: the lock lay beside the link, so that two processes wrote one file."""
    path = tmp_path / "run.db"
    names = [tmp_path / f"folder-{number}" / "link.db" for number in range(links)]
    for link, target in zip(names, [path, *names], strict=False):
        link.parent.mkdir()
        link.symlink_to(target)
    first = await opened(path)
    with pytest.raises(LedgerError, match=f"being written by process {writer_of(path)}"):
        await SQLiteLedger(names[-1]).open()
    await first.aclose()
    through_link = await opened(names[-1])
    with pytest.raises(LedgerError, match=f"being written by process {writer_of(path)}"):
        await SQLiteLedger(path).open()
    await through_link.aclose()
    assert {entry.name for entry in tmp_path.rglob("*.*")} == {"run.db", "link.db"}


async def test_process_is_superseded(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    other = start_writer(path)
    lock_of(path).unlink()
    ledger = SQLiteLedger(path)
    await ledger.open()
    try:
        said, trouble = await anyio.to_thread.run_sync(lambda: other.communicate(timeout=PATIENCE_S))
    except subprocess.TimeoutExpired:
        other.kill()
        raise
    assert f"LedgerError: another writer, process {writer_of(path)}, has opened the ledger" in trouble
    recorded = {row.key for row in await ledger.rows([State.INTENT])}
    assert recorded >= set(said.split())
    await ledger.aclose()


@pytest.mark.promise(2)
async def test_late_answer_of_superseded_writer_is_recorded(tmp_path: Path) -> None:
    """The second writer neither overwrites the paid id with what it read before, nor sends the job."""
    path = tmp_path / "run.db"
    first = await opened(path, step(State.INTENT, attempt=1))
    lock_of(path).unlink()
    second = await opened(path, step(State.UNCERTAIN))
    row = await first.record(step(State.SUBMITTED, attempt=1, prediction_id="p"))
    assert (row.state, row.prediction_id) == (State.SUBMITTED, "p")
    # What it would record after it has found nothing in the history.
    unaccepted = step(State.PENDING, expected_version=(State.UNCERTAIN, 1))
    with pytest.raises(LedgerError, match="moved on to submitted"):
        await second.record(unaccepted)
    with pytest.raises(LedgerError, match="another writer"):
        await first.record(step(State.COMPLETED))
    assert (await second.record(step(State.COMPLETED))).prediction_id == "p"
    await first.aclose()
    assert lock_of(path).exists(), "it is the second writer's"
    assert writer_of(path) is not None
    await second.aclose()


@pytest.mark.parametrize("after", [State.PENDING, State.INTENT])
async def test_late_answer_about_earlier_attempt_is_refused(tmp_path: Path, after: State) -> None:
    path = tmp_path / "run.db"
    first = await opened(path, step(State.INTENT, attempt=1))
    lock_of(path).unlink()
    steps = [step(State.UNCERTAIN), step(State.PENDING), step(State.INTENT, attempt=2)]
    second = await opened(path, *steps[: 2 if after is State.PENDING else 3])
    with pytest.raises(LedgerError, match="another writer"):
        await first.record(step(State.SUBMITTED, attempt=1, prediction_id="p"))
    await first.aclose()
    await second.aclose()
    (row,) = read_ledger(path)
    assert (row.state, row.prediction_id) == (after, None)


class AnsweredMeanwhile(SQLiteLedger):
    """Ledger of a second writer: the first one records a reply right after its intents were listed."""

    first: SQLiteLedger

    async def rows(self, states: Iterable[State]) -> list[Row]:
        found = await super().rows(states)
        if [row.state for row in found] == [State.INTENT]:
            await self.first.record(step(State.SUBMITTED, attempt=1, prediction_id="p"))
        return found


async def test_reply_recorded_during_takeover_stays(tmp_path: Path) -> None:
    """Regression: the session could not be opened: "job k cannot go from submitted to uncertain"."""
    path = tmp_path / "run.db"
    ledger = AnsweredMeanwhile(path)
    ledger.first = await opened(path, step(State.INTENT, attempt=1))
    lock_of(path).unlink()
    async with session(Service(), path, ledger=ledger) as kling:
        assert len(kling.running) == 1
    await ledger.first.aclose()
    (row,) = read_ledger(path)
    assert (row.state, row.prediction_id) == (State.SUBMITTED, "p")
