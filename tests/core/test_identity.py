"""The identity rule of a batch: the version of the rule by which its digests and derived keys are made."""

from __future__ import annotations

import shutil
import sqlite3
from decimal import Decimal
from pathlib import Path

import attrs
import pytest

from kling_async import EndImage, Job, LedgerError, Model, State
from kling_async._core import content as contents
from kling_async._core.content import Content, Identity, content_of
from kling_async._session.keys import ContentReader
from kling_async.ledger import Entry, MemoryLedger, SQLiteLedger
from support.first_release import BATCH, STATES

pytestmark = pytest.mark.anyio

NEWEST = contents.IDENTITY_VERSION
LATER = NEWEST + 1
JOB = Job(prompt="x", image="https://pictures.example/face.png?signature=1")


@pytest.fixture
def later_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later rule, by which URLs count without their query."""

    def rule(text: str) -> str:
        return text.replace("?signature=1", "")

    monkeypatch.setattr(contents, "RULES", {**contents.RULES, LATER: rule})
    monkeypatch.setattr(contents, "IDENTITY_VERSION", LATER)


async def opened(path: Path) -> SQLiteLedger:
    ledger = SQLiteLedger(path)
    await ledger.open()
    return ledger


def recorded(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as connection:
        found = dict(connection.execute("SELECT name, identity FROM batch"))
    connection.close()
    return found


def test_content_is_made_by_the_rule_of_the_batch(later_rule: None) -> None:
    del later_rule
    digests = [content_of(JOB, str, identity=Identity(rule)).digest for rule in (NEWEST, LATER)]
    assert content_of(JOB, str).digest == digests[1], "by the newest rule"
    assert digests[0] != digests[1]
    with pytest.raises(LedgerError, match=r"later version of kling_async \(identity rule 9\).*upgrade"):
        content_of(JOB, str, identity=Identity(9))


def test_price_and_limits_of_an_own_model_make_no_other_job() -> None:
    """The service's list has another price tomorrow, and the same list would be paid for again."""
    row = Model(
        id="acme/v1",
        image_required=False,
        end_image=EndImage("tail"),
        price_per_5s=Decimal("0.2"),
        source="the list of today",
    )
    same = attrs.evolve(row, price_per_5s=Decimal("0.3"), source="the list of tomorrow", durations=(5, 10, 15))
    others = [attrs.evolve(row, end_image=EndImage("last")), attrs.evolve(row, scale="cfg"), attrs.evolve(row, id="b")]
    digests = {
        rule: [content_of(Job(model=each, prompt="x"), str, identity=Identity(rule)).digest for each in (row, same)]
        for rule in (2, NEWEST)
    }
    assert digests[2][0] != digests[2][1], "a batch of before keeps its rule"
    assert digests[NEWEST][0] == digests[NEWEST][1]
    assert digests[NEWEST][0] not in {content_of(Job(model=each, prompt="x"), str).digest for each in others}


@pytest.mark.usefixtures("later_rule")
async def test_old_batches_keep_their_rule_and_new_ones_take_the_newest(tmp_path: Path) -> None:
    path = Path(shutil.copy(STATES, tmp_path / "run.db"))
    ledger = await opened(path)
    assert [(await ledger.identity(batch)).rule for batch in ("", BATCH, "new", "new")] == [1, 1, LATER, LATER]
    await ledger.claim("claimed", "k", content=Content("d"), model="m", at=0.0)
    await ledger.aclose()
    assert recorded(path) == {"": 1, BATCH: 1, "new": LATER, "claimed": LATER}


async def test_jobs_are_read_by_the_rule_of_their_batch(tmp_path: Path) -> None:
    """Read by the newest rule, the jobs of an old batch would be new jobs, and paid for again."""
    ledger = await opened(Path(shutil.copy(STATES, tmp_path / "run.db")))
    reader = ContentReader(ledger)
    read = [await reader.read(JOB, batch) for batch in (BATCH, "new", BATCH)]
    await ledger.aclose()
    assert read == [content_of(JOB, str, identity=Identity(rule)) for rule in (1, NEWEST, 1)]


async def test_new_batch_keeps_the_rule_when_a_later_one_comes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "run.db"
    ledger = await opened(path)
    assert await ledger.identity("b") == Identity(NEWEST)
    await ledger.claim("claimed", "k", content=Content("d"), model="m", at=0.0)
    await ledger.aclose()
    request.getfixturevalue("later_rule")
    ledger = await opened(path)
    assert [(await ledger.identity(batch)).rule for batch in ("b", "claimed", "new")] == [NEWEST, NEWEST, LATER]
    await ledger.aclose()


async def test_batch_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = await opened(path)
    await ledger.claim("b", "k", content=Content("d"), model="m", at=0.0)
    await ledger.aclose()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE batch SET identity = 7")
    connection.close()
    ledger = await opened(path)
    with pytest.raises(LedgerError, match="batch 'b' was begun by a later version"):
        await ledger.identity("b")
    for key in ("k", "new"):
        with pytest.raises(LedgerError, match="later version"):
            await ledger.claim("b", key, content=Content("d"), model="m", at=0.0)
    assert await ledger.find("b", "new") is None
    # What is known of its jobs is still written down, and other batches are not concerned.
    await ledger.record(Entry(batch="b", key="k", state=State.SKIPPED, at=1.0))
    assert await ledger.identity("other") == Identity(NEWEST)
    await ledger.aclose()


@pytest.mark.usefixtures("later_rule")
async def test_memory_has_the_newest_rule() -> None:
    assert await MemoryLedger().identity("b") == Identity(LATER)


async def test_name_that_the_ledger_cannot_hold_is_refused(tmp_path: Path) -> None:
    ledger = await opened(tmp_path / "run.db")
    with pytest.raises(LedgerError, match="no text that the ledger can hold"):
        await ledger.identity("\ud800")
    await ledger.aclose()
    with pytest.raises(LedgerError, match="not open"):
        await ledger.identity("b")
