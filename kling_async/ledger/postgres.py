"""The shared ledger: a PostgreSQL database, one account of it written by any number of workers.

Every step is fenced: it is written only when the job is this worker's, at this attempt. A worker owns what it has in
hand as long as its lease runs, on the database's clock; when it ends, others free its jobs, and follow or settle what
it had sent. Steps are committed through one connection, as many together as have arrived meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import psycopg

from kling_async._core.catalogue import Level
from kling_async._core.content import Content
from kling_async._core.errors import ConfigurationError, KeyReusedError, LedgerError
from kling_async._core.states import OPEN, Entry, Row, State
from kling_async.ledger import _tables as tables
from kling_async.ledger._link import Address, Link, ask
from kling_async.ledger._tables import Line, keeps_slot, line_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

log = logging.getLogger("kling_async")

GROUP = 512
"""Steps that are committed together at most."""
CHUNK = 2_000
"""New jobs that are written by one statement."""
OPENING = 5.0
"""Seconds that a database is tried for when the ledger is opened."""
MARGIN = 0.1
"""Part of a lease, at its end, in which nothing is sent any more."""

_Connection: TypeAlias = "psycopg.AsyncConnection[tuple[Any, ...]]"
_Name: TypeAlias = tuple[str, str]
_Change: TypeAlias = "Callable[[Line | None], Line | None]"


@attrs.define(eq=False)
class _Asked:
    """Something for the connection, and who waits for it; nobody waits for a note."""

    future: asyncio.Future[Any] | None


@attrs.define(eq=False)
class _Step(_Asked):
    """A step of one job.

    Attributes:
        name: The job.
        change: Its line as the step leaves it; refuses by raising, and then nothing changes.
        entry: What goes into the history of steps.
        new: Content, model and time of a job that is to be made when there is none.
            known: Whether it is about what is in hand, and nothing else.
    """

    name: _Name
    change: _Change
    entry: Entry | None = None
    new: tuple[Content, str, float] | None = None
    known: bool = False


@attrs.define(eq=False)
class _Admission(_Asked):
    """Somebody who wants one of the account's slots for a job in hand."""

    name: _Name
    level: Level


@attrs.define(eq=False)
class _Work(_Asked):
    """Anything else, in a transaction of its own; `done` is told what it gave, whether or not anybody waits."""

    work: Callable[[_Connection], Awaitable[Any]]
    done: Callable[[Any], None] | None = None


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
        self._lease = lease
        self._poll = poll
        self._patience = patience
        self._runs = runs
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._link = Link(self.address, name="kling_async", answer_within=max(1.0, min(10.0, lease / 2)))
        self._ear = Link(self.address, name="kling_async news", answer_within=10.0)
        self._queue: deque[_Asked] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._open = False
        self._pid = os.getpid()
        self._news = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        """Be a worker that has nothing in hand."""
        self._me = uuid.uuid4().hex
        # Lines in hand, as they stand in the database: nobody else writes them.
        self._lines: dict[_Name, Line] = {}
        # Of these: what a worker took, and gives back itself.
        self._held: set[_Name] = set()
        self._live = True
        self._lease_ends = 0.0

    def __repr__(self) -> str:
        return f"<PostgresLedger {self.address}, account {self.account!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PostgresLedger) and (other.address, other.account) == (self.address, self.account)

    def __hash__(self) -> int:
        return hash((self.address, self.account))

    async def open(self) -> None:
        """Connect, bring the tables up to date, and take up what workers that are gone have left.

        Raises:
            LedgerError: The database cannot be reached or written, or a later version made its tables.
        """
        self._forget()
        self._former: dict[_Name, int] = {}
        self._pid = os.getpid()
        try:
            await self._link.run(self._migrate, patience=min(OPENING, self._patience))
            self._open = True
            await self._beat()
        except BaseException:
            self._open = False
            await self._link.aclose()
            raise
        self._tasks = [
            asyncio.create_task(self._keep_alive(), name="kling-lease"),
            asyncio.create_task(self._listen(), name="kling-news"),
        ]

    # What every ledger does

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """The row of a job, made when it is new, and in hand. While another worker has it in hand, this waits.

        Raises:
            LedgerError: It cannot be written.
            KeyReusedError: The key names a job with other content.
        """
        _storable_names(batch, key, model)
        digest = content.digest

        def change(line: Line | None) -> Line | None:
            if line is None:  # pragma: no cover -- it was just made
                raise LedgerError(f"job {key} cannot be made", key=key)
            if line.row.digest != digest:
                raise KeyReusedError(key)
            if line.owner is None and line.row.state not in _DONE:
                return attrs.evolve(line, owner=self._me)
            return line

        while True:
            news = self._news
            line: Line = await self._ask(lambda end: _Step(end, (batch, key), change, new=(content, model, at)))
            if line.owner in {None, self._me} or line.row.state in _ACCEPTED:
                return line.row
            await self.hear(news)

    def unclaim(self, batch: str, key: str) -> None:
        """The job is not going to be submitted now: others may take it."""
        self._put(_Step(None, (batch, key), self._freed, known=True))

    def _freed(self, line: Line | None) -> Line | None:
        if line is None or _name(line) in self._held or line.row.state in _FOLLOWED:
            return line
        return _free(line)

    async def record(self, entry: Entry) -> Row:
        """Write one step down; return when it is committed, with the row that it left.

        Raises:
            LedgerError: It cannot be written, the move is not legal, or the job is another worker's now.
        """
        line: Line = await self._ask(lambda end: self._step(end, entry))
        return line.row

    def note(self, entry: Entry) -> None:
        """Write one step down with the next group."""
        self._put(self._step(None, entry))

    def _step(self, end: asyncio.Future[Any] | None, entry: Entry) -> _Step:
        return _Step(end, (entry.batch, entry.key), lambda line: self._after(line, entry), entry)

    def _after(self, line: Line | None, entry: Entry) -> Line:
        """The line as a step leaves it.

        Raises:
            LedgerError: The move is not legal, or not ours.
        """
        if line is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        mine = line.owner == self._me
        if entry.state is State.INTENT and not (mine and self._live):
            raise _NotOursError(f"the lease on job {entry.key} has ended", key=entry.key, advice=_LEASE)
        if not mine and line.owner is not None and not self._late(line, entry):
            raise _NotOursError(f"job {entry.key} is in another worker's hand", key=entry.key, advice=_LEASE)
        try:
            row = line.row.after(_storable(entry))
        except ValueError as error:
            raise LedgerError(str(error), key=entry.key, prediction_id=entry.prediction_id) from None
        owner = line.owner or (self._me if row.state in OPEN else None)
        if row.state in _ENDED and (entry.batch, entry.key) not in self._held:
            owner = None
        return attrs.evolve(line, row=row, owner=owner, slot=keeps_slot(line, row.state))

    def _late(self, line: Line, entry: Entry) -> bool:
        """Whether it is the answer to a request of ours that came when our lease had ended: nobody knows better."""
        name = (entry.batch, entry.key)
        return (
            entry.state is State.SUBMITTED
            and line.row.state in {State.INTENT, State.UNCERTAIN}
            and self._former.get(name) == line.row.attempt
        )

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """The row of a job with its content, or None."""
        query = f"SELECT {tables.LINE} FROM kling_job j WHERE account = %s AND batch = %s AND key = %s"  # noqa: S608 -- our names

        async def work(connection: _Connection) -> tuple[Row, Content] | None:
            found = await ask(connection, query, [self.account, batch, key])
            if not found:
                return None
            line = line_of(found[0])
            ((_, text, files),) = await ask(connection, tables.CONTENT, [[line.id]])
            return line.row, Content(text, files)

        found: tuple[Row, Content] | None = await self._do(work)
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
        found = await self._read(query, [self.account, value])
        return [line_of(values).row for values in found]

    async def left(self, states: Iterable[State], batch: str | None) -> list[Row]:
        """The rows in these states, of a batch or of all, that were in nobody's hand; they are in ours from now on."""
        values = {"account": self.account, "batch": batch, "states": [state.value for state in states]}

        async def work(connection: _Connection) -> list[Line]:
            await self._alive(connection)
            found = await ask(connection, tables.TAKE_OVER, {**values, "owner": self._me})
            return [line_of(line) for line in found]

        lines: list[Line] = await self._ask(lambda end: _Work(end, work, self._in_hand))
        return sorted((line.row for line in lines), key=lambda row: row.updated_at)

    def _in_hand(self, lines: list[Line]) -> None:
        self._lines |= {_name(line): line for line in lines}

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """The keys of a batch's jobs in these states, those submitted first before the others: they expire first."""
        query = (
            "SELECT key FROM kling_job WHERE account = %s AND batch = %s AND state = ANY(%s) "
            "ORDER BY submitted_at NULLS LAST, updated_at, id"
        )
        found = await self._read(query, [self.account, batch, [state.value for state in states]])
        return [key for (key,) in found]

    async def spent(self, batch: str | None) -> Decimal:
        """USD that a batch, or everything, has cost so far by the price list, less what was given back."""
        query = (
            "SELECT sum(coalesce(spent, 0) - coalesce(refunded, 0)) FROM kling_job "
            "WHERE account = %s AND batch = coalesce(%s, batch)"
        )
        ((spent,),) = await self._read(query, [self.account, batch])
        return spent or Decimal(0)

    async def uploaded(self, digest: str, now: float) -> str | None:
        """The URL of an image that was uploaded and is still there at that time, or None."""
        query = "SELECT url FROM kling_upload WHERE account = %s AND digest = %s AND expires_at > %s"
        found = await self._read(query, [self.account, digest, now])
        return found[0][0] if found else None

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """An image was uploaded; it is there until that time. Written down with what comes next."""
        put = (
            "INSERT INTO kling_upload VALUES (%s, %s, %s, %s) ON CONFLICT (account, digest) "
            "DO UPDATE SET url = excluded.url, expires_at = excluded.expires_at"
        )
        values = [self.account, digest, _text(url), expires_at]
        self._put(_Work(None, lambda connection: ask(connection, put, values)))

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        query = "SELECT prediction_id, fingerprint, model FROM kling_job WHERE account = %s AND prediction_id = ANY(%s)"
        found = await self._read(query, [self.account, [_text(id_) for id_ in prediction_ids]])
        return {id_: (sent, model) for id_, sent, model in found}

    async def aclose(self) -> None:
        """Commit what is left, and hand over what is in hand: others follow it at once."""
        if not self._open:
            return
        try:
            await self._do(self._hand_over)
        except LedgerError as error:
            log.warning("the jobs in hand are others' when the lease ends: %s", error.message)
        finally:
            self._open = False
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._flushing is not None:
                await self._flushing
            await self._link.aclose()

    async def _hand_over(self, connection: _Connection) -> None:
        await ask(connection, tables.FREE, {"workers": [self._me], "worker": self._name})
        await self._tell(connection)

    # What workers share beyond that

    async def admit(self, batch: str, key: str, level: Level) -> None:
        """Return when the account has a slot for a job in hand, and lets one more start.

        Args:
            batch: The batch's name.
            key: The job's name.
            level: What the account permits, all of its workers together.

        Raises:
            LedgerError: The job is in another worker's hand.
        """
        while True:
            news = self._news
            if await self._ask(lambda end: _Admission(end, (batch, key), level)):
                return
            await self.hear(news)

    def fence(self, batch: str, key: str) -> None:
        """Make sure, right before a paid request, that the job is still in hand.

        Raises:
            LedgerError: It may not be: the lease is about to end.
        """
        margin = MARGIN * self._lease
        if (batch, key) not in self._lines or asyncio.get_running_loop().time() > self._lease_ends - margin:
            raise _NotOursError(f"the lease on job {key} has ended", key=key, advice=_LEASE)

    async def take(self, limit: int, level: Level, *, unsaved: bool = False) -> list[tuple[Row, Content]]:
        """Jobs for a worker: what was left running or in doubt, and new ones as far as the account lets them start.

        Each is to be given back.

        Args:
            limit: How many at most.
            level: What the account permits, all of its workers together.
            unsaved: Whether completed jobs whose videos nobody has saved are wanted too.
        """
        values = self._limits(level)

        def taken(result: tuple[list[Line], dict[int, Content]]) -> None:
            self._in_hand(result[0])
            self._held |= {_name(line) for line in result[0]}

        async def work(connection: _Connection) -> tuple[list[Line], dict[int, Content]]:
            found: list[tuple[Any, ...]] = []
            if not await self._alive(connection):
                return [], {}
            for query in (tables.ADOPT, *([tables.ADOPT_UNSAVED] if unsaved else [])):
                found += await ask(connection, query, {**values, "owner": self._me, "limit": limit - len(found)})
            if len(found) < limit:
                await ask(connection, tables.GATE, [self.account])
                found += await ask(connection, tables.CLAIM, {**values, "owner": self._me, "limit": limit - len(found)})
            lines = sorted((line_of(line) for line in found), key=lambda line: line.id)
            contents = await ask(connection, tables.CONTENT, [[line.id for line in lines]])
            return lines, {id_: Content(text, files) for id_, text, files in contents}

        lines, contents = await self._ask(lambda end: _Work(end, work, taken))
        return [(line.row, contents[line.id]) for line in lines]

    def _limits(self, level: Level) -> dict[str, Any]:
        return {
            "account": self.account,
            "in_flight": level.in_flight,
            "starts": level.starts,
            "per": level.per,
            "runs": self._runs,
        }

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
        self._held.discard((batch, key))
        if running:
            return

        def change(line: Line | None) -> Line | None:
            if line is None:
                return None
            if line.row.state in _UNSENT:
                state = State.REJECTED if again is None else State.PENDING
                row = attrs.evolve(line.row, state=state, error=None if error is None else _text(error))
                line = attrs.evolve(line, row=row)
            return _free(line, again or 0.0)

        self._put(_Step(None, (batch, key), change, known=True))

    async def enqueue(
        self,
        batch: str,
        jobs: Sequence[tuple[str, Content, str]],
        *,
        at: float,
        connection: _Connection | None = None,
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

        async def work(connection: _Connection) -> list[str]:
            new: list[str] = []
            for start in range(0, len(jobs), CHUNK):
                some = {(batch, key): (content, model, at) for key, content, model in jobs[start : start + CHUNK]}
                values = {**_columns(some), "account": self.account, "owner": None}
                new += [key for _, _, key in await ask(connection, tables.INSERT, values)]
                others = await ask(connection, tables.OTHERS, values)
                if others:
                    raise KeyReusedError(others[0][0])
            await self._tell(connection)
            return new

        if connection is not None:
            return await work(connection)
        new: list[str] = await self._do(work)
        return new

    async def analyze(self) -> None:
        """Tell the database to look at its tables: after many new jobs its plans are made for other ones."""
        await self._read("ANALYZE kling_job, kling_content", [])

    async def outcome(self, batch: str, key: str) -> Row:
        """The row of a job when it has ended, whoever works on it. Wrap it in a timeout.

        Raises:
            LedgerError: There is no such job.
        """
        while True:
            news = self._news
            found = await self.find(batch, key)
            if found is None:
                raise LedgerError(f"the ledger has no job {key!r} in the batch {batch!r}", key=key, advice="enqueue it")
            if found[0].state in _ENDED:
                return found[0]
            await self.hear(news)

    async def tally(self) -> tuple[list[BatchTally], list[WorkerTally]]:
        """The jobs of the account by batch and state, and who works on them besides us."""
        counts = await self._read(tables.TALLY, [self.account])
        workers = await self._read(tables.WORKERS, [self.account, self._me])
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
        return self._news

    async def hear(self, news: asyncio.Event) -> None:
        """Wait for news, at most as long as `poll`: a notification may have been lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll):
                await news.wait()

    # The connection

    def _check(self) -> None:
        if not self._open:
            raise LedgerError(f"the ledger {self.address} is not open")
        if os.getpid() != self._pid:
            raise LedgerError(
                f"the ledger {self.address} was opened before a fork",
                advice="make the session in the process that uses it",
            )

    def _put(self, asked: _Asked) -> None:
        self._check()
        self._queue.append(asked)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="kling-ledger")
            # Who is being recorded while the loop closes is in somebody's custody, and waits for this.
            asyncio._unregister_task(self._flushing)  # noqa: SLF001 -- documented for this in "Extending asyncio"

    async def _ask(self, make: Callable[[asyncio.Future[Any]], _Asked]) -> Any:
        self._check()
        end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(make(end))
        return await end

    async def _do(self, work: Callable[[_Connection], Awaitable[Any]]) -> Any:
        return await self._ask(lambda end: _Work(end, work))

    async def _read(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = await self._do(lambda connection: ask(connection, query, values))
        return found

    async def _flush(self) -> None:
        """Do what is asked for, in order, until nothing is left."""
        while self._queue:
            group = self._group()
            try:
                await self._commit(group)
            except LedgerError as error:
                for one in group:
                    _fail(one, error)
            except Exception as bug:  # noqa: BLE001 -- nobody may wait for ever
                for one in group:
                    _fail(one, bug)

    def _group(self) -> list[_Asked]:
        """What may be committed together, at least one thing."""
        first = self._queue.popleft()
        group = [first]
        if isinstance(first, _Work):
            return group
        while self._queue and len(group) < GROUP:
            one = self._queue[0]
            if type(one) is not type(first):
                break
            if isinstance(one, _Admission) and isinstance(first, _Admission) and one.level != first.level:
                break
            group.append(self._queue.popleft())
        return group

    async def _commit(self, group: list[_Asked]) -> None:
        first = group[0]
        if isinstance(first, _Work):
            result = await self._link.run(first.work, patience=self._patience)
            if first.done is not None:
                first.done(result)
            _end(first, result)
        elif isinstance(first, _Admission):
            admissions = [one for one in group if isinstance(one, _Admission)]
            self._lines |= await self._link.run(lambda link: self._let_in(link, admissions), patience=self._patience)
            for one in admissions:
                line = self._lines.get(one.name)
                if line is None:
                    _fail(one, _NotOursError(f"the lease on job {one.name[1]} has ended", advice=_LEASE))
                else:
                    _end(one, line.slot)
        else:
            await self._commit_steps([one for one in group if isinstance(one, _Step)])

    async def _commit_steps(self, group: list[_Step]) -> None:
        if all(step.new is not None and step.name in self._lines for step in group):
            # Asked for, and in hand already: the database need not be asked.
            self._tell_ends(self._apply(group, {})[0])
            return
        try:
            lines, ends = await self._link.run(lambda link: self._write(link, group), patience=self._patience)
        except (psycopg.IntegrityError, psycopg.DataError) as trouble:
            if len(group) == 1:
                raise self._link.error("refused a step", trouble) from None
            # One of them: the others are not to blame.
            for step in group:
                try:
                    await self._commit_steps([step])
                except LedgerError as error:
                    _fail(step, error)
            return
        for name, line in lines.items():
            if line is not None and line.owner == self._me:
                self._lines[name] = line
            else:
                self._lines.pop(name, None)
        self._tell_ends(ends)

    def _tell_ends(self, ends: list[_Ended]) -> None:
        for step, end in ends:
            if isinstance(end, LedgerError):
                _fail(step, end)
            else:
                _end(step, end)

    def _apply(self, group: list[_Step], lines: dict[_Name, Line | None]) -> tuple[list[_Ended], list[_History]]:
        """What the steps make of lines, in order; what a step refuses changes nothing."""
        ends: list[_Ended] = []
        history: list[_History] = []
        for step in group:
            line = lines.get(step.name) or self._lines.get(step.name)
            try:
                after = step.change(line)
            except LedgerError as error:
                ends.append((step, error))
                continue
            ends.append((step, after))
            if after is not None:
                lines[step.name] = after
                if step.entry is not None:
                    history.append((step.name, step.entry, after))
        return ends, history

    async def _write(
        self, connection: _Connection, group: list[_Step]
    ) -> tuple[dict[_Name, Line | None], list[_Ended]]:
        """Do the steps; nothing of ours changes before they are committed."""
        await self._alive(connection)
        lines: dict[_Name, Line | None] = {}
        await self._make(connection, group, lines)
        unread = {step.name for step in group if not step.known} - {*lines, *self._lines}
        if unread:
            batches, keys = zip(*unread, strict=True)
            read = await ask(connection, tables.READ, [list(batches), list(keys), self.account])
            lines |= {_name(line): line for line in map(line_of, read)}
        before = {step.name: lines.get(step.name) or self._lines.get(step.name) for step in group}
        ends, history = self._apply(group, lines)
        changed = [
            (was, line)
            for name, line in lines.items()
            if line is not None and (was := before[name]) is not None and was != line
        ]
        if not changed:
            return lines, ends
        written = {id_ for (id_,) in await ask(connection, tables.WRITE, tables.written(changed))}
        lost = {_name(line) for _, line in changed if line.id not in written}
        steps = [
            (line.id, entry.state.value, entry.at, line.row.attempt, line.row.prediction_id, line.row.error)
            for name, entry, line in history
            if name not in lost
        ]
        if steps:
            await ask(connection, tables.STEPS, [self._name, *map(list, zip(*steps, strict=True))])
        if any(line.owner is None or was.slot > line.slot or line.row.state in _TOLD for was, line in changed):
            await self._tell(connection)
        for name in lost:
            lines[name] = None
        mine = [(step, _not_ours(step.name[1]) if step.name in lost else end) for step, end in ends]
        return {name: line and attrs.evolve(line, wait=0.0) for name, line in lines.items()}, mine

    async def _make(self, connection: _Connection, group: list[_Step], lines: dict[_Name, Line | None]) -> None:
        """Lines for the jobs that have none."""
        new = {step.name: step.new for step in group if step.new is not None and step.name not in self._lines}
        if not new:
            return
        values = {**_columns(new), "account": self.account, "owner": self._me}
        for id_, batch, key in await ask(connection, tables.INSERT, values):
            content, model, at = new[batch, key]
            row = Row(batch=batch, key=key, digest=content.digest, model=model, state=State.PENDING, updated_at=at)
            lines[batch, key] = Line(id_, self._me, slot=False, row=row)

    async def _let_in(self, connection: _Connection, group: list[_Admission]) -> dict[_Name, Line]:
        """Slots for jobs in hand, as many as there are."""
        if not await self._alive(connection):
            return {}
        wanted = {line.id: line for one in group if (line := self._lines.get(one.name)) is not None and not line.slot}
        if not wanted:
            return {}
        values = self._limits(group[0].level)
        await ask(connection, tables.GATE, [self.account])
        ((room,),) = await ask(connection, tables.ROOM, {**values, "limit": len(wanted)})
        let_in = await ask(connection, tables.ADMIT, [list(wanted)[:room], self._me])
        return {_name(wanted[id_]): attrs.evolve(wanted[id_], slot=True) for (id_,) in let_in}

    async def _migrate(self, connection: _Connection) -> None:
        """Bring the tables up to date, one process at a time.

        Raises:
            LedgerError: A later version made them.
        """
        await ask(connection, tables.GATE, ["tables"])
        if not (await ask(connection, tables.VERSIONED))[0][0]:
            await ask(connection, tables.VERSIONS)
        ((version,),) = await ask(connection, "SELECT version FROM kling_version")
        if version > len(tables.MIGRATIONS):
            raise LedgerError(
                f"the tables of the ledger {self.address} were made by a later version of kling_async",
                advice="upgrade kling_async, or name another database",
            )
        for step in tables.MIGRATIONS[version:]:
            await ask(connection, step)
        if version < len(tables.MIGRATIONS):
            await ask(connection, "UPDATE kling_version SET version = %s", [len(tables.MIGRATIONS)])

    # Being alive

    async def _alive(self, connection: _Connection) -> bool:
        """Whether the lease runs; nobody takes anything of ours until the transaction ends.

        Whose line is gone has lost all that it had in hand, and begins anew.
        """
        alive = await ask(connection, tables.ALIVE, [self._me])
        if alive:
            self._live = bool(alive[0][0])
            return self._live
        in_doubt = {State.INTENT, State.UNCERTAIN}
        self._former |= {name: line.row.attempt for name, line in self._lines.items() if line.row.state in in_doubt}
        if self._lines:
            log.warning("the lease on %d jobs ended: they are other workers' now", len(self._lines))
        self._forget()
        self._lease_ends = asyncio.get_running_loop().time() + self._lease
        await ask(connection, tables.REGISTER, [self._me, self.account, self._name, self._lease])
        return True

    async def _beat(self) -> None:
        """Stay alive, and free the jobs of those who are not."""

        async def work(connection: _Connection) -> float:
            sent = asyncio.get_running_loop().time()
            if not await ask(connection, tables.RENEW, [self._lease, self._me]):
                await self._alive(connection)
            gone = [id_ for (id_,) in await ask(connection, tables.LEFT, [self.account])]
            # What an answer that was lost had brought is in nobody's hand.
            owned = {id_ for (id_,) in await ask(connection, tables.OWNED, [self._me])}
            strays = list(owned - {line.id for line in self._lines.values()})
            if gone:
                await ask(connection, tables.FREE, {"workers": gone, "worker": self._name})
            if strays:
                await ask(connection, tables.FREE_STRAYS, {"ids": strays, "owner": self._me, "worker": self._name})
            if gone or strays:
                await self._tell(connection)
            return sent

        self._lease_ends = await self._do(work) + self._lease

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 4)
            try:
                await self._beat()
            except LedgerError as error:
                log.warning("the lease cannot be renewed: %s", error.message)

    async def _tell(self, connection: _Connection) -> None:
        await ask(connection, "SELECT pg_notify(%s, '')", [tables.channel_of(self.account)])

    async def _listen(self) -> None:
        while True:
            try:
                connection = await self._ear.connect()
                await ask(connection, f"LISTEN {tables.channel_of(self.account)}")
                self._wake()
                async with aclosing(connection.notifies()) as heard:
                    async for _ in heard:
                        self._wake()
            except (psycopg.Error, OSError) as trouble:
                log.info("news of the ledger %s: %s", self.address, self.address.redact(trouble))
            finally:
                await self._ear.aclose()
            await asyncio.sleep(self._poll)

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class _NotOursError(LedgerError):
    """The job is another worker's by now."""


_Ended: TypeAlias = "tuple[_Step, Line | LedgerError | None]"
_History: TypeAlias = tuple[_Name, Entry, Line]

_LEASE = "nothing is lost: another worker goes on with it"
_ENDED = frozenset({State.COMPLETED, State.FAILED, State.REJECTED, State.SKIPPED, State.EXPIRED, State.DOWNLOADED})
_DONE = frozenset({State.COMPLETED, State.EXPIRED, State.DOWNLOADED})
_ACCEPTED = frozenset({State.SUBMITTED, *_DONE})
_TOLD = _ENDED | {State.SUBMITTED}
"""What others may wait for."""
_FOLLOWED = frozenset({State.INTENT, State.SUBMITTED})
"""Nobody may wait for them, and they are watched or recorded all the same."""
_UNSENT = frozenset({State.PENDING, State.CLAIMED, State.REJECTED, State.SKIPPED})
_LARGEST = 2**62


def _name(line: Line) -> _Name:
    return line.row.batch, line.row.key


def _free(line: Line, after: float = 0.0) -> Line:
    """The line out of anybody's hand."""
    row = attrs.evolve(line.row, state=State.PENDING) if line.row.state is State.CLAIMED else line.row
    return attrs.evolve(line, row=row, owner=None, slot=row.state in OPEN, wait=after)


def _not_ours(key: str) -> LedgerError:
    return _NotOursError(f"job {key} is in another worker's hand", key=key, advice=_LEASE)


def _end(asked: _Asked, result: object) -> None:
    if asked.future is not None and not asked.future.done():
        asked.future.set_result(result)


def _fail(asked: _Asked, error: Exception) -> None:
    if asked.future is None:
        # Whose job it is now writes the same.
        level = logging.DEBUG if isinstance(error, _NotOursError) else logging.ERROR
        log.log(level, "a step could not be noted in the ledger: %s", error)
    elif not asked.future.done():
        asked.future.set_exception(error)


def _columns(new: dict[_Name, tuple[Content, str, float]]) -> dict[str, list[Any]]:
    return {
        "batch": [batch for batch, _ in new],
        "key": [key for _, key in new],
        "digest": [content.digest for content, _, _ in new.values()],
        "model": [model for _, model, _ in new.values()],
        "at": [at for _, _, at in new.values()],
        "text": [content.text for content, _, _ in new.values()],
        "files": [content.files for content, _, _ in new.values()],
    }


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
