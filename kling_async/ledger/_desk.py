"""What a worker has in hand in a shared ledger, and the queue to its database.

Steps are committed through one connection, as many together as have arrived meanwhile; the worker's lease is renewed
through the same one, so that it ends when nothing can be written.
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

from kling_async._core.budget import Cap, CapUsage, reserve_caps
from kling_async._core.catalogue import Level
from kling_async._core.content import Content
from kling_async._core.states import Entry, Row, State
from kling_async.errors import BudgetExceededError, LedgerError, NotInHandError
from kling_async.ledger import _notes as notes
from kling_async.ledger import _tables as tables

from ._link import Address, Link, ask
from ._tables import Line, line_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger("kling_async")

GROUP = 512
"""Steps that are committed together at most."""
OPENING = 5.0
"""Seconds that a database is tried for when the ledger is opened."""
TOLD = 10_000
"""Deliveries of other processes that are kept until they are asked for."""
MIGRATION_TIMEOUT_S = 600.0
"""Seconds that a migration of the tables may take, its wait for running transactions included."""
MARGIN = 0.1
"""Part of a lease, at its end, in which nothing is sent any more."""

Connection: TypeAlias = "psycopg.AsyncConnection[tuple[Any, ...]]"
Name: TypeAlias = tuple[str, str]
Change: TypeAlias = "Callable[[Line | None], Line | None]"


@attrs.define(eq=False)
class Asked:
    """Something for the connection, and who waits for it; nobody waits for a note."""

    future: asyncio.Future[Any] | None


@attrs.define(eq=False)
class Step(Asked):
    """A step of one job.

    Attributes:
        name: The job.
        change: Its line as the step leaves it; refuses by raising, and then nothing changes.
        entry: What goes into the history of steps.
        new: Content, model and time of a job that is to be made when there is none.
        known: Whether it is about what is in hand, and nothing else.
    """

    name: Name
    change: Change
    entry: Entry | None = None
    new: tuple[Content, str, float] | None = None
    known: bool = False


@attrs.define(eq=False)
class Admission(Asked):
    """Somebody who wants one of the account's slots for a job in hand, and its price out of some budgets."""

    name: Name
    level: Level
    price: Decimal | None = None
    caps: tuple[Cap, ...] = ()


@attrs.define(eq=False)
class Work(Asked):
    """Anything else, in a transaction of its own; `done` is told what it gave, whether or not anybody waits."""

    work: Callable[[Connection], Awaitable[Any]]
    done: Callable[[Any], None] | None = None


class Desk:
    """A worker's place at a shared ledger.

    Args:
        address: The database.
        account: The name of the account.
        lease: Seconds after which the jobs of a worker that is not heard of are others'.
        poll: Seconds between two looks for news.
        patience: Seconds that a step waits for a database that cannot be reached.
        runs: Seconds after its submission in which a job in doubt takes one of the account's slots.

    Attributes:
        name: Host and process.
        me: The worker's id, as it stands in what it owns; another one after a lease that was lost.
        lines: What is in hand, as it stands in the database: nobody else writes it.
        held: Of these: what a worker took, and gives back itself.
        is_open: Whether anything may be asked for.
        live: Whether the lease ran when the present transaction began.
        former: Attempts that were on their way when a lease was lost.
        news: Is set when something has moved, here or in another process; then there is another one.
    """

    def __init__(
        self, address: Address, account: str, *, lease: float, poll: float, patience: float, runs: float
    ) -> None:
        self.account = account
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.former: dict[Name, int] = {}
        self.news = asyncio.Event()
        self._address = address
        self._lease = lease
        self._poll = poll
        self._patience = patience
        self._runs = runs
        self._link = Link(address, name="kling_async", answer_within=max(1.0, min(10.0, lease / 2)))
        self._ear = Link(address, name="kling_async news", answer_within=10.0)
        self._queue: deque[Asked] = deque()
        self._told: deque[notes.Told] = deque(maxlen=TOLD)
        self._heard = asyncio.Event()
        self._flushing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.is_open = False
        self._pid = os.getpid()
        self._forget()

    def _forget(self) -> None:
        """Be a worker that has nothing in hand."""
        self.me = uuid.uuid4().hex
        self.lines: dict[Name, Line] = {}
        self.held: set[Name] = set()
        self.live = True
        self._lease_ends = 0.0

    async def open(self) -> None:
        """Connect, bring the tables up to date, and free what workers that are gone have left.

        Raises:
            LedgerError: The database cannot be reached or written, or a later version made its tables.
        """
        if self.is_open:
            raise LedgerError(f"the ledger {self._address} is open already", advice="each session needs one of its own")
        self._forget()
        self.former.clear()
        self._pid = os.getpid()
        try:
            patience = min(OPENING, self._patience)
            if not await self._link.run(self._is_current, patience=patience):
                await self._link.run(self._migrate, patience=patience, answer_within=MIGRATION_TIMEOUT_S)
            self.is_open = True
            await self.beat()
        except BaseException:
            self.is_open = False
            await self._link.aclose()
            raise
        self._tasks = [
            asyncio.create_task(self._keep_alive(), name="kling-lease"),
            asyncio.create_task(self._listen(), name="kling-news"),
        ]

    async def aclose(self) -> None:
        """Commit what is left, and hand over what is in hand: others follow it at once."""
        if not self.is_open:
            return
        end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.put(Work(end, self._hand_over))
        # Whoever asked after it would have jobs in hand again, and nobody to hand them over.
        self.is_open = False
        for task in self._tasks:
            task.cancel()
        try:
            await end
        except LedgerError as error:
            log.warning("the jobs in hand are others' when the lease ends: %s", error.message)
        finally:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._flushing is not None:
                await self._flushing
            await self._link.aclose()

    async def hear(self, news: asyncio.Event) -> None:
        """Wait for news, at most as long as `poll`: a notification may have been lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll):
                await news.wait()

    async def told(self) -> list[notes.Told]:
        """What webhooks have told other processes since this was asked; waits for some, at most as long as `poll`."""
        await self.hear(self._heard)
        told = list(self._told)
        self._told.clear()
        self._heard.clear()
        return told

    def in_hand(self, lines: list[Line]) -> None:
        """Lines that are ours from now on."""
        self.lines |= {name_of(line): line for line in lines}

    def fence(self, name: Name) -> None:
        """Make sure, right before a paid request, that a job is still in hand.

        Raises:
            LedgerError: It may not be: the lease is about to end.
        """
        margin = MARGIN * self._lease
        if name not in self.lines or asyncio.get_running_loop().time() > self._lease_ends - margin:
            raise lease_ended(name[1])

    async def _hand_over(self, connection: Connection) -> None:
        await self.check_version(connection)
        await ask(connection, tables.FREE, {"workers": [self.me], "worker": self.name})
        await self.tell(connection)

    def limits(self, level: Level) -> dict[str, Any]:
        """The parameters by which a statement counts what the account permits."""
        return {
            "account": self.account,
            "in_flight": level.in_flight,
            "starts": level.starts,
            "per": level.per,
            "runs": self._runs,
        }

    def _check(self) -> None:
        if not self.is_open:
            raise LedgerError(f"the ledger {self._address} is not open")
        if os.getpid() != self._pid:
            raise LedgerError(
                f"the ledger {self._address} was opened before a fork",
                advice="make the session in the process that uses it",
            )

    def put(self, asked: Asked) -> None:
        """Ask for something, after what was asked for before.

        Raises:
            LedgerError: The ledger is not open in this process.
        """
        self._check()
        self._queue.append(asked)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="kling-ledger")
            # Who is being recorded while the loop closes is in somebody's custody, and waits for this.
            asyncio._unregister_task(self._flushing)  # noqa: SLF001 -- documented for this in "Extending asyncio"

    async def ask(self, make: Callable[[asyncio.Future[Any]], Asked]) -> Any:
        """Ask for something that is made with its future, and wait for it."""
        end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.put(make(end))
        return await end

    async def do(self, work: Callable[[Connection], Awaitable[Any]]) -> Any:
        """Return the result of a piece of work, done in a transaction of its own; it may be done several times."""

        async def checked(connection: Connection) -> Any:
            await self.check_version(connection)
            return await work(connection)

        return await self.ask(lambda end: Work(end, checked))

    async def read(self, query: str, values: Sequence[object] | Mapping[str, object]) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        found: list[tuple[Any, ...]] = await self.do(lambda connection: ask(connection, query, values))
        return found

    async def _flush(self) -> None:
        """Do what is asked for, in order, until nothing is left."""
        while self._queue:
            group = self._group()
            try:
                await self._commit(group)
            except Exception as error:  # noqa: BLE001 -- nobody may wait for ever
                for one in group:
                    self._give_up(one, error)

    def _give_up(self, asked: Asked, error: Exception) -> None:
        _fail(asked, error)
        if isinstance(asked, Step) and asked.future is None:
            # Nobody here asks for it again. Out of hand it is freed, and whoever takes it finds out the same.
            line = self.lines.pop(asked.name, None)
            if line is not None and line.row.state is State.INTENT:
                self.former[asked.name] = line.row.attempt

    def _group(self) -> list[Asked]:
        """What may be committed together, at least one thing."""
        first = self._queue.popleft()
        group = [first]
        if isinstance(first, Work):
            return group
        while self._queue and len(group) < GROUP:
            one = self._queue[0]
            if type(one) is not type(first):
                break
            if isinstance(one, Admission) and isinstance(first, Admission) and one.level != first.level:
                break
            group.append(self._queue.popleft())
        return group

    async def _commit(self, group: list[Asked]) -> None:
        first = group[0]
        if isinstance(first, Work):
            result = await self._link.run(first.work, patience=self._patience)
            if first.done is not None:
                first.done(result)
            _end(first, result)
        elif isinstance(first, Admission):
            admissions = [one for one in group if isinstance(one, Admission)]
            let_in, unpaid = await self._link.run(lambda link: self._let_in(link, admissions), patience=self._patience)
            self.lines |= let_in
            for one in admissions:
                line = self.lines.get(one.name)
                if line is None:
                    _fail(one, lease_ended(one.name[1]))
                elif one.name in unpaid:
                    _fail(one, unpaid[one.name])
                else:
                    _end(one, _is_in(line, one))
        else:
            await self._commit_steps([one for one in group if isinstance(one, Step)])

    async def _commit_steps(self, group: list[Step]) -> None:
        if all(step.new is not None and step.name in self.lines for step in group):
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
                    self._give_up(step, error)
            return
        for name, line in lines.items():
            if line is not None and line.owner == self.me:
                self.lines[name] = line
            else:
                self.lines.pop(name, None)
        self._tell_ends(ends)

    def _tell_ends(self, ends: list[_Ended]) -> None:
        for step, end in ends:
            if isinstance(end, LedgerError):
                _fail(step, end)
            else:
                _end(step, end)

    def _apply(self, group: list[Step], lines: dict[Name, Line | None]) -> tuple[list[_Ended], list[_History]]:
        """What the steps make of lines, in order; what a step refuses changes nothing."""
        ends: list[_Ended] = []
        history: list[_History] = []
        for step in group:
            line = lines.get(step.name) or self.lines.get(step.name)
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

    async def _write(self, connection: Connection, group: list[Step]) -> tuple[dict[Name, Line | None], list[_Ended]]:
        """Do the steps; nothing of ours changes before they are committed."""
        await self.alive(connection)
        lines: dict[Name, Line | None] = {}
        await self._make(connection, group, lines)
        unread = {step.name for step in group if not step.known} - {*lines, *self.lines}
        if unread:
            batches, keys = zip(*unread, strict=True)
            read = await ask(connection, tables.READ, [list(batches), list(keys), self.account])
            lines |= {name_of(line): line for line in map(line_of, read)}
        before = {step.name: lines.get(step.name) or self.lines.get(step.name) for step in group}
        ends, history = self._apply(group, lines)
        changed = [
            (was, line)
            for name, line in lines.items()
            if line is not None and (was := before[name]) is not None and was != line
        ]
        if not changed:
            return lines, ends
        written = {id_ for (id_,) in await ask(connection, tables.WRITE, tables.written(changed))}
        lost = {name_of(line) for _, line in changed if line.id not in written}
        steps = [
            (line.id, entry.state.value, entry.at, line.row.attempt, line.row.prediction_id, line.row.error)
            for name, entry, line in history
            if name not in lost
        ]
        if steps:
            await ask(connection, tables.STEPS, [self.name, *map(list, zip(*steps, strict=True))])
        if any(line.owner is None or was.slot > line.slot or line.row.state in tables.TOLD for was, line in changed):
            await self.tell(connection)
        for name in lost:
            lines[name] = None
        mine = [(step, not_ours(step.name[1]) if step.name in lost else end) for step, end in ends]
        return {name: line and attrs.evolve(line, wait=0.0) for name, line in lines.items()}, mine

    async def _make(self, connection: Connection, group: list[Step], lines: dict[Name, Line | None]) -> None:
        """Lines for the jobs that have none."""
        new = {step.name: step.new for step in group if step.new is not None and step.name not in self.lines}
        if not new:
            return
        values = {**tables.columns(new), "account": self.account, "owner": self.me}
        for id_, batch, key in await ask(connection, tables.INSERT, values):
            content, model, at = new[batch, key]
            row = Row(batch=batch, key=key, digest=content.digest, model=model, state=State.PENDING, updated_at=at)
            lines[batch, key] = Line(id_, self.me, slot=False, row=row)

    async def _let_in(self, connection: Connection, group: list[Admission]) -> _Admitted:
        """Slots for jobs in hand, as many as there are, and the money for them."""
        if not await self.alive(connection):
            return {}, {}
        wanted = [
            (one, line) for one in group if (line := self.lines.get(one.name)) is not None and not _is_in(line, one)
        ]
        if not wanted:
            return {}, {}
        values = self.limits(group[0].level)
        await ask(connection, tables.GATE, [self.account])
        without = [line.id for _, line in wanted if not line.slot]
        ((room,),) = await ask(connection, tables.ROOM, {**values, "limit": len(without)})
        late = set(without[room:])
        unpaid: dict[Name, BudgetExceededError] = {}
        usages: dict[Cap, CapUsage] = {}
        after: dict[int, Line] = {}
        for one, line in wanted:
            for cap in one.caps:
                if cap not in usages:
                    ((spent, held, reserved),) = await ask(
                        connection, tables.MONEY, [self.account, *2 * [cap.batches and list(cap.batches)]]
                    )
                    usages[cap] = CapUsage(cap.usd, spent, held, reserved)
            if line.id in late:
                continue
            try:
                if reserve_caps([usages[cap] for cap in one.caps], one.price or Decimal(0)):
                    row = attrs.evolve(line.row, cost=one.price) if one.caps else line.row
                    after[line.id] = attrs.evolve(line, slot=True, row=row)
            except BudgetExceededError as error:
                unpaid[one.name] = error
        costs = [line.row.cost for line in after.values()]
        let_in = await ask(connection, tables.ADMIT, [list(after), costs, self.me])
        return {name_of(after[id_]): after[id_] for (id_,) in let_in}, unpaid

    async def _is_current(self, connection: Connection) -> bool:
        """Return whether the tables are there, in this version.

        Raises:
            LedgerError: A later version made them.
        """
        if not (await ask(connection, tables.VERSIONED))[0][0]:
            return False
        return await self.check_version(connection) == len(tables.MIGRATIONS)

    async def _migrate(self, connection: Connection) -> None:
        """Bring the tables up to date, one process at a time.

        Raises:
            LedgerError: A later version made them.
        """
        await ask(connection, tables.GATE, ["tables"])
        await ask(connection, tables.VERSIONS)
        version = await self.check_version(connection)
        await ask(connection, tables.LOCK_VERSION)
        for step in tables.MIGRATIONS[version:]:
            await ask(connection, step)
        await ask(connection, "UPDATE kling_version SET version = %s", [len(tables.MIGRATIONS)])

    async def check_version(self, connection: Connection) -> int:
        """Return the version of the tables, which does not change until the transaction ends.

        Raises:
            LedgerError: A later version made them.
        """
        ((version,),) = await ask(connection, tables.VERSION)
        return self._supported(version)

    def _supported(self, version: int) -> int:
        if version > len(tables.MIGRATIONS):
            raise LedgerError(
                f"the tables of the ledger {self._address} were made by a later version of kling_async",
                advice="upgrade kling_async, or name another database",
            )
        return version

    # Being alive

    async def alive(self, connection: Connection) -> bool:
        """Whether the lease runs; nobody takes anything of ours until the transaction ends.

        Whose line is gone has lost all that it had in hand, and begins anew.
        """
        found = await ask(connection, tables.ALIVE, [self.me])
        if found:
            ((version, self.live),) = found
            self._supported(version)
            return self.live
        await self.check_version(connection)
        self.former |= {name: line.row.attempt for name, line in self.lines.items() if line.row.state.in_doubt}
        if self.lines:
            log.warning("the lease on %d jobs ended: they are other workers' now", len(self.lines))
        self._forget()
        self._lease_ends = asyncio.get_running_loop().time() + self._lease
        await ask(connection, tables.REGISTER, [self.me, self.account, self.name, self._lease])
        return True

    async def beat(self) -> None:
        """Stay alive, and free the jobs of those who are not."""

        async def work(connection: Connection) -> float:
            sent = asyncio.get_running_loop().time()
            if not await ask(connection, tables.RENEW, [self._lease, self.me]):
                await self.alive(connection)
            gone = [id_ for (id_,) in await ask(connection, tables.LEFT, [self.account])]
            # What an answer that was lost had brought is in nobody's hand.
            owned = {id_ for (id_,) in await ask(connection, tables.OWNED, [self.me])}
            strays = list(owned - {line.id for line in self.lines.values()})
            if gone:
                await ask(connection, tables.FREE, {"workers": gone, "worker": self.name})
            if strays:
                await ask(connection, tables.FREE_STRAYS, {"ids": strays, "owner": self.me, "worker": self.name})
            if gone or strays:
                await self.tell(connection)
            return sent

        self._lease_ends = await self.do(work) + self._lease

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 4)
            try:
                await self.beat()
            except LedgerError as error:
                log.warning("the lease cannot be renewed: %s", error.message)

    async def tell(self, connection: Connection, note: str = "") -> None:
        await ask(connection, "SELECT pg_notify(%s, %s)", [notes.channel_of(self.account), note])

    async def _listen(self) -> None:
        while True:
            try:
                connection = await self._ear.connect()
                await ask(connection, f"LISTEN {notes.channel_of(self.account)}")
                self._wake()
                async with aclosing(connection.notifies()) as heard:
                    async for note in heard:
                        told = notes.read(note.payload, me=self.me)
                        if told is None:
                            self._wake()
                        else:
                            self._told.append(told)
                            self._heard.set()
            except (psycopg.Error, OSError) as trouble:
                log.info("news of the ledger %s: %s", self._address, self._address.redact(trouble))
            finally:
                await self._ear.aclose()
            await asyncio.sleep(self._poll)

    def _wake(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


def _is_in(line: Line, admission: Admission) -> bool:
    """Whether a job has its slot, and its price set aside."""
    return line.slot and (not admission.caps or line.row.cost is not None)


_Admitted: TypeAlias = "tuple[dict[Name, Line], dict[Name, BudgetExceededError]]"
_Ended: TypeAlias = "tuple[Step, Line | LedgerError | None]"
_History: TypeAlias = tuple[Name, Entry, Line]


def lease_ended(key: str) -> LedgerError:
    """What is said to a worker that has lost a job."""
    return NotInHandError(f"the lease on job {key} has ended", key=key)


def not_ours(key: str) -> LedgerError:
    """What is said about a job that another worker has."""
    return NotInHandError(f"job {key} is in another worker's hand", key=key)


def name_of(line: Line) -> Name:
    """What the job is called."""
    return line.row.batch, line.row.key


def _end(asked: Asked, result: object) -> None:
    if asked.future is not None and not asked.future.done():
        asked.future.set_result(result)


def _fail(asked: Asked, error: Exception) -> None:
    if asked.future is None:
        # Whose job it is now writes the same.
        level = logging.DEBUG if isinstance(error, NotInHandError) else logging.ERROR
        log.log(level, "a step could not be noted in the ledger: %s", error)
    elif not asked.future.done():
        asked.future.set_exception(error)
