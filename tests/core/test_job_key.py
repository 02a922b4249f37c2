"""Keys of jobs: texts and whole numbers, and the same refusals at every door, with a ledger and without."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from kling_async import (
    ConfigurationError,
    InvalidJobError,
    Job,
    KlingError,
    KlingSession,
    Outcome,
    Spent,
    State,
    Worker,
    enqueue,
)
from kling_async._core.job_key import MAX_KEY_BYTES, checked_key
from kling_async.errors import ManifestError, UnknownJobError
from kling_async.integrations.fastapi import JobService
from kling_async.ledger import Ledger, MemoryLedger, SQLiteLedger
from kling_async.ledger.postgres import PostgresLedger
from kling_async.manifest import read_rows
from kling_async.testing import ScriptedTransport

pytestmark = pytest.mark.anyio

JOB = Job(prompt="She turns", image="https://pictures.example/face.png")


class Colour(str, enum.Enum):  # noqa: UP042 -- `StrEnum` prints its value, this does not
    RED = "red"


class Integer:
    """An integer of another library, such as NumPy."""

    def __index__(self) -> int:
        return 8


GOOD: dict[Any, str] = {"a": "a", "7 ": "7 ", "ä": "ä", 7: "7", -1: "-1", Integer(): "8", Colour.RED: "red"}
LONG = {"k" * MAX_KEY_BYTES: "k" * MAX_KEY_BYTES, "ä" * (MAX_KEY_BYTES // 2): "ä" * (MAX_KEY_BYTES // 2)}
BAD: dict[str, Any] = {
    "a truth value": True,
    "a number with a fraction": 7.5,
    "a decimal": Decimal(7),
    "a path": Path("a"),
    "bytes": b"a",
    "a tuple": ("a", 1),
    "empty": "",
    "NUL": "a\0b",
    "a lone surrogate": "a\ud800",
    "too long": "k" * (MAX_KEY_BYTES + 1),
    "too long in UTF-8": "ä" * (MAX_KEY_BYTES // 2 + 1),
    "a number of too many digits": 10**MAX_KEY_BYTES,
    "a number that Python does not print": 10**5_000,
}


class NothingStarts:
    """Rate limiter that refuses every job right before it would be sent."""

    async def acquire(self) -> None:
        raise KlingError("the key was accepted")


async def no_request(request: object) -> Any:
    raise AssertionError(f"a request was sent: {request}")


@asynccontextmanager
async def session(ledger: Ledger) -> AsyncIterator[KlingSession]:
    async with KlingSession(
        "wsk_key", transport=ScriptedTransport(no_request), rate_limiter=NothingStarts(), ledger=ledger
    ) as kling:
        yield kling


async def error_of(kling: KlingSession, jobs: Any) -> None:
    async with kling.batch(jobs) as batch:
        outcome: Outcome = await anext(batch)
    assert outcome.index == 0
    if outcome.error is not None:
        raise outcome.error


async def by_mapping(kling: KlingSession, key: Any) -> None:
    await error_of(kling, {key: JOB})


async def by_pairs(kling: KlingSession, key: Any) -> None:
    await error_of(kling, iter([(key, JOB)]))


async def by_generate(kling: KlingSession, key: Any) -> None:
    await kling.generate(JOB, key=key)


async def by_submit(kling: KlingSession, key: Any) -> None:
    await kling.submit(JOB, key=key)


async def by_service_submit(kling: KlingSession, key: Any) -> None:
    service, refused = JobService(), None
    async with service.open(kling):
        try:
            await service.submit(JOB, key=key)
        except KlingError as error:
            # The block would raise it in a group.
            refused = error
    if refused is not None:
        raise refused


async def by_service_generate(kling: KlingSession, key: Any) -> None:
    service, refused = JobService(), None
    async with service.open(kling):
        try:
            await service.generate(JOB, key=key)
        except KlingError as error:
            refused = error
    if refused is not None:
        raise refused


Door = Callable[[KlingSession, Any], Coroutine[Any, Any, None]]
DOORS: list[Door] = [by_mapping, by_pairs, by_generate, by_submit, by_service_submit, by_service_generate]


def ledger_at(kind: str, folder: Path) -> Ledger:
    return MemoryLedger() if kind == "memory" else SQLiteLedger(folder / "jobs.db")


@pytest.mark.parametrize("key", GOOD | LONG, ids=lambda key: ascii(key)[:20])
def test_good_keys_become_text(key: Any) -> None:
    text = checked_key(key)
    assert type(text) is str
    assert text == (GOOD | LONG)[key]


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_bad_keys_are_refused_alike(door: Door, kind: str, tmp_path: Path) -> None:
    async with session(ledger_at(kind, tmp_path)) as kling:
        said: dict[str, str] = {}
        for name, key in BAD.items():
            with pytest.raises(KlingError) as caught:
                await door(kling, key)
            error = caught.value
            said[name] = type(error).__name__
            assert error.spent is Spent.NO
            if isinstance(error, InvalidJobError):
                (problem,) = error.problems
                assert problem.path == "key"
                assert problem.message.startswith(("expected", "is empty"))
    assert said == dict.fromkeys(BAD, "InvalidJobError")


async def attempt(door: Door, kling: KlingSession, key: object) -> None:
    with suppress(KlingError):
        await door(kling, key)


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_good_keys_are_taken_at_every_door(kind: str, tmp_path: Path) -> None:
    taken: set[str] = set()

    async with session(ledger_at(kind, tmp_path)) as kling:
        kling.add_observer(lambda event: taken.add(event.key))
        for number, door in enumerate(DOORS):
            expected = str(number)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(attempt, door, kling, number)
                while expected not in taken:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
    assert taken == {str(number) for number in range(len(DOORS))}


async def test_number_and_its_digits_are_the_same_key() -> None:
    async with session(MemoryLedger()) as kling, kling.batch([("7", JOB), (7, JOB)]) as batch:
        errors = {outcome.index: outcome.error async for outcome in batch}
    assert isinstance(errors[1], InvalidJobError)
    assert "which an earlier job of the batch has" in str(errors[1])


async def test_refused_key_of_a_batch_names_its_position() -> None:
    jobs: Any = [("a", JOB), (Path("b"), JOB)]
    async with session(MemoryLedger()) as kling, kling.batch(jobs) as batch:
        errors = {outcome.index: str(outcome.error) async for outcome in batch}
    assert "key: expected text or a whole number, got PosixPath (item 1 of the input)" in errors[1]


@pytest.mark.parametrize("name", [name for name in BAD if name != "empty"])
async def test_bad_names_of_batches_are_refused(name: str, tmp_path: Path) -> None:
    async with session(SQLiteLedger(tmp_path / "jobs.db")) as kling:
        for opens in (lambda name: kling.batch([JOB], name=name), lambda name: JobService(batch=name)):
            with pytest.raises(ConfigurationError, match="name of a batch"):
                opens(BAD[name])


async def test_job_service_finds_jobs_by_number() -> None:
    async with session(MemoryLedger()) as kling:
        service = JobService()
        async with service.open(kling):
            await service.submit(JOB, key=7)
            assert (await service.get(7)).key == (await service.get("7")).key == "7"
            for key in BAD.values():
                with pytest.raises(UnknownJobError):
                    await service.get(key)


@pytest.mark.parametrize("name", BAD)
def test_rows_refuse_bad_keys(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_rows(
            [
                {"key": "a", "prompt": "She turns", "image": JOB.image},
                {"key": BAD[name], "prompt": "x", "image": JOB.image},
            ]
        )
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (2, "key")


def test_rows_take_numbers_and_find_repeated_ones() -> None:
    rows = [{"key": key, "prompt": "She turns", "image": JOB.image} for key in (7, "8")]
    assert [key for key, _ in read_rows(rows)] == ["7", "8"]
    with pytest.raises(ManifestError, match="'7' is already the key of row 1"):
        read_rows([*rows, {**rows[0], "key": "7"}])


async def test_workers_and_enqueue_refuse_bad_keys(database: str) -> None:
    ledger = PostgresLedger(database)
    async with session(ledger) as kling:
        for key in BAD.values():
            with pytest.raises(InvalidJobError, match=r"key: (expected|is empty)"):
                await enqueue(ledger, [(key, JOB)])
            with pytest.raises(InvalidJobError):
                await Worker(kling).run_one("", key)
        jobs = cast("Any", [(key, JOB) for key in GOOD | LONG])
        assert await enqueue(ledger, jobs) == len(GOOD | LONG)
        assert sorted(await ledger.keys("", State)) == sorted((GOOD | LONG).values())
