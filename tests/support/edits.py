"""Contract of ledgers whose jobs can get other content, and whose videos can be marked."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kling_async._core.content import Content
from kling_async._core.marks import Mark, Marked
from kling_async.errors import KeyReusedError, LedgerError
from kling_async.ledger import EditableLedger, Entry, State, read_ledger, read_marks, read_steps

OLD, NEW = Content('{"prompt":"a"}'), Content('{"prompt":"b"}')
MODEL = "kwaivgi/kling-v2.1-i2v-pro"
PRICE = Decimal("0.45")


async def check_edits(make: Callable[[], EditableLedger], where: Path | str) -> None:
    """Check the edits of a ledger that is empty and not open yet.

    Args:
        make: Returns the ledger.
        where: File or URL of it.
    """
    ledger = make()
    assert isinstance(ledger, EditableLedger)
    await ledger.open()
    try:
        for key, states in (("saved", [State.COMPLETED, State.DOWNLOADED]), ("failed", [State.FAILED]), ("runs", [])):
            await _sent(ledger, key, states)
        await ledger.claim("n", "saved~1", content=OLD, model=MODEL, at=1.0)
        ledger.unclaim("n", "saved~1")

        kept = await ledger.renew("n", "saved", content=NEW, model=MODEL, at=9.0)
        assert kept is not None
        assert (kept.key, kept.prediction_id, kept.state) == ("saved~2", "p-saved", State.DOWNLOADED)
        assert await ledger.renew("n", "failed", content=NEW, model=MODEL, at=9.0) is None
        with pytest.raises(LedgerError, match="job 'runs' is running"):
            await ledger.renew("n", "runs", content=NEW, model=MODEL, at=9.0)
        with pytest.raises(LedgerError, match="no job 'other' in the batch 'n'"):
            await ledger.renew("n", "other", content=NEW, model=MODEL, at=9.0)

        owner = await ledger.owner("p-saved")
        assert owner is not None
        assert (owner.key, owner.digest, owner.path) == ("saved~2", OLD.digest, "a.mp4")
        assert set(await ledger.known(["p-saved", "p-failed"])) == {"p-saved", "p-failed"}
        # Three were paid for, and the renewed ones are yet to be.
        assert await ledger.spent("n") == 3 * PRICE
        for key, attempt in (("saved", 0), ("failed", 1)):
            with pytest.raises(KeyReusedError):
                await ledger.claim("n", key, content=OLD, model=MODEL, at=10.0)
            row = await ledger.claim("n", key, content=NEW, model=MODEL, at=10.0)
            assert (row.state, row.attempt, row.prediction_id, row.error) == (State.PENDING, attempt, None, None)
            found = await ledger.find("n", key)
            assert found is not None
            assert found[1] == NEW
            about: dict[str, Any] = {"batch": "n", "key": key, "at": 11.0}
            await ledger.record(Entry(**about, state=State.INTENT, attempt=attempt + 1, cost=PRICE))
            await ledger.record(Entry(**about, state=State.SUBMITTED, prediction_id=f"q-{key}"))
        assert await ledger.spent("n") == 5 * PRICE

        await ledger.put_mark("p-saved", Mark.BAD, 5.0)
        await ledger.put_mark("p-saved", Mark.AGAIN, 6.0)
        await ledger.put_mark("q-saved", Mark.GOOD, 7.0)
        await ledger.put_mark("q-failed", Mark.GOOD, 7.0)
        await ledger.put_mark("q-failed", None, 8.0)
    finally:
        await ledger.aclose()
    assert read_marks(where) == {"p-saved": Marked(Mark.AGAIN, 6.0), "q-saved": Marked(Mark.GOOD, 7.0)}
    assert {row.key: row.job for row in read_ledger(where, states=[State.DOWNLOADED])} == {"saved~2": OLD.text}
    ids = [step.prediction_id for step in read_steps(where, key="failed") if step.prediction_id]
    assert (ids[0], ids[-1]) == ("p-failed", "q-failed"), "the former id is in the steps"


async def _sent(ledger: EditableLedger, key: str, states: list[State]) -> None:
    await ledger.claim("n", key, content=OLD, model=MODEL, at=1.0)
    about: dict[str, Any] = {"batch": "n", "key": key, "at": 2.0}
    await ledger.record(Entry(**about, state=State.INTENT, attempt=1, cost=PRICE))
    await ledger.record(Entry(**about, state=State.SUBMITTED, prediction_id=f"p-{key}"))
    for state in states:
        path = "a.mp4" if state is State.DOWNLOADED else None
        await ledger.record(Entry(**about, state=state, path=path, error="no video" if state is State.FAILED else None))
    ledger.unclaim("n", key)
