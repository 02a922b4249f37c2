"""Full disks, locked, torn, read-only or deleted ledger files, and clock jumps: every job is paid once.

Files, SQLite, its writer thread, other connections and other processes are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from kling_async import (
    Budget,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    LedgerError,
    Outcome,
    Spent,
    State,
    SubmissionUncertainError,
    WatchPolicy,
    read_ledger,
)
from kling_async._core.content import Content
from kling_async._core.http import Effect
from kling_async.emulator import Emulator
from kling_async.ledger import Entry, SQLiteLedger
from support.patience import PATIENCE_S
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

FAST = WatchPolicy.fixed(0.02)
WORKER = Path(__file__).parents[1] / "support" / "limited.py"
DAY = 86_400.0


def jobs(count: int) -> list[Job]:
    return [Job(prompt=f"number {number}", image=IMAGE) for number in range(count)]


def session(service: Service, **options: Any) -> KlingSession:
    return open_session(service, watch=FAST, grace=options.pop("grace", 0.05), **options)


def ledger_at(path: Path) -> SQLiteLedger:
    return SQLiteLedger(path, lock_timeout=0.05)


async def run(service: Service, ledger: SQLiteLedger | Path, count: int = 4, **options: Any) -> list[Outcome]:
    """Run the same batch, so that repeated calls resume it."""
    where = ledger if isinstance(ledger, SQLiteLedger) else ledger_at(ledger)
    async with session(service, ledger=where, **options) as kling, kling.batch(jobs(count), name="b") as batch:
        return [outcome async for outcome in batch]


def paid(service: Service) -> Counter[str]:
    """Return the number of payments per prompt, by the service's record."""
    return Counter(body["prompt"] for body in service.paid)


def on_paid(service: Service, do: Callable[[], None], *, times: int = 1) -> None:
    """Call a function while the first paid requests are in flight: after their intents, before their ids."""
    left = times

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        nonlocal left
        if request.effect is Effect.PAID and left:
            left -= 1
            do()
        return None

    service.script = script


class Meddler:
    """Other program that holds locks on the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def lock(self) -> None:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
            self._connection.execute("BEGIN IMMEDIATE")

    def let_go(self) -> None:
        if self._connection is not None:
            self._connection.execute("ROLLBACK")
            self._connection.close()
            self._connection = None


@pytest.fixture
def meddler(tmp_path: Path) -> Iterator[Meddler]:
    made = Meddler(tmp_path / "run.db")
    yield made
    made.let_go()


async def make(path: Path) -> None:
    """Create a ledger file and close it."""
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.aclose()


def assert_once(service: Service, path: Path, outcomes: list[Outcome], count: int) -> None:
    """Check that every job completed, was paid once, and has its id in the ledger."""
    assert [outcome.error for outcome in outcomes if not outcome.ok] == []
    assert len(outcomes) == count
    assert paid(service) == Counter(f"number {number}" for number in range(count))
    rows = list(read_ledger(path))
    assert {row.prediction_id for row in rows} == set(service.accepted)
    assert {row.state for row in rows} == {State.COMPLETED}


# ---- locked ----


async def test_permanently_locked_file_is_refused_before_sending(tmp_path: Path, meddler: Meddler) -> None:
    service = Service(seconds=0.05, latency=0.001)
    path = tmp_path / "run.db"
    await make(path)
    meddler.lock()
    with pytest.raises(LedgerError, match=r"locked.*nothing was spent.*another program holds.*run the same call again"):
        await run(service, path)
    assert not service.paid
    meddler.let_go()
    assert_once(service, path, await run(service, path), 4)


async def test_short_lock_is_waited_for(tmp_path: Path, meddler: Meddler) -> None:
    service = Service(seconds=0.05, latency=0.001)
    path = tmp_path / "run.db"
    await make(path)
    async with session(service, ledger=SQLiteLedger(path, lock_timeout=20)) as kling:
        meddler.lock()
        task = asyncio.create_task(kling.generate(jobs(1)[0], key="k"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.2)
        assert not service.paid, "the intent is not on the disk yet"
        meddler.let_go()
        assert (await task).output
    assert len(service.paid) == 1


async def test_job_blocked_by_lock_is_not_sent_and_run_continues(tmp_path: Path, meddler: Meddler) -> None:
    service = Service(seconds=0.05, latency=0.001)
    path = tmp_path / "run.db"
    async with (
        session(service, ledger=ledger_at(path)) as kling,
        kling.batch(jobs(12), name="b", window=1) as batch,
    ):
        outcomes = [await anext(batch) for _ in range(3)]
        meddler.lock()
        outcomes += [await anext(batch) for _ in range(4)]
        meddler.let_go()
        outcomes += [outcome async for outcome in batch]
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert 3 <= len(failed) <= 5
    for outcome in failed:
        error = outcome.error
        assert isinstance(error, LedgerError)
        assert error.spent is Spent.NO
        assert error.key == outcome.key, "each says whose it is"
        assert "let it end" in str(error)
        assert outcome.job.prompt not in paid(service)
    assert_once(service, path, await run(service, path, 12), 12)


async def test_paid_id_blocked_by_lock_is_logged_followed_and_recorded_later(
    tmp_path: Path, meddler: Meddler, caplog: pytest.LogCaptureFixture
) -> None:
    """Id and end are recorded in one step once the lock is gone."""
    service = Service(seconds=0.6, latency=0.001)
    path = tmp_path / "run.db"
    on_paid(service, meddler.lock)
    async with session(service, ledger=ledger_at(path)) as kling:
        submitted = await kling.submit(jobs(1)[0], key="k")
        assert submitted.id == "p00000"
        assert "submitted" in caplog.text.lower()
        assert "prediction p00000" in caplog.text
        meddler.let_go()
        assert [row.state for row in read_ledger(path)] == [State.INTENT]
        assert (await kling.wait(submitted)).output
    (row,) = read_ledger(path)
    assert (row.state, row.prediction_id, row.spent) == (State.COMPLETED, "p00000", row.cost)
    assert len(service.paid) == 1


@pytest.mark.promise(2)
async def test_unrecorded_paid_id_is_kept_by_session_and_recorded_at_end(tmp_path: Path, meddler: Meddler) -> None:
    """Regression: on a second call the job was in doubt although its id was known, and its end was lost."""
    service = Service(seconds=30.0, latency=0.001)
    path = tmp_path / "run.db"
    on_paid(service, meddler.lock)
    async with session(service, ledger=ledger_at(path), on_uncertain="hold") as kling:
        await kling.submit(jobs(1)[0], key="k")
        # While the file is locked the only guarantee is that no second request is sent.
        with pytest.raises(LedgerError):
            await kling.submit(jobs(1)[0], key="k")
        meddler.let_go()
        on_paid(service, meddler.lock)
        await kling.submit(jobs(2)[1], key="other")
        meddler.let_go()
        assert (await kling.submit(jobs(1)[0], key="k")).id == "p00000"
        assert {row.key: row.state for row in read_ledger(path)} == {"k": State.SUBMITTED, "other": State.INTENT}
    assert {row.key: (row.state, row.prediction_id) for row in read_ledger(path)} == {
        "k": (State.SUBMITTED, "p00000"),
        "other": (State.SUBMITTED, "p00001"),
    }
    assert len(service.paid) == 2


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.promise(1, 2)
async def test_never_recorded_paid_id_is_found_by_next_process(tmp_path: Path, meddler: Meddler, *, echo: bool) -> None:
    service = Service(seconds=0.05, latency=0.001, echo=(lambda inputs: inputs) if echo else None)
    service.epoch = service.clock.now() - service.clock.monotonic()
    path = tmp_path / "run.db"
    on_paid(service, meddler.lock)
    async with session(service, ledger=ledger_at(path), max_in_flight=1) as kling:
        assert (await kling.generate(jobs(1)[0], key="k")).output, "what was paid for is delivered all the same"
    meddler.let_go()
    assert [row.state for row in read_ledger(path)] == [State.INTENT]
    async with session(service, ledger=ledger_at(path), sole_user=not echo) as kling:
        assert (await kling.generate(jobs(1)[0], key="k")).id == "p00000"
    (row,) = read_ledger(path)
    assert (row.state, row.prediction_id) == (State.COMPLETED, "p00000")
    assert len(service.paid) == 1


async def test_unrecorded_response_is_in_doubt_and_settled_later(tmp_path: Path, meddler: Meddler) -> None:
    """The response is lost, and the doubt cannot be recorded."""
    service = Service(seconds=0.05, latency=0.001, echo=lambda inputs: inputs)
    service.epoch = service.clock.now() - service.clock.monotonic()
    path = tmp_path / "run.db"
    lost = ["number 0"]

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and lost:
            lost.clear()
            service.accept(body, request.url.partition("/api/v3/")[2])
            meddler.lock()
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with session(service, ledger=ledger_at(path)) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(jobs(1)[0], key="k")
    meddler.let_go()
    async with session(service, ledger=ledger_at(path)) as kling:
        assert (await kling.generate(jobs(1)[0], key="k")).id == "p00000"
    assert len(service.paid) == 1


# ---- full ----


async def limit_pages(ledger: SQLiteLedger, pages: int) -> None:
    """Limit the file's pages in SQLite, which fails like a full disk; 1 means the present size."""
    await ledger._ask(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())


async def test_full_disk_stops_unsent_jobs_until_space_is_freed(tmp_path: Path) -> None:
    service = Service(seconds=0.05, latency=0.001, echo=lambda inputs: inputs)
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    many = 60
    async with session(service, ledger=ledger) as kling:
        await limit_pages(ledger, 14)
        async with kling.batch(jobs(many), name="b", window=8) as batch:
            outcomes = [outcome async for outcome in batch]
    failed = [outcome.error for outcome in outcomes if not outcome.ok]
    assert failed, "there was room for all of it"
    assert len(failed) < many, "there was room for nothing"
    for error in failed:
        assert isinstance(error, LedgerError)
        assert error.spent is Spent.NO
        assert "make room on the disk; then run the same call again" in str(error)
        assert "another file" not in str(error), "what another file does not know would be paid for again"
    assert paid(service).keys() == {outcome.job.prompt for outcome in outcomes if outcome.ok}
    service.epoch = service.clock.now() - service.clock.monotonic()
    outcomes = await run(service, path, many)
    assert max(paid(service).values()) == 1
    assert len(service.paid) == many
    assert all(outcome.ok for outcome in outcomes)


def limited(
    *arguments: str, environment: dict[str, str] | None = None, limit: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=limit,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | (environment or {}),
    )


async def test_file_size_limit_stops_process_without_loss(tmp_path: Path) -> None:
    """`RLIMIT_FSIZE` makes the write itself fail at an arbitrary point of a run."""
    path = tmp_path / "run.db"
    async with Emulator(
        level="ultra", profile="tiny", timing=lambda model, inputs: 0.3, balance=1e6, input_echo=True
    ) as emulator:
        about = (str(path), emulator.base_url, emulator.api_key, "40")
        first = await asyncio.to_thread(limited, *about, "--file-size", "600000")
        ends = [json.loads(line) for line in first.stdout.splitlines()]
        said = [end["error"] for end in ends if end["error"]]
        assert said, f"it was not stopped: {first.stderr}"
        assert len(ends) == 40
        assert all("LedgerError" in error for error in said)
        assert all("see to the disk" in error and "run the same call again" in error for error in said)
        charged = Counter(str(record.inputs["prompt"]) for record in emulator.predictions())
        assert 0 < len(charged) < 40
        assert max(charged.values()) == 1
        again = await asyncio.to_thread(limited, *about)
        assert [json.loads(line)["error"] for line in again.stdout.splitlines()] == [None] * 40, again.stderr
        charged = Counter(str(record.inputs["prompt"]) for record in emulator.predictions())
        assert len(charged) == 40
        assert max(charged.values()) == 1
        assert {row.prediction_id for row in read_ledger(path)} == {record.id for record in emulator.predictions()}


# ---- read-only ----


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_read_only_ledger_is_refused_before_sending(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / "run.db"
    async with Emulator(
        level="ultra", profile="tiny", timing=lambda model, inputs: 0.1, balance=1e6, input_echo=True
    ) as emulator:
        about = (str(path), emulator.base_url, emulator.api_key, "3")
        assert (await asyncio.to_thread(limited, *about)).returncode == 0
        charged = len(emulator.charges())
        if what == "file":
            path.chmod(0o444)
        else:
            folder.chmod(0o555)
        about = (*about[:3], "5")
        refused = await asyncio.to_thread(limited, *about, "--unprivileged")
        assert refused.returncode == 3, refused.stderr
        assert "LedgerError" in refused.stdout
        assert "let this user write the file and its folder; then run the same call again" in refused.stdout
        assert len(emulator.charges()) == charged
        folder.chmod(0o755)
        path.chmod(0o644)
        mended = await asyncio.to_thread(limited, *about, "--unprivileged")
        assert [json.loads(line)["error"] for line in mended.stdout.splitlines()] == [None] * 5, mended.stderr
        assert len(emulator.charges()) == 5


# ---- deleted, replaced ----


@pytest.mark.parametrize("what", ["the file", "all of its files", "its folder"])
@pytest.mark.promise(2)
async def test_ledger_deleted_while_open_is_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Regression: SQLite keeps writing to the unlinked file, and the next run paid for everything again."""
    service = Service(seconds=0.05, latency=0.001)
    folder = tmp_path / "runs"
    path = folder / "run.db"
    async with session(service, ledger=path) as kling, kling.batch(jobs(12), name="b", window=3) as batch:
        outcomes = [await anext(batch) for _ in range(5)]
        if what == "its folder":
            shutil.rmtree(folder)
        else:
            for name in folder.iterdir() if what == "all of its files" else [path]:
                name.unlink()
        outcomes += [outcome async for outcome in batch]
        with pytest.raises(LedgerError, match="being written by process"):
            await SQLiteLedger(path).open()
    assert "was deleted while it was open, and was put back" in caplog.text
    assert_once(service, path, outcomes, 12)
    assert_once(service, path, await run(service, path, 12), 12)
    assert not [entry.name for entry in folder.iterdir() if entry.suffix in {".part", ".lock"}]


async def test_ledger_deleted_after_last_job_is_restored_on_close(tmp_path: Path) -> None:
    service = Service(seconds=0.05, latency=0.001)
    path = tmp_path / "run.db"
    async with session(service, ledger=path) as kling, kling.batch(jobs(4), name="b") as batch:
        assert all([outcome.ok async for outcome in batch])
        await asyncio.sleep(0.1)
        path.unlink()
    assert_once(service, path, await run(service, path), 4)


async def test_replaced_ledger_file_stops_sending_and_keeps_rows(tmp_path: Path) -> None:
    service = Service(seconds=0.3, latency=0.001)
    path = tmp_path / "run.db"
    other = tmp_path / "other.db"
    await make(other)
    async with session(service, ledger=path) as kling, kling.batch(jobs(12), name="b", window=3) as batch:
        outcomes = [await anext(batch) for _ in range(5)]
        other.replace(path)
        outcomes += [outcome async for outcome in batch]
    rescued = tmp_path / "run.db.rescued"
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert failed
    for error in failed:
        assert isinstance(error, LedgerError)
        assert error.spent is Spent.NO
        assert f"what it knew is in {rescued}" in str(error)
        assert "put that file back in its place" in str(error)
    assert list(read_ledger(path)) == [], "what is not ours is left alone"
    assert {row.prediction_id for row in read_ledger(rescued)} - {None} == set(service.accepted)
    assert len(service.paid) == len([outcome for outcome in outcomes if outcome.ok])
    rescued.replace(path)
    assert_once(service, path, await run(service, path, 12), 12)


# ---- torn ----


async def test_torn_file_is_refused_and_its_copy_resumes(tmp_path: Path) -> None:
    service = Service(seconds=0.05, latency=0.001)
    path = tmp_path / "run.db"
    assert_once(service, path, await run(service, path, 40), 40)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerError, match=r"damaged.*nothing was spent.*restore it from a copy.*do not submit"):
        await run(service, path, 41)
    assert len(service.paid) == 40
    path.write_bytes(whole)
    assert_once(service, path, await run(service, path, 41), 41)


async def test_file_torn_during_write_pays_nothing_twice(tmp_path: Path) -> None:
    service = Service(seconds=0.05, latency=0.001)
    path = tmp_path / "run.db"
    await run(service, path, 60)
    copy = path.read_bytes()
    async with session(service, ledger=ledger_at(path)) as kling, kling.batch(jobs(60), name="b") as batch:
        with path.open("r+b") as file:
            file.truncate(len(copy) // 2)
        # Whatever is still readable, no job is paid again.
        async for _ in batch:
            pass
    assert len(service.paid) == 60
    with contextlib.suppress(LedgerError):
        # The file may still open; no job may be paid even then.
        await run(service, path, 60)
    assert len(service.paid) == 60
    path.write_bytes(copy)
    assert_once(service, path, await run(service, path, 60), 60)


# ---- clocks ----


@attrs.define
class Set:
    """Session clock that is `off` seconds from the service's."""

    service: Service
    off: float = 0.0

    def now(self) -> float:
        return self.service.clock.now() + self.off

    def monotonic(self) -> float:
        return self.service.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        # Shorten the pauses between two history reads.
        await self.service.clock.sleep(min(seconds, 0.05))


JUMPS = [-40 * DAY, -2 * 3600.0, 2 * 3600.0, 40 * DAY]


@pytest.mark.parametrize("jump", JUMPS)
async def test_clock_jump_during_batch_pays_nothing_twice(tmp_path: Path, jump: float) -> None:
    service = Service(seconds=0.1, latency=0.001, echo=lambda inputs: inputs)
    service.epoch = service.clock.now() - service.clock.monotonic()
    clock = Set(service)
    path = tmp_path / "run.db"
    budget = Budget(20, allow_estimate=True)
    dropped: set[str] = set()

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        # Every fourth response is lost once, after the job was accepted.
        if request.effect is Effect.PAID and len(service.paid) % 4 == 3 and body["prompt"] not in dropped:
            dropped.add(body["prompt"])
            service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with (
        session(service, ledger=path, clock=clock, budget=budget) as kling,
        kling.batch(jobs(16), name="b", window=4) as batch,
    ):
        outcomes = [await anext(batch) for _ in range(6)]
        clock.off = jump
        outcomes += [outcome async for outcome in batch]
    assert dropped
    assert_once(service, path, outcomes, 16)
    assert budget.spent == 16 * Decimal("0.25")
    assert_once(service, path, await run(service, path, 16, clock=clock), 16)


@pytest.mark.parametrize("jump", JUMPS)
async def test_clock_jump_between_processes_pays_nothing_twice(tmp_path: Path, jump: float) -> None:
    """Running predictions are followed; doubts are settled, or held until the clock is right again."""
    service = Service(seconds=0.5, latency=0.001, echo=lambda inputs: inputs)
    service.epoch = service.clock.now() - service.clock.monotonic()
    clock = Set(service)
    path = tmp_path / "run.db"

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] in {"number 1", "number 2"}:
            if body["prompt"] == "number 1":
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with session(service, ledger=path, clock=clock, on_uncertain="hold") as kling:
        async with kling.batch(jobs(3), name="b") as batch:
            held = [await anext(batch) for _ in range(2)]
            assert all(isinstance(outcome.error, SubmissionUncertainError) for outcome in held)
        assert len(kling.running) == 1
    service.script = None
    clock.off = jump
    outcomes = {outcome.job.prompt: outcome for outcome in await run(service, path, 3, clock=clock)}
    assert outcomes["number 0"].ok
    assert outcomes["number 1"].ok, "it is in the history, whatever time it is"
    assert max(paid(service).values()) == 1
    error = outcomes["number 2"].error
    assert error is None or (isinstance(error, SubmissionUncertainError) and abs(jump) > 7 * DAY)
    clock.off = 0.0
    assert_once(service, path, await run(service, path, 3, clock=clock), 3)


async def test_rest_of_deleted_row_affects_no_other_job(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = ledger_at(path)
    await ledger.open()
    for key in ("deleted", "paid"):
        await ledger.claim("b", key, content=Content("{}", None), model="m", at=1.0)
    await ledger.record(Entry(batch="b", key="paid", state=State.INTENT, at=2.0, attempt=1))
    await ledger.aclose()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DELETE FROM job WHERE key = 'deleted'")
    await ledger.open()
    # In one group commit.
    await asyncio.gather(
        ledger.record(Entry(batch="b", key="paid", state=State.SUBMITTED, at=3.0, prediction_id="p1")),
        ledger.claim("b", "deleted", content=Content('{"prompt": "new"}', None), model="m", at=4.0),
    )
    await ledger.aclose()
    rows = {row.key: row for row in read_ledger(path)}
    assert rows["paid"].prediction_id == "p1"
    assert (rows["deleted"].state, rows["deleted"].job) == (State.PENDING, '{"prompt": "new"}')
