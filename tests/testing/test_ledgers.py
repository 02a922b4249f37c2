"""`check_ledger`: built-in ledgers satisfy it, and it detects broken ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import attrs
import pytest

from kling_async import KeyReusedError, LedgerError
from kling_async.ledger import Content, Entry, Identity, Known, MemoryLedger, Row, Sender, SQLiteLedger, State
from kling_async.testing import check_ledger

pytestmark = pytest.mark.anyio


async def test_builtin_ledgers_satisfy_contract(tmp_path: Path) -> None:
    await check_ledger(MemoryLedger)
    await check_ledger(lambda: SQLiteLedger(tmp_path / "run.db"))


class NoConflicts(MemoryLedger):
    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        try:
            return await super().claim(batch, key, content=content, model=model, at=at)
        except KeyReusedError:
            return self._rows[batch, key]


class ConflictsChange(MemoryLedger):
    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        try:
            return await super().claim(batch, key, content=content, model=model, at=at)
        except KeyReusedError:
            self._rows[batch, key] = attrs.evolve(self._rows[batch, key], digest=content.digest)
            raise


class OneNamespace(MemoryLedger):
    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        del batch
        return await super().claim("check", key, content=content, model=model, at=at)


class NewRowsAlways(MemoryLedger):
    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        row = await super().claim(batch, key, content=content, model=model, at=at)
        return attrs.evolve(row, state=State.PENDING, attempt=0, fingerprint=None, prediction_id=None)


class AnyMove(MemoryLedger):
    async def record(self, entry: Entry) -> Row:
        try:
            return await super().record(entry)
        except LedgerError:
            row = self._rows.get((entry.batch, entry.key))
            if row is None:
                raise
            return row


class RefusedMovesChange(MemoryLedger):
    async def record(self, entry: Entry) -> Row:
        try:
            return await super().record(entry)
        except LedgerError:
            name = (entry.batch, entry.key)
            if name in self._rows:
                self._rows[name] = attrs.evolve(self._rows[name], error="refused")
            raise


class NeverClaimed(MemoryLedger):
    async def record(self, entry: Entry) -> Row:
        if (entry.batch, entry.key) not in self._rows:
            await self.claim(entry.batch, entry.key, content=Content(""), model="", at=0.0)
        return await super().record(entry)


class ForgetsIds(MemoryLedger):
    async def known(self, prediction_ids: Iterable[str]) -> dict[str, Known]:
        return {}


class ForgetsSenders(MemoryLedger):
    async def put_sender(self, sender: Sender) -> None:
        pass


class KnowsEverything(MemoryLedger):
    async def known(self, prediction_ids: Iterable[str]) -> dict[str, Known]:
        return dict.fromkeys(prediction_ids, Known("f", "model", None))


class AllRows(MemoryLedger):
    async def rows(self, states: Iterable[State]) -> list[Row]:
        return list(self._rows.values()) if states else []


class NoCost(MemoryLedger):
    async def record(self, entry: Entry) -> Row:
        return await super().record(attrs.evolve(entry, cost=None))


class OldRule(MemoryLedger):
    async def identity(self, batch: str, *, ignored: tuple[str, ...] | None = None) -> Identity:
        return attrs.evolve(await super().identity(batch, ignored=ignored), rule=1)


class AnyIgnored(MemoryLedger):
    async def identity(self, batch: str, *, ignored: tuple[str, ...] | None = None) -> Identity:
        found = await super().identity(batch, ignored=None if batch in self._identities else ignored)
        return found if ignored is None else attrs.evolve(found, ignored=ignored)


class IgnoresNothing(MemoryLedger):
    async def identity(self, batch: str, *, ignored: tuple[str, ...] | None = None) -> Identity:
        return attrs.evolve(await super().identity(batch, ignored=ignored), ignored=())


class ForgetsIgnored(MemoryLedger):
    async def ignored_parameters(self) -> list[tuple[str, ...]]:
        return []


class EverySetOfIgnored(MemoryLedger):
    async def ignored_parameters(self) -> list[tuple[str, ...]]:
        return [identity.ignored for identity in self._identities.values()]


class ForgetsDoubts(MemoryLedger):
    async def record(self, entry: Entry) -> Row:
        return await super().record(attrs.evolve(entry, doubt=None, candidates=None))


class SaysItIsDurable(MemoryLedger):
    durable = True

    async def owner(self, prediction_id: str) -> Row | None:
        return next((row for row in self._rows.values() if row.prediction_id == prediction_id), None)


class OwnerForgets(MemoryLedger):
    durable = True


class OwnsEverything(MemoryLedger):
    async def owner(self, prediction_id: str) -> Row | None:
        return next(row for row in self._rows.values() if row.prediction_id)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (NoConflicts, "did not raise KeyReusedError"),
        (ConflictsChange, "a refused `claim` changed the row"),
        (OneNamespace, "KeyReusedError|the same key in two batches"),
        (NewRowsAlways, "`claim` does not give the row that `record` left"),
        (AnyMove, "the move from pending to abandoned did not raise LedgerError"),
        (RefusedMovesChange, "changed the row"),
        (NeverClaimed, "never claimed did not raise LedgerError"),
        (ForgetsIds, "`known` is to give"),
        (KnowsEverything, "`known` is to give"),
        (AllRows, "`rows`"),
        (OldRule, "`identity` of the batch 'check' is"),
        (AnyIgnored, "`identity` with other parameters than the batch's did not raise"),
        (IgnoresNothing, "`identity` of the batch 'ignores' is"),
        (ForgetsIgnored, "`ignored_parameters` is to give"),
        (EverySetOfIgnored, "`ignored_parameters` is to give"),
        (ForgetsDoubts, "a doubt was"),
        (NoCost, "`record` of a submission left"),
        (SaysItIsDurable, "is not there when it is opened again"),
        (ForgetsSenders, "`senders` is to give"),
        (OwnerForgets, "`owner` did not give the row"),
        (OwnsEverything, "`owner` of an unknown id is to be None"),
    ],
)
async def test_contract_check_detects_broken_ledger(broken: type[MemoryLedger], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        await check_ledger(broken)


class ForgetsOtherBatches(SQLiteLedger):
    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        return []


class FindsOwnBatch(SQLiteLedger):
    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        return await super().paid_elsewhere(f"not {batch}", key, digests=digests, any_key=any_key)


class OneRuleOnly(SQLiteLedger):
    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        return await super().paid_elsewhere(batch, key, digests=list(digests)[:1], any_key=any_key)


class AnyKey(SQLiteLedger):
    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        return await super().paid_elsewhere(batch, key, digests=digests, any_key=True)


class OwnKeyOnly(SQLiteLedger):
    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        return await super().paid_elsewhere(batch, key, digests=digests, any_key=False)


class SentOnly(SQLiteLedger):
    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        found = await super().paid_elsewhere(batch, key, digests=digests, any_key=any_key)
        return [row for row in found if row.state.paid]


class KeepsClaims(SQLiteLedger):
    def unclaim(self, batch: str, key: str) -> None:
        del batch, key


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (ForgetsOtherBatches, "that another batch has paid for is to give"),
        (FindsOwnBatch, "that its own batch has paid for is to give"),
        (OneRuleOnly, "that another batch has paid for is to give"),
        (AnyKey, "that another batch has paid for is to give"),
        (OwnKeyOnly, "with any key is to give"),
        (SentOnly, "the second of two claimed jobs is to give"),
        (KeepsClaims, "when the other one was released"),
    ],
)
async def test_contract_check_detects_ledger_that_mistakes_other_batches(
    tmp_path: Path, broken: type[SQLiteLedger], said: str
) -> None:
    with pytest.raises(AssertionError, match=said):
        await check_ledger(lambda: broken(tmp_path / "run.db"))


class LosesNotes(SQLiteLedger):
    def note(self, entry: Entry) -> None:
        del entry


async def test_contract_check_detects_lost_notes(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="what was noted before it was closed"):
        await check_ledger(lambda: LosesNotes(tmp_path / "run.db"))
