"""Queue of a worker's requests: steps are committed together, as many as have arrived meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import attrs
import psycopg

from kling_async._core.budget import CapUsage, reserve_caps
from kling_async._loops import LoopBinding
from kling_async.errors import BudgetExceededError, LedgerError
from kling_async.ledger._columns import new_row

from . import chains, edits, statements, tables
from .connection import Connection, fetch
from .notifications import notify
from .requests import Request, SlotRequest, StepRequest, WorkRequest, lease_ended, not_owned
from .statements import Line, line_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from kling_async._core.budget import Cap
    from kling_async._core.catalogue import Level
    from kling_async._core.states import Entry

    from .connection import Address, Database
    from .requests import Name, NewJob


MAX_GROUP_STEPS = 512
"""Requests that are committed together."""

_Result: TypeAlias = "tuple[StepRequest, Line | LedgerError | None]"
_History: TypeAlias = "tuple[Name, Entry, Line]"


class Lease(Protocol):
    """The part of a worker's lease that its requests need.

    Attributes:
        account: Name of the account.
        name: Host and process.
        worker_id: Id of the worker; another one after a lease that was lost.
        lines: Lines of the jobs that this worker owns, as they are in the database.
    """

    account: str
    name: str
    worker_id: str
    lines: dict[Name, Line]

    async def is_alive(self, connection: Connection) -> bool:
        """Return whether the lease runs; nobody can claim a job of this worker until the transaction ends.

        Raises:
            LedgerError: A later version of the package has migrated the tables.
        """
        ...

    def disown(self, name: Name) -> None:
        """Remove a line whose step could not be written: renewing the lease releases it."""
        ...


class RequestQueue:
    """Queue of a worker's requests to its database.

    Args:
        database: Connection to the database.
        address: Address of the database, for errors.
        lease: Lease of the worker.
        patience: Seconds that a request waits for a database that cannot be reached.
        runs: Seconds after its submission in which a job in doubt occupies one of the account's slots.

    Attributes:
        is_open: True while requests are taken.
        loop: The event loop that the ledger was opened in.
    """

    def __init__(self, database: Database, address: Address, lease: Lease, *, patience: float, runs: float) -> None:
        self.is_open = False
        self.loop = LoopBinding(f"the ledger {address}")
        self._database = database
        self._address = address
        self._lease = lease
        self._patience = patience
        self._runs = runs
        self._queue: deque[Request] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._pid = os.getpid()

    def open(self) -> None:
        """Take requests from now on, in this process."""
        self._pid = os.getpid()
        self.is_open = True

    async def join(self) -> None:
        """Return when every request was done."""
        if self._flushing is not None:
            await self._flushing

    def check_open(self) -> None:
        """Check that requests are taken.

        Raises:
            LedgerError: The ledger is not open, or was opened before a fork.
            WrongLoopError: It was opened in another event loop.
        """
        if not self.is_open:
            raise LedgerError(f"the ledger {self._address} is not open")
        if os.getpid() != self._pid:
            raise LedgerError(
                f"the ledger {self._address} was opened before a fork",
                advice="make the session in the process that uses it",
            )
        self.loop.check()

    def put(self, request: Request) -> None:
        """Add a request; requests are done in their order.

        Raises:
            LedgerError: The ledger is not open in this process.
        """
        self.check_open()
        self._queue.append(request)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="kling-ledger")
            # A critical task that records while the loop closes waits for this one, which must not be cancelled before.
            asyncio._unregister_task(self._flushing)  # noqa: SLF001 -- documented for this in "Extending asyncio"

    async def ask(self, make: Callable[[asyncio.Future[Any]], Request]) -> Any:
        """Add a request that is made with its future, and return its result."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.put(make(future))
        return await future

    async def do(self, work: Callable[[Connection], Awaitable[Any]]) -> Any:
        """Return the result of work, done in a transaction of its own; it may be done several times."""
        return await self.ask(lambda future: WorkRequest(future, self._checked(work)))

    def do_later(self, work: Callable[[Connection], Awaitable[Any]]) -> None:
        """Do work in a transaction of its own, with nobody waiting for it; a failure is logged."""
        self.put(WorkRequest(None, self._checked(work)))

    def _checked(self, work: Callable[[Connection], Awaitable[Any]]) -> Callable[[Connection], Awaitable[Any]]:
        """Return work that is refused when a later version has migrated the tables."""

        async def checked(connection: Connection) -> Any:
            await tables.read_version(connection, self._address)
            return await work(connection)

        return checked

    async def read(self, query: str, values: Sequence[object] | Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        found: list[tuple[Any, ...]] = await self.do(lambda connection: fetch(connection, query, values))
        return found

    def limits(self, level: Level) -> dict[str, Any]:
        """Return the parameters by which a statement counts what an account's level permits."""
        return {
            "account": self._lease.account,
            "in_flight": level.in_flight,
            "starts": level.starts,
            "per": level.per,
            "runs": self._runs,
        }

    async def _flush(self) -> None:
        """Do the requests, in order, until there is none."""
        while self._queue:
            group = self._next_group()
            try:
                await self._commit(group)
            except Exception as error:  # noqa: BLE001 -- nobody may wait for ever
                for request in group:
                    self._fail(request, error)

    def _fail(self, request: Request, error: Exception) -> None:
        request.fail(error)
        if isinstance(request, StepRequest) and request.future is None:
            # Nobody repeats it. Not owned any more, the job is released, and the next worker finds out the same.
            self._lease.disown(request.name)

    def _next_group(self) -> list[Request]:
        """Return the requests that may be committed together, at least one."""
        first = self._queue.popleft()
        group = [first]
        if isinstance(first, WorkRequest):
            return group
        while self._queue and len(group) < MAX_GROUP_STEPS:
            request = self._queue[0]
            if type(request) is not type(first):
                break
            if isinstance(request, SlotRequest) and isinstance(first, SlotRequest) and request.level != first.level:
                break
            group.append(self._queue.popleft())
        return group

    async def _commit(self, group: list[Request]) -> None:
        first = group[0]
        if isinstance(first, WorkRequest):
            result = await self._database.run(first.work, patience=self._patience)
            if first.done is not None:
                first.done(result)
            first.resolve(result)
        elif isinstance(first, SlotRequest):
            await self._commit_slots([request for request in group if isinstance(request, SlotRequest)])
        else:
            await self._commit_steps([request for request in group if isinstance(request, StepRequest)])

    async def _commit_slots(self, group: list[SlotRequest]) -> None:
        granted, unpaid = await self._database.run(
            lambda connection: self._grant(connection, group), patience=self._patience
        )
        self._lease.lines |= granted
        for request in group:
            line = self._lease.lines.get(request.name)
            if line is None:
                request.fail(lease_ended(request.name[1]))
            elif request.name in unpaid:
                request.fail(unpaid[request.name])
            else:
                request.resolve(request.is_granted(line))

    async def _grant(
        self, connection: Connection, group: list[SlotRequest]
    ) -> tuple[dict[Name, Line], dict[Name, BudgetExceededError]]:
        """Give slots to jobs as far as there are any, and reserve their prices.

        Returns:
            The lines of the jobs that have a slot, and the errors of those that no budget has the money for.
        """
        if not await self._lease.is_alive(connection):
            return {}, {}
        wanted = [
            (request, line)
            for request in group
            if (line := self._lease.lines.get(request.name)) is not None and not request.is_granted(line)
        ]
        if not wanted:
            return {}, {}
        account = self._lease.account
        await fetch(connection, statements.LOCK_ACCOUNT, [account])
        without = [line.id for _, line in wanted if not line.slot]
        limits = {**self.limits(group[0].level), "limit": len(without)}
        ((free,),) = await fetch(connection, statements.FREE_SLOTS, limits)
        too_many = set(without[free:])
        unpaid: dict[Name, BudgetExceededError] = {}
        usages: dict[Cap, CapUsage] = {}
        after: dict[int, Line] = {}
        for request, line in wanted:
            for cap in request.caps:
                if cap not in usages:
                    of = {"account": account, "batches": cap.batches and list(cap.batches), "caller": cap.caller}
                    ((spent, held, reserved),) = await fetch(connection, statements.MONEY, of)
                    usages[cap] = CapUsage(cap.usd, spent, held, reserved, cap.caller)
            if line.id in too_many:
                continue
            try:
                if reserve_caps([usages[cap] for cap in request.caps], request.price or Decimal(0)):
                    row = attrs.evolve(line.row, cost=request.price) if request.caps else line.row
                    after[line.id] = attrs.evolve(line, slot=True, row=row)
            except BudgetExceededError as error:
                unpaid[request.name] = error
        costs = [line.row.cost for line in after.values()]
        granted = await fetch(connection, statements.GIVE_SLOTS, [list(after), costs, self._lease.worker_id])
        return {after[id_].name: after[id_] for (id_,) in granted}, unpaid

    async def _commit_steps(self, group: list[StepRequest]) -> None:
        owned = self._lease.lines
        if all(step.new is not None and step.name in owned for step in group):
            # Claims of jobs that are owned already: nothing changes.
            _resolve(self._apply(group, {})[0])
            return
        try:
            lines, results = await self._database.run(
                lambda connection: self._write(connection, group), patience=self._patience
            )
        except (psycopg.IntegrityError, psycopg.DataError) as trouble:
            if len(group) == 1:
                raise self._database.error("refused a step", trouble) from None
            # One of them is to blame.
            for step in group:
                try:
                    await self._commit_steps([step])
                except LedgerError as error:
                    self._fail(step, error)
            return
        for name, line in lines.items():
            if line is not None and line.worker_id == self._lease.worker_id:
                self._lease.lines[name] = line
            else:
                self._lease.lines.pop(name, None)
        _resolve(results)

    def _apply(self, group: list[StepRequest], lines: dict[Name, Line | None]) -> tuple[list[_Result], list[_History]]:
        """Apply the steps to the lines, in order; a step that is refused changes nothing."""
        results: list[_Result] = []
        history: list[_History] = []
        for step in group:
            line = lines.get(step.name) or self._lease.lines.get(step.name)
            try:
                after = step.change(line)
            except LedgerError as error:
                results.append((step, error))
                continue
            results.append((step, after))
            if after is not None:
                lines[step.name] = after
                if step.entry is not None:
                    history.append((step.name, step.entry, after))
        return results, history

    async def _write(
        self, connection: Connection, group: list[StepRequest]
    ) -> tuple[dict[Name, Line | None], list[_Result]]:
        """Write the steps; the lines of the lease stay as they are until this is committed.

        Returns:
            The lines after the steps, None where another worker has claimed one, and the results.
        """
        await self._lease.is_alive(connection)
        owned = self._lease.lines
        lines: dict[Name, Line | None] = {}
        await self._insert(connection, group, lines)
        unread = {step.name for step in group if not step.owned_only} - {*lines, *owned}
        if unread:
            batches, keys = zip(*unread, strict=True)
            read = await fetch(connection, statements.LOCK_LINES, [list(batches), list(keys), self._lease.account])
            lines |= {line.name: line for line in map(line_of, read)}
        before = {step.name: lines.get(step.name) or owned.get(step.name) for step in group}
        results, history = self._apply(group, lines)
        changed = [
            (was, line)
            for name, line in lines.items()
            if line is not None and (was := before[name]) is not None and was != line
        ]
        if not changed:
            return lines, results
        values = statements.written_values(changed)
        written = {id_ for (id_,) in await fetch(connection, statements.WRITE, values)}
        lost = {line.name for _, line in changed if line.id not in written}
        steps = [
            (line.id, entry.state.value, entry.at, line.row.attempt, line.row.prediction_id, line.row.error)
            for name, entry, line in history
            if name not in lost
        ]
        await chains.follow(connection, [each for each in changed if each[1].id in written], worker=self._lease.name)
        if steps:
            await fetch(connection, statements.STEPS, [self._lease.name, *map(list, zip(*steps, strict=True))])
        if any(_concerns_others(was, line) for was, line in changed):
            await notify(connection, self._lease.account)
        for name in lost:
            lines[name] = None
        results = [(step, not_owned(step.name[1]) if step.name in lost else result) for step, result in results]
        return {name: line and attrs.evolve(line, wait=0.0) for name, line in lines.items()}, results

    async def _insert(self, connection: Connection, group: list[StepRequest], lines: dict[Name, Line | None]) -> None:
        """Insert the jobs that there are none of, and add their lines; renew the others."""
        given = {step.name: step.new for step in group if step.new is not None}
        new = {name: each for name, each in given.items() if name not in self._lease.lines}
        if new:
            await self._insert_new(connection, new, lines)
        found = {name: each for name, each in given.items() if name not in lines}
        await edits.refresh(connection, self._lease.account, found)

    async def _insert_new(
        self, connection: Connection, new: dict[Name, NewJob], lines: dict[Name, Line | None]
    ) -> None:
        worker_id = self._lease.worker_id
        values = {**statements.inserted_values(new), "account": self._lease.account, "worker_id": worker_id}
        for id_, batch, key in await fetch(connection, statements.INSERT, values):
            content, model, at = new[batch, key]
            row = new_row(batch, key, content=content, model=model, at=at)
            lines[batch, key] = Line(id_, worker_id, slot=False, row=row)
        made = [(line.id, batch, new[batch, key][0].frames) for (batch, key), line in lines.items() if line is not None]
        await chains.link(connection, self._lease.account, made, worker=self._lease.name)


def _concerns_others(was: Line, line: Line) -> bool:
    """Return whether other workers may wait for the change."""
    return line.worker_id is None or was.slot > line.slot or line.row.state in statements.NOTIFIED


def _resolve(results: list[_Result]) -> None:
    for step, result in results:
        if isinstance(result, LedgerError):
            step.fail(result)
        else:
            step.resolve(result)
