"""Refunds that the audit records while other processes write."""

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
from kling_async.cli.audit import _Bill, _Job, _record_refund
from kling_async.errors import LedgerError
from kling_async.ledger import Entry, Row, SQLiteLedger, State
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

JOB = Job(prompt="Waves", image="https://pictures.example/face.png")
USD = Decimal("0.25")
SENT_AGAIN = Entry(batch="spring", key="a", state=State.INTENT, at=2.0, attempt=2, cost=USD)


class Moving(SQLiteLedger):
    """A ledger in which a job changes right after it was read."""

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


async def after_refund(path: Path, *, then: Entry | None = None, refuses: bool = False) -> Row:
    """Record the refund of a failed job and return its row."""
    ledger = Moving(path)
    await ledger.open()
    try:
        row = await ledger.claim("spring", "a", content=content_of(JOB, str), model=JOB.model, at=0.0)
        paid = Entry(batch="spring", key="a", state=State.INTENT, at=1.0, attempt=1, cost=USD)
        ended = Entry(batch="spring", key="a", state=State.FAILED, at=1.0, prediction_id="p1")
        for entry in (paid, ended):
            row = await ledger.record(entry)
        ledger.then, ledger.refuses = then, refuses
        bill, kling = _Bill(), SimpleNamespace(_engine=SimpleNamespace(ledger=ledger))
        bill._lines["p1"] = [Billing(id="b1", kind="refund", price=USD, prediction_id="p1")]
        untyped: Any = kling
        with anyio.fail_after(PATIENCE_S):
            await _record_refund(untyped, _Job(row, {"p1": 1.0}), bill)
        found = await ledger.find("spring", "a")
        assert found is not None
        return found[0]
    finally:
        await ledger.aclose()


async def test_refund_is_recorded(tmp_path: Path) -> None:
    row = await after_refund(tmp_path / "run.db")
    assert (row.state, row.refunded, row.updated_at) == (State.FAILED, USD, 1.0)


async def test_refund_is_not_recorded_for_job_sent_again_meanwhile(tmp_path: Path) -> None:
    row = await after_refund(tmp_path / "run.db", then=SENT_AGAIN)
    assert (row.version, row.refunded) == ((State.INTENT, 2), None)


async def test_ledger_error_while_recording_refund_propagates(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="the disk is full"):
        await after_refund(tmp_path / "run.db", refuses=True)
