"""What the audit writes down, while others write too."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from kling_async import Job
from kling_async._core.account import Billing
from kling_async._core.content import Content, content_of
from kling_async.cli.audit import _Bill, _Job, _note
from kling_async.errors import LedgerError
from kling_async.ledger import Entry, Row, SQLiteLedger, State

pytestmark = pytest.mark.anyio

JOB = Job(prompt="Waves", image="https://pictures.example/face.png")
USD = Decimal("0.28")
SENT_AGAIN = Entry(batch="spring", key="a", state=State.INTENT, at=2.0, attempt=2, cost=USD)


class Moving(SQLiteLedger):
    """A job in it moves on when it has been read."""

    then: Entry | None = None
    refuses = False

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        found = await super().find(batch, key)
        if self.then is not None:
            step, self.then = self.then, None
            await super().record(step)
        return found

    async def record(self, entry: Entry) -> Row:
        if self.refuses:
            raise LedgerError("the disk is full")
        return await super().record(entry)


async def noted(path: Path, *, then: Entry | None = None, refuses: bool = False) -> Row:
    """The row of a failed job after the refund of its prediction was noted."""
    ledger = Moving(path)
    await ledger.open()
    try:
        row = await ledger.claim("spring", "a", content=content_of(JOB, str), model=JOB.model, at=0.0)
        paid = Entry(batch="spring", key="a", state=State.INTENT, at=1.0, attempt=1, cost=USD)
        ended = Entry(batch="spring", key="a", state=State.FAILED, at=1.0, prediction_id="p1")
        for entry in (paid, ended):
            row = await ledger.record(entry)
        ledger.then, ledger.refuses = then, refuses
        bill, kling = _Bill(), SimpleNamespace(account=SimpleNamespace(ledger=ledger))
        bill._lines["p1"] = [Billing(id="b1", kind="refund", price=USD, prediction_id="p1")]
        untyped: Any = kling
        with anyio.fail_after(10):
            await _note(untyped, _Job(row, {"p1": 1.0}), bill)
        found = await ledger.find("spring", "a")
        assert found is not None
        return found[0]
    finally:
        await ledger.aclose()


async def test_what_was_given_back_is_noted(tmp_path: Path) -> None:
    row = await noted(tmp_path / "run.db")
    assert (row.state, row.refunded, row.updated_at) == (State.FAILED, USD, 1.0)


async def test_a_job_that_is_sent_again_meanwhile_stays_so(tmp_path: Path) -> None:
    row = await noted(tmp_path / "run.db", then=SENT_AGAIN)
    assert (row.version, row.refunded) == ((State.INTENT, 2), None)


async def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="the disk is full"):
        await noted(tmp_path / "run.db", refuses=True)
