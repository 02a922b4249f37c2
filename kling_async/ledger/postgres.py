"""The shared ledger: a PostgreSQL database, one account of it written by any number of workers.

Every step is fenced: it is written only when the job is this worker's, at this attempt. A worker owns what it has in
hand as long as its lease runs, on the database's clock; when it ends, others free its jobs, and follow or settle what
it had sent. Steps are committed through one connection, as many together as have arrived meanwhile.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core import content as contents
from kling_async._core.content import Content, checked_identity
from kling_async._core.states import ENDED, RELEASED, SENDABLE, Entry, Row, State
from kling_async.errors import ConfigurationError, KeyReusedError, LedgerError
from kling_async.ledger import _notes as notes
from kling_async.ledger import _tables as tables

from ._desk import Admission, Connection, Desk, Step, Work, lease_ended, name_of, not_ours
from ._link import Address, ask
from ._tables import Line, keeps_slot, line_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from kling_async._core.budget import Cap
    from kling_async._core.catalogue import Level
    from kling_async._core.prediction import Prediction

    from ._notes import Told

__all__ = ["BatchTally", "PostgresLedger", "WorkerTally"]

CHUNK = 2_000
"""New jobs that are written by one statement."""


@attrs.frozen
class BatchTally:
    """The jobs of a batch, counted.

    Attributes:
        batch: The batch's name.
        states: How many there are in each state.
        spent: USD of them, by the price list.
    """

    batch: str
    states: dict[State, int]
    spent: Decimal


@attrs.frozen
class WorkerTally:
    """A worker, or a session, that has the ledger open.

    Attributes:
        name: Host and process.
        lease: Seconds until its lease ends; negative when it ended.
        jobs: How many jobs it has in hand.
    """

    name: str
    lease: float
    jobs: int


class PostgresLedger:
    """A ledger in a PostgreSQL database, which many processes write together. Needs the extra `postgres`.

    Args:
        url: `postgresql://user:password@host/database`. Tables named `kling_...` are made in it when they are not
            there. The password shows nowhere.
        account: A name of yours for the account on the service: those who share it share its slots and its rate, and
            settle their doubts together. Keys of two accounts at the service need two names.
        lease: Seconds after which the jobs of a worker that is not heard of are others'.
        poll: Seconds between two looks for news, for when no notification comes through.
        patience: Seconds that a step waits for a database that cannot be reached.
        runs: Seconds after its submission in which a job in doubt takes one of the account's slots.

    Raises:
        ConfigurationError: The URL cannot be read, or a number makes no sense.
    """

    durable = True

    def __init__(
        self,
        url: str,
        *,
        account: str = "default",
        lease: float = 60.0,
        poll: float = 5.0,
        patience: float = 60.0,
        runs: float = 1800.0,
    ) -> None:
        for name, seconds in (("lease", lease), ("poll", poll), ("patience", patience), ("runs", runs)):
            if not seconds > 0:
                raise ConfigurationError(f"{name}: expected a positive number of seconds, got {seconds!r}")
        self.address = Address(url)
        self.account = account
        self._desk = Desk(self.address, account, lease=lease, poll=poll, patience=patience, runs=runs)
        # Identity rules of batches. What is recorded never changes.
        self._identities: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<PostgresLedger {self.address}, account {self.account!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PostgresLedger) and (other.address, other.account) == (self.address, self.account)

    def __hash__(self) -> int:
        return hash((self.address, self.account))

    async def open(self) -> None:
        """Connect, bring the tables up to date, and free what workers that are gone have left.

        Raises:
            LedgerError: The database cannot be reached or written, or a later version made its tables.
        """
        self._identities.clear()
        await self._desk.open()

    # What every ledger does

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """The row of a job, made when it is new, and in hand. While another worker has it in hand, this waits.

        Raises:
            LedgerError: It cannot be written.
            KeyReusedError: The key names a job with other content.
        """
        _storable_names(batch, key, model)
        await self.identity(batch)
        digest = content.digest

        def change(line: Line | None) -> Line | None:
            if line is None:  # pragma: no cover -- it was just made
                raise LedgerError(f"job {key} cannot be made", key=key)
            if line.row.digest != digest:
                raise KeyReusedError(key)
            if line.owner is None and line.row.state not in _DONE:
                return attrs.evolve(line, owner=self._desk.me)
            return line

        while True:
            news = self._desk.news
            line: Line = await self._desk.ask(lambda end: Step(end, (batch, key), change, new=(content, model, at)))
            if line.owner in {None, self._desk.me} or line.row.state in _ACCEPTED:
                return line.row
            await self._desk.hear(news)

    async def identity(self, batch: str, *, connection: Connection | None = None) -> int:
        """Return the version of the rule that a batch's digests and keys are made by; a new batch gets the newest.

        Args:
            batch: Name of the batch.
            connection: Connection in whose transaction to read and record it, instead of one of the ledger's own.

        Raises:
            LedgerError: It cannot be recorded, or a later version began the batch.
        """
        _storable_names(batch)

        async def work(connection: Connection) -> int:
            found = await ask(connection, tables.IDENTITY, [self.account, batch])
            if not found:
                new = [self.account, batch, contents.IDENTITY_VERSION]
                found = await ask(connection, tables.BEGIN_BATCH, new)
            return int(found[0][0])

        if connection is not None:
            await self._desk.check_version(connection)
            return checked_identity(await work(connection), batch)
        if batch not in self._identities:
            self._identities[batch] = await self._desk.do(work)
        return checked_identity(self._identities[batch], batch)

    def unclaim(self, batch: str, key: str) -> None:
        """The job is not going to be submitted now: others may take it."""
        # What was in hand when it was closed was handed over.
        if self._desk.is_open:
            self._desk.put(Step(None, (batch, key), self._freed, known=True))

    def _freed(self, line: Line | None) -> Line | None:
        if line is None or name_of(line) in self._desk.held or line.row.state is State.SUBMITTED:
            return line
        return self._let_go(line)

    def _let_go(self, line: Line, after: float = 0.0) -> Line:
        """The line out of anybody's hand; an intent is in doubt: what came of it could not be written down."""
        if line.row.state is State.INTENT:
            self._desk.former[name_of(line)] = line.row.attempt
        state = RELEASED.get(line.row.state, line.row.state)
        row = attrs.evolve(line.row, state=state)
        return attrs.evolve(line, row=row, owner=None, slot=state.open, wait=after)

    async def record(self, entry: Entry) -> Row:
        """Write one step down; return when it is committed, with the row that it left.

        Raises:
            LedgerError: It cannot be written, the move is not legal, or the job is another worker's now.
        """
        line: Line = await self._desk.ask(lambda end: self._step(end, entry))
        return line.row

    def note(self, entry: Entry) -> None:
        """Write one step down with the next group."""
        self._desk.put(self._step(None, entry))

    def _step(self, end: asyncio.Future[Any] | None, entry: Entry) -> Step:
        return Step(end, (entry.batch, entry.key), lambda line: self._after(line, entry), entry)

    def _after(self, line: Line | None, entry: Entry) -> Line:
        """The line as a step leaves it.

        Raises:
            LedgerError: The move is not legal, or not ours.
        """
        if line is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        mine = line.owner == self._desk.me
        if entry.state is State.INTENT and not (mine and self._desk.live):
            raise lease_ended(entry.key)
        if not mine and line.owner is not None and not self._late(line, entry):
            raise not_ours(entry.key)
        try:
            row = line.row.after(_storable(entry))
        except ValueError as error:
            raise LedgerError(str(error), key=entry.key, prediction_id=entry.prediction_id) from None
        # Who records an id watches it; a doubt that stays one is left to whoever takes it.
        owner = line.owner or (self._desk.me if row.state is State.SUBMITTED else None)
        if row.state.ended and (entry.batch, entry.key) not in self._desk.held:
            owner = None
        return attrs.evolve(line, row=row, owner=owner, slot=keeps_slot(line, row.state))

    def _late(self, line: Line, entry: Entry) -> bool:
        """Whether it is the answer to a request of ours that came when our lease had ended: nobody knows better."""
        name = (entry.batch, entry.key)
        return (
            entry.state is State.SUBMITTED
            and (line.row.state.in_doubt or line.row.state is State.ABANDONED)
            and self._desk.former.get(name) == line.row.attempt
        )

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """The row of a job with its content, or None."""
        query = f"SELECT {tables.LINE} FROM kling_job j WHERE account = %s AND batch = %s AND key = %s"  # noqa: S608 -- our names

        async def work(connection: Connection) -> tuple[Row, Content] | None:
            found = await ask(connection, query, [self.account, batch, key])
            if not found:
                return None
            line = line_of(found[0])
            ((_, text, files),) = await ask(connection, tables.CONTENT, [[line.id]])
            return line.row, Content(text, files)

        found: tuple[Row, Content] | None = await self._desk.do(work)
        return found

    async def owner(self, prediction_id: str) -> Row | None:
        """The row of the job that the prediction is of, or None."""
        found = await self._select("prediction_id = %s", prediction_id)
        return found[0] if found else None

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """All rows of the account in these states, of every batch and worker, by the time of their last step."""
        return await self._select("state = ANY(%s) ORDER BY updated_at", [state.value for state in states])

    async def _select(self, condition: str, value: object) -> list[Row]:
        query = f"SELECT {tables.LINE} FROM kling_job j WHERE account = %s AND {condition}"  # noqa: S608 -- our names
        found = await self._desk.read(query, [self.account, value])
        return [line_of(values).row for values in found]

    async def left(self, states: Iterable[State], batch: str | None) -> list[Row]:
        """The rows in these states, of a batch or of all, that were in nobody's hand; they are in ours from now on."""
        values = {"account": self.account, "batch": batch, "states": [state.value for state in states]}

        async def work(connection: Connection) -> list[Line]:
            await self._desk.alive(connection)
            found = await ask(connection, tables.TAKE_OVER, {**values, "owner": self._desk.me})
            return [line_of(line) for line in found]

        lines: list[Line] = await self._desk.ask(lambda end: Work(end, work, self._desk.in_hand))
        return sorted((line.row for line in lines), key=lambda row: row.updated_at)

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """The keys of a batch's jobs in these states, those submitted first before the others: they expire first."""
        query = (
            "SELECT key FROM kling_job WHERE account = %s AND batch = %s AND state = ANY(%s) "
            "ORDER BY submitted_at NULLS LAST, updated_at, id"
        )
        found = await self._desk.read(query, [self.account, batch, [state.value for state in states]])
        return [key for (key,) in found]

    async def spent(self, batch: str | None) -> Decimal:
        """USD that a batch, or everything, has cost so far by the price list, less what was given back."""
        query = (
            "SELECT sum(coalesce(spent, 0) - coalesce(refunded, 0)) FROM kling_job "
            "WHERE account = %s AND batch = coalesce(%s, batch)"
        )
        ((spent,),) = await self._desk.read(query, [self.account, batch])
        return spent or Decimal(0)

    async def uploaded(self, digest: str, now: float) -> str | None:
        """The URL of an image that was uploaded and is still there at that time, or None."""
        query = "SELECT url FROM kling_upload WHERE account = %s AND digest = %s AND expires_at > %s"
        found = await self._desk.read(query, [self.account, digest, now])
        return found[0][0] if found else None

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """An image was uploaded; it is there until that time. Written down with what comes next."""
        put = (
            "INSERT INTO kling_upload VALUES (%s, %s, %s, %s) ON CONFLICT (account, digest) "
            "DO UPDATE SET url = excluded.url, expires_at = excluded.expires_at"
        )
        values = [self.account, digest, _text(url), expires_at]
        self._desk.put(Work(None, lambda connection: ask(connection, put, values)))

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        ids = [_text(id_) for id_ in prediction_ids]
        found = await self._desk.read(tables.KNOWN, {"account": self.account, "ids": ids})
        return {id_: (sent, model) for id_, sent, model in found}

    async def aclose(self) -> None:
        """Commit what is left, and hand over what is in hand: others follow it at once."""
        await self._desk.aclose()

    # What workers share beyond that

    async def admit(
        self, batch: str, key: str, level: Level, price: Decimal | None = None, caps: Sequence[Cap] = ()
    ) -> None:
        """Return when the account has a slot for a job in hand, lets one more start, and there is money for it.

        Args:
            batch: The batch's name.
            key: The job's name.
            level: What the account permits, all of its workers together.
            price: USD that the job costs.
            caps: What may be spent, by all workers together. All of a batch's rows are added up for it.

        Raises:
            LedgerError: The job is in another worker's hand.
            BudgetExceededError: There is no money for it.
        """
        while True:
            news = self._desk.news
            if await self._desk.ask(lambda end: Admission(end, (batch, key), level, price, tuple(caps))):
                return
            await self._desk.hear(news)

    def fence(self, batch: str, key: str) -> None:
        """Make sure, right before a paid request, that the job is still in hand.

        Raises:
            LedgerError: It may not be: the lease is about to end.
        """
        self._desk.fence((batch, key))

    def tell(self, prediction: Prediction, token_hash: str | None) -> None:
        """Let the account's other sessions know what a webhook told this one. What gets lost is read by them."""
        note = notes.written(self._desk.me, prediction, token_hash)
        if note is not None:
            self._desk.put(Work(None, lambda connection: self._desk.tell(connection, note)))

    async def told(self) -> list[Told]:
        """What webhooks have told other sessions since this was asked; waits for some, at most as long as `poll`."""
        return await self._desk.told()

    async def take(
        self, limit: int, level: Level, *, unsaved: bool = False, failures: int = 0
    ) -> list[tuple[Row, Content]]:
        """Jobs for a worker: what was left running or in doubt, and new ones as far as the account lets them start.

        Each is to be given back.

        Args:
            limit: How many at most.
            level: What the account permits, all of its workers together.
            unsaved: Whether completed jobs whose videos nobody has saved are wanted too.
            failures: Of how many predictions, failed by the service's own fault, a job is wanted all the same.
        """
        values = {**self._desk.limits(level), "failures": failures}
        left = [tables.ADOPT]
        if unsaved:
            left.append(tables.ADOPT_UNSAVED)
        if failures:
            left.append(tables.ADOPT_FAILED)

        def taken(result: tuple[list[Line], dict[int, Content]]) -> None:
            self._desk.in_hand(result[0])
            self._desk.held |= {name_of(line) for line in result[0]}

        async def work(connection: Connection) -> tuple[list[Line], dict[int, Content]]:
            found: list[tuple[Any, ...]] = []
            if not await self._desk.alive(connection):
                return [], {}
            for query in left:
                found += await ask(connection, query, {**values, "owner": self._desk.me, "limit": limit - len(found)})
            if len(found) < limit:
                await ask(connection, tables.GATE, [self.account])
                found += await ask(
                    connection, tables.CLAIM, {**values, "owner": self._desk.me, "limit": limit - len(found)}
                )
            lines = sorted((line_of(line) for line in found), key=lambda line: line.id)
            contents = await ask(connection, tables.CONTENT, [[line.id for line in lines]])
            return lines, {id_: Content(text, files) for id_, text, files in contents}

        lines, contents = await self._desk.ask(lambda end: Work(end, work, taken))
        return [(line.row, contents[line.id]) for line in lines]

    def give_back(
        self, batch: str, key: str, *, running: bool = False, again: float | None = None, error: str | None = None
    ) -> None:
        """A worker is done with a job that it took.

        Args:
            batch: The batch's name.
            key: The job's name.
            running: Whether its prediction runs and is watched: then it stays in hand until it ends.
            again: Seconds until a worker may take it again, when it has not ended; None is never, unless it was sent.
            error: Why it was not sent.
        """
        self._desk.held.discard((batch, key))
        if running:
            return

        def change(line: Line | None) -> Line | None:
            if line is None:
                return None
            if line.row.state.unsent:
                state = State.REJECTED if again is None else State.PENDING
                row = attrs.evolve(line.row, state=state, error=None if error is None else _text(error))
                line = attrs.evolve(line, row=row)
            return self._let_go(line, again or 0.0)

        self._desk.put(Step(None, (batch, key), change, known=True))

    async def enqueue(
        self,
        batch: str,
        jobs: Sequence[tuple[str, Content, str]],
        *,
        at: float,
        connection: Connection | None = None,
    ) -> list[str]:
        """Write new jobs down for workers to take.

        Args:
            batch: The batch's name.
            jobs: Key, content and model of each.
            at: Seconds since the epoch.
            connection: Do it in the transaction of this connection, and not in one of the ledger's own.

        Returns:
            The keys of those that were new.

        Raises:
            LedgerError: They cannot be written; then none is.
            KeyReusedError: A key names a job with other content; then none is written.
        """
        for key, _, model in jobs:
            _storable_names(batch, key, model)
        await self.identity(batch, connection=connection)

        async def work(connection: Connection) -> list[str]:
            new: list[str] = []
            for start in range(0, len(jobs), CHUNK):
                some = {(batch, key): (content, model, at) for key, content, model in jobs[start : start + CHUNK]}
                values = {**tables.columns(some), "account": self.account, "owner": None}
                new += [key for _, _, key in await ask(connection, tables.INSERT, values)]
                others = await ask(connection, tables.OTHERS, values)
                if others:
                    raise KeyReusedError(others[0][0])
            await self._desk.tell(connection)
            return new

        if connection is not None:
            return await work(connection)
        new: list[str] = await self._desk.do(work)
        return new

    async def analyze(self) -> None:
        """Tell the database to look at its tables: after many new jobs its plans are made for other ones."""
        await self._desk.read("ANALYZE kling_job, kling_content", [])

    async def outcome(self, batch: str, key: str) -> Row:
        """The row of a job when it has ended, whoever works on it. Wrap it in a timeout.

        Raises:
            LedgerError: There is no such job.
        """
        while True:
            news = self._desk.news
            found = await self.find(batch, key)
            if found is None:
                raise LedgerError(f"the ledger has no job {key!r} in the batch {batch!r}", key=key, advice="enqueue it")
            if found[0].state.ended:
                return found[0]
            await self._desk.hear(news)

    async def tally(self) -> tuple[list[BatchTally], list[WorkerTally]]:
        """The jobs of the account by batch and state, and who works on them besides us."""
        counts = await self._desk.read(tables.TALLY, [self.account])
        workers = await self._desk.read(tables.WORKERS, [self.account, self._desk.me])
        batches = [
            BatchTally(
                batch,
                {State(state): count for name, state, count, _ in counts if name == batch},
                sum((spent for name, _, _, spent in counts if name == batch), Decimal(0)),
            )
            for batch in sorted({name for name, *_ in counts})
        ]
        return batches, [WorkerTally(*worker) for worker in workers]

    @property
    def news(self) -> asyncio.Event:
        """Is set when something has moved, here or in another process; then there is another one."""
        return self._desk.news

    async def hear(self, news: asyncio.Event) -> None:
        """Wait for news, at most as long as `poll`: a notification may have been lost."""
        await self._desk.hear(news)


_DONE = ENDED - SENDABLE
_ACCEPTED = _DONE | {State.SUBMITTED}
_LARGEST = 2**62


def _text(text: str) -> str:
    """The text without what the database cannot hold: lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _storable_names(*names: str) -> None:
    for name in names:
        if _text(name) != name:
            raise LedgerError(f"{name!r} is no text that the ledger can hold", key=ascii(name))


def _storable(entry: Entry) -> Entry:
    """The step without what the database cannot hold of what the service said."""
    names = ("prediction_id", "output", "error", "path")
    changed: dict[str, Any] = {
        name: _text(value) for name in names if (value := getattr(entry, name)) is not None and _text(value) != value
    }
    if entry.code is not None and abs(entry.code) > _LARGEST:
        changed["code"] = None
    return attrs.evolve(entry, **changed) if changed else entry
