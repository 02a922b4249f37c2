"""The shared ledger: a PostgreSQL database, one account of it written by any number of workers.

Every step is fenced: it is written only when the worker owns the job, at this attempt. A worker owns the jobs that it
has claimed as long as its lease runs, on the database's clock; when it ends, the jobs are released, and others follow
or settle what was sent. Steps are committed through one connection, as many together as have arrived meanwhile.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.content import Content, Identity, checked_identity, content_in
from kling_async._core.frames import hides_arguments
from kling_async._core.sender import Sender
from kling_async._core.states import ENDED, RELEASED, SENDABLE, Entry, Known, Row, State
from kling_async.errors import ConfigurationError, KeyReusedError, LedgerError

from ._columns import check_names, restored_identity, restored_names, storable, stored_names
from ._postgres import chains, edits, statements, tables
from ._postgres.claims import alike, claim_fairly
from ._postgres.connection import Address, Connection, fetch
from ._postgres.lease import WorkerLease
from ._postgres.notifications import encode, notify
from ._postgres.requests import SlotRequest, StepRequest, WorkRequest, lease_ended, not_owned
from ._postgres.statements import Line, keeps_slot, line_of, storable_text

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable, Sequence

    from kling_async._core.budget import Cap
    from kling_async._core.catalogue import Level
    from kling_async._core.marks import Mark
    from kling_async._core.prediction import Prediction
    from kling_async._core.seen import Seen

    from ._postgres.notifications import Update

__all__ = ["PostgresLedger"]

MAX_INSERT_JOBS = 2_000
"""New jobs that are inserted by one statement."""
_FINAL = ENDED - SENDABLE
"""States in which a job is of no use to any worker."""


class PostgresLedger:
    """A ledger in a PostgreSQL database, which many processes write together. Needs the extra `postgres`.

    Args:
        url: `postgresql://user:password@host/database`. Tables named `kling_...` are made in it when they are not
            there. The password is never shown.
        account: Name, of your choice, of the account on the service: sessions with the same name share its slots and
            its rate, and settle their doubts together. Keys of two accounts at the service need two names.
        lease: Seconds after which the jobs of a worker that does not renew its lease are released.
        poll: Seconds that a wait for notifications takes at most, as one may get lost.
        patience: Seconds that a step waits for a database that cannot be reached.
        runs: Seconds after its submission in which a job in doubt occupies one of the account's slots.

    Attributes:
        address: Address of the database; its text has no password.
        account: Name of the account.

    Raises:
        ConfigurationError: The URL cannot be parsed, or a number of seconds is not positive.
    """

    durable = True

    @hides_arguments
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
        self._lease = WorkerLease(self.address, account, lease=lease, poll=poll, patience=patience, runs=runs)
        self._queue = self._lease.queue
        self._listener = self._lease.listener
        # Cache of recorded identities, which never change.
        self._identities: dict[str, Identity] = {}

    def __repr__(self) -> str:
        return f"<PostgresLedger {self.address}, account {self.account!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PostgresLedger) and (other.address, other.account) == (self.address, self.account)

    def __hash__(self) -> int:
        return hash((self.address, self.account))

    async def open(self) -> None:
        """Connect, migrate the tables, and release the jobs of workers whose leases have ended.

        Raises:
            LedgerError: The database cannot be reached or written, or a later version made its tables.
        """
        self._identities.clear()
        await self._lease.open()

    def check_loop(self) -> None:
        """Check that the running event loop is the one that the ledger was opened in.

        Raises:
            WrongLoopError: It is another one.
        """
        self._queue.loop.check()

    async def aclose(self) -> None:
        """Commit what is left, and release the jobs of this worker: others follow them at once."""
        await self._lease.aclose()

    # The protocol of every ledger

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """Claim a job and return its row, inserted when it is new; waits while another worker owns it.

        Raises:
            LedgerError: It cannot be written, or a later version of the package began the batch.
            KeyReusedError: The key names a job with other content.
        """
        check_names(batch, key, model, text=storable_text)
        await self.identity(batch)
        digest = content.digest

        def change(line: Line | None) -> Line | None:
            if line is None:  # pragma: no cover -- it was just inserted
                raise LedgerError(f"job {key} cannot be inserted", key=key)
            if line.row.digest != digest:
                raise KeyReusedError(key)
            if line.worker_id is None and line.row.state not in _FINAL:
                return attrs.evolve(line, worker_id=self._lease.worker_id)
            return line

        while True:
            news = self.news
            line: Line = await self._queue.ask(
                lambda future: StepRequest(future, (batch, key), change, new=(content, model, at))
            )
            owned = line.worker_id in {None, self._lease.worker_id}
            if owned or line.row.state is State.SUBMITTED or line.row.state in _FINAL:
                return line.row
            await self.wait(news)

    def unclaim(self, batch: str, key: str) -> None:
        """Release a job that is not going to be submitted now."""
        # Closing has released all jobs.
        if self._queue.is_open:
            self._queue.put(StepRequest(None, (batch, key), self._unclaimed, owned_only=True))

    def _unclaimed(self, line: Line | None) -> Line | None:
        if line is None or line.name in self._lease.held or line.row.state is State.SUBMITTED:
            return line
        return self._released(line)

    def _released(self, line: Line, wait: float = 0.0) -> Line:
        """Return the line as it is when no worker owns it; an intent, whose result was not recorded, is in doubt."""
        if line.row.state is State.INTENT:
            self._lease.former[line.name] = line.row.attempt
        state = RELEASED.get(line.row.state, line.row.state)
        row = attrs.evolve(line.row, state=state)
        return attrs.evolve(line, row=row, worker_id=None, slot=state.open, wait=wait)

    async def identity(
        self, batch: str, *, ignored: tuple[str, ...] | None = None, connection: Connection | None = None
    ) -> Identity:
        """Return the identity of a batch; a new batch gets the newest rule, and ignores these parameters.

        Args:
            batch: Name of the batch.
            ignored: As in `Ledger.identity`.
            connection: Connection in whose transaction to read and record it, instead of one of the ledger's own.

        Raises:
            LedgerError: It cannot be recorded, or a later version of the package began the batch.
            ConfigurationError: The batch ignores other parameters.
        """
        self.check_loop()
        check_names(batch, text=storable_text)

        async def work(connection: Connection) -> Identity:
            found = await fetch(connection, statements.IDENTITY, [self.account, batch])
            if not found:
                new = Identity(ignored=ignored or ())
                values = [self.account, batch, new.rule, stored_names(new.ignored)]
                found = await fetch(connection, statements.BEGIN_BATCH, values)
            return restored_identity(*found[0])

        if connection is not None:
            await tables.read_version(connection, self.address)
            return checked_identity(await work(connection), batch, ignored)
        if batch not in self._identities:
            self._identities[batch] = await self._queue.do(work)
        return checked_identity(self._identities[batch], batch, ignored)

    async def ignored_parameters(self) -> list[tuple[str, ...]]:
        """Return the sets of parameters that the account's batches ignore, each once, without the empty one."""
        return [restored_names(stored) for (stored,) in await self._queue.read(statements.IGNORED, [self.account])]

    async def record(self, entry: Entry) -> Row:
        """Record one step; return the row that it left, when it is committed.

        Raises:
            LedgerError: It cannot be written, the move is not legal, or another worker owns the job.
        """
        line: Line = await self._queue.ask(lambda future: self._step(future, entry))
        return line.row

    def note(self, entry: Entry) -> None:
        """Record one step with the next group."""
        self._queue.put(self._step(None, entry))

    def _step(self, future: asyncio.Future[Any] | None, entry: Entry) -> StepRequest:
        return StepRequest(future, (entry.batch, entry.key), lambda line: self._after(line, entry), entry)

    def _after(self, line: Line | None, entry: Entry) -> Line:
        """Return the line as a step leaves it.

        Raises:
            LedgerError: The move is not legal, or another worker owns the job.
        """
        if line is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        mine = line.worker_id == self._lease.worker_id
        if entry.state is State.INTENT and not (mine and self._lease.live):
            raise lease_ended(entry.key)
        if not mine and line.worker_id is not None and not self._is_late_answer(line, entry):
            raise not_owned(entry.key)
        try:
            row = line.row.after(storable(entry, text=storable_text))
        except ValueError as error:
            raise LedgerError(str(error), key=entry.key, prediction_id=entry.prediction_id) from None
        # The worker that records an id watches it; a doubt that stays is left to the next worker.
        worker_id = line.worker_id or (self._lease.worker_id if row.state is State.SUBMITTED else None)
        if row.state.ended and line.name not in self._lease.held:
            worker_id = None
        return attrs.evolve(line, row=row, worker_id=worker_id, slot=keeps_slot(line, row.state))

    def _is_late_answer(self, line: Line, entry: Entry) -> bool:
        """Return whether a step answers a request that this worker sent before its lease ended: nobody knows better."""
        return (
            entry.state is State.SUBMITTED
            and (line.row.state.in_doubt or line.row.state is State.ABANDONED)
            and self._lease.former.get(line.name) == line.row.attempt
        )

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """Return the row of a job with its content, or None."""
        found = await self._queue.read(statements.FIND, [self.account, batch, key])
        if not found:
            return None
        row = line_of(found[0]).row
        return row, content_in(row)

    async def owner(self, prediction_id: str) -> Row | None:
        """Return the row of the job that the prediction is of, or None."""
        found = await self._select("prediction_id = %s", prediction_id)
        return found[0] if found else None

    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        """Return the jobs of other batches that a paid request for a job would pay for again.

        Without any, a job that this worker has claimed is marked, so that all other workers get it from now on.

        Raises:
            LedgerError: The database cannot be read.
        """
        wanted = [*digests]
        values = {"account": self.account, "digests": wanted, "batch": batch, "key": key, "any_key": any_key}

        async def work(connection: Connection) -> list[Row]:
            # Two workers that look at the same time would both find nothing.
            await fetch(connection, statements.LOCK_CONTENTS, [self.account, wanted])
            found = [line_of(line).row for line in await fetch(connection, statements.PAID_ELSEWHERE, values)]
            if not found:
                await fetch(connection, statements.CLEAR, [self.account, batch, key, self._lease.worker_id])
            return found

        found: list[Row] = await self._queue.do(work)
        return found

    async def paid_among(self, batch: str, jobs: Iterable[tuple[str, Collection[str], bool]]) -> dict[str, str]:
        """Return the keys of those jobs of a batch that others have paid for, or may have, each with such a batch.

        Jobs that their own batch has sent already are not among them.

        Args:
            batch: Name of the batch.
            jobs: Key of each job, the digests of its content by each identity, and whether jobs of other names
                count, too.

        Raises:
            LedgerError: The database cannot be read.
        """
        wanted = [(key, digest, any_key) for key, digests, any_key in jobs for digest in digests]
        keys, digests, any_key = map(list, zip(*wanted, strict=True)) if wanted else ([], [], [])
        values = {"account": self.account, "batch": batch, "keys": keys, "digests": digests, "any_key": any_key}
        return dict(await self._queue.read(statements.PAID_AMONG, values))

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """Return all rows of the account in these states, of every batch and worker, by the time of their last step."""
        return await self._select("state = ANY(%s) ORDER BY updated_at", [state.value for state in states])

    async def _select(self, condition: str, value: object) -> list[Row]:
        found = await self._queue.read(statements.SELECT + condition, [self.account, value])
        return [line_of(values).row for values in found]

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """Return the keys of a batch's jobs in these states, by the time of submission: the first expire first."""
        values = [self.account, batch, [state.value for state in states]]
        return [key for (key,) in await self._queue.read(statements.KEYS, values)]

    async def spent(self, batch: str | None, *, caller: str | None = None) -> Decimal:
        """Return the USD that a batch, or everything, has cost so far by the price list, less what was given back."""
        ((spent,),) = await self._queue.read(statements.SPENT, [self.account, batch, caller])
        return spent or Decimal(0)

    async def uploaded(self, digest: str, now: float) -> str | None:
        """Return the URL of an image that was uploaded and is available at that time, or None."""
        found = await self._queue.read(statements.UPLOAD, [self.account, digest, now])
        return found[0][0] if found else None

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """Record the URL of an uploaded image with the next requests."""
        values = [self.account, digest, storable_text(url), expires_at]
        self._queue.do_later(lambda connection: fetch(connection, statements.PUT_UPLOAD, values))

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, Known]:
        """Return what is known of those of the ids that a job has, or had in an earlier attempt."""
        ids = [storable_text(id_) for id_ in prediction_ids]
        found = await self._queue.read(statements.KNOWN, {"account": self.account, "ids": ids})
        return {id_: Known(*known) for id_, *known in found}

    async def senders(self) -> list[Sender]:
        """Return the senders of the account's jobs."""
        return [Sender(*values) for values in await self._queue.read(statements.SENDERS, [self.account])]

    async def put_sender(self, sender: Sender) -> None:
        """Record a sender, or that it is of the same account at the service as another one.

        Raises:
            LedgerError: It cannot be written.
        """
        values = [self.account, *attrs.astuple(sender)]
        await self._queue.do(lambda connection: fetch(connection, statements.PUT_SENDER, values))

    async def renew(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row | None:
        """Give the key of a job other content; return the row under which the job stays, or None if nothing is left.

        Raises:
            LedgerError: There is no such job, a worker has claimed it, it is being sent, runs or is in doubt, or the
                database cannot be written.
        """
        check_names(model, text=storable_text)
        kept: Row | None = await self._queue.do(
            lambda connection: edits.renew(connection, self.account, batch, key, content, model=model, at=at)
        )
        return kept

    async def put_mark(self, prediction_id: str, mark: Mark | None, at: float) -> None:
        """Record the mark of a video; None removes it.

        Raises:
            LedgerError: The database cannot be written.
        """
        await self._queue.do(lambda connection: edits.put_mark(connection, self.account, prediction_id, mark, at))

    # The protocol of a shared ledger

    async def claim_unowned(self, states: Iterable[State], senders: Iterable[str] = ()) -> list[Row]:
        """Claim the unowned jobs in these states and return their rows.

        Args:
            states: The states.
            senders: Ids of the senders whose jobs to claim, besides those whose sender was not recorded.
        """
        values = {"account": self.account, "states": [state.value for state in states], "senders": [*senders]}

        async def work(connection: Connection) -> list[Line]:
            await self._lease.is_alive(connection)
            mine = {**values, "worker_id": self._lease.worker_id}
            return [line_of(line) for line in await fetch(connection, statements.CLAIM_UNOWNED, mine)]

        lines: list[Line] = await self._queue.ask(lambda future: WorkRequest(future, work, self._lease.own))
        return sorted((line.row for line in lines), key=lambda row: row.updated_at)

    async def admit(
        self, batch: str, key: str, level: Level, price: Decimal | None = None, caps: Sequence[Cap] = ()
    ) -> None:
        """Return when a claimed job has one of the account's slots, one more may start, and its price is reserved.

        Args:
            batch: Name of the batch.
            key: Name of the job.
            level: Limits of the account, for all of its workers together.
            price: Price of the job in USD.
            caps: Budgets, for all workers together. The prices of all rows of their batches are added up.

        Raises:
            LedgerError: Another worker owns the job.
            BudgetExceededError: A budget has not enough money for it.
        """
        while True:
            news = self.news
            if await self._queue.ask(lambda future: SlotRequest(future, (batch, key), level, price, tuple(caps))):
                return
            await self.wait(news)

    def fence(self, batch: str, key: str) -> None:
        """Check, right before a paid request, that this worker owns the job.

        Raises:
            LedgerError: It may not: the lease is about to end.
        """
        self._lease.fence((batch, key))

    def publish(self, prediction: Prediction, token_hash: str | None) -> None:
        """Publish what a webhook has reported to the account's other sessions. A lost notification is polled for."""
        payload = encode(self._lease.worker_id, prediction, token_hash)
        if payload is not None:
            self._queue.do_later(lambda connection: notify(connection, self.account, payload))

    async def published(self) -> list[Update]:
        """Return what webhooks have reported to other sessions since the last call; waits at most `poll` seconds."""
        self.check_loop()
        return await self._listener.updates()

    # For workers

    @property
    def news(self) -> asyncio.Event:
        """Event set when rows have changed, here or in another process; then there is another event."""
        return self._listener.news

    async def wait(self, news: asyncio.Event) -> None:
        """Wait for news, at most `poll` seconds, as a notification may get lost."""
        self.check_loop()
        await self._listener.wait(news)

    async def take(
        self,
        limit: int,
        level: Level,
        *,
        unsaved: bool = False,
        failures: int = 0,
        senders: Iterable[str] = (),
        callers: Callable[[str], tuple[float, int | None]] = alike,
    ) -> list[tuple[Row, Content]]:
        """Claim jobs for a worker: unowned ones that run or are in doubt, and new ones as far as they may start.

        Each is released by `give_back`.

        Args:
            limit: Number of jobs at most.
            level: Limits of the account, for all of its workers together.
            unsaved: Claim completed jobs whose videos are not saved, too.
            failures: Claim jobs, too, of which at most so many predictions failed by the service's own fault.
            callers: Returns the weight of a caller, and the number of slots that it may have, None for no limit.
            senders: Ids of the senders whose running and doubtful jobs to claim, besides those whose sender was not
                recorded: other accounts could neither read nor settle them.
        """
        values = {**self._queue.limits(level), "failures": failures, "senders": [*senders]}
        unowned = [statements.CLAIM_OPEN]
        if unsaved:
            unowned.append(statements.CLAIM_UNSAVED)
        if failures:
            unowned.append(statements.CLAIM_FAILED)

        def hold(result: tuple[list[Line], dict[int, Content]]) -> None:
            self._lease.own(result[0])
            self._lease.held |= {line.name for line in result[0]}

        async def work(connection: Connection) -> tuple[list[Line], dict[int, Content]]:
            if not await self._lease.is_alive(connection):
                return [], {}
            mine = {**values, "worker_id": self._lease.worker_id}
            found: list[tuple[Any, ...]] = []
            for query in unowned:
                found += await fetch(connection, query, {**mine, "limit": limit - len(found)})
            if len(found) < limit:
                await fetch(connection, statements.LOCK_ACCOUNT, [self.account])
                found += await claim_fairly(connection, mine, limit - len(found), callers)
            lines = sorted((line_of(line) for line in found), key=lambda line: line.id)
            texts = await fetch(connection, statements.CONTENT, [[line.id for line in lines]])
            return lines, {
                id_: Content(text, files, labels=labels, frames=frames) for id_, text, files, labels, frames in texts
            }

        lines, content = await self._queue.ask(lambda future: WorkRequest(future, work, hold))
        return [
            (line.row, attrs.evolve(content[line.id], caller=line.row.caller, priority=line.row.priority))
            for line in lines
        ]

    def give_back(
        self, batch: str, key: str, *, running: bool = False, again: float | None = None, error: str | None = None
    ) -> None:
        """Release a job that a worker took.

        Args:
            batch: Name of the batch.
            key: Name of the job.
            running: Keep it until its prediction ends, which is watched here.
            again: Seconds until a worker may claim it again, when it has not ended; None is never, unless it was sent.
            error: Reason why it was not sent.
        """
        self._lease.held.discard((batch, key))
        if running:
            return

        def change(line: Line | None) -> Line | None:
            if line is None:
                return None
            if line.row.state.unsent:
                state = State.REJECTED if again is None else State.PENDING
                row = attrs.evolve(line.row, state=state, error=None if error is None else storable_text(error))
                line = attrs.evolve(line, row=row)
            return self._released(line, again or 0.0)

        self._queue.put(StepRequest(None, (batch, key), change, owned_only=True))

    async def enqueue(
        self,
        batch: str,
        jobs: Sequence[tuple[str, Content, str]],
        *,
        at: float,
        seen: Seen | None = None,
        connection: Connection | None = None,
    ) -> list[str]:
        """Insert new jobs for workers to claim.

        Args:
            batch: Name of the batch.
            jobs: Key, content and model of each job.
            at: Time in seconds since the epoch.
            seen: What their worker does with those that another batch has paid for; None leaves it to the worker.
            connection: Connection in whose transaction to insert them, instead of one of the ledger's own.

        Returns:
            The keys of those that were new.

        Raises:
            LedgerError: They cannot be written; then none is.
            KeyReusedError: A key names a job with other content; then none is written.
        """
        for key, _, model in jobs:
            check_names(batch, key, model, text=storable_text)
        await self.identity(batch, connection=connection)

        async def work(connection: Connection) -> list[str]:
            new: list[str] = []
            for start in range(0, len(jobs), MAX_INSERT_JOBS):
                some = {
                    (batch, key): (content, model, at) for key, content, model in jobs[start : start + MAX_INSERT_JOBS]
                }
                values = {**statements.inserted_values(some, seen), "account": self.account, "worker_id": None}
                made = await fetch(connection, statements.INSERT, values)
                new += [key for _, _, key in made]
                await chains.link(
                    connection, self.account, [(id_, batch, some[batch, key][0].frames) for id_, _, key in made]
                )
                inserted = {(batch, key) for _, batch, key in made}
                # In the order of the list, so that two processes with the same list do not lock each other out.
                found = {name: given for name, given in some.items() if name not in inserted}
                if not found:
                    continue
                await edits.refresh(connection, self.account, found)
                values = {**statements.inserted_values(found), "account": self.account}
                conflicts = await fetch(connection, statements.CONFLICTS, values)
                if conflicts:
                    raise KeyReusedError(conflicts[0][0])
            await notify(connection, self.account)
            return new

        if connection is not None:
            return await work(connection)
        new: list[str] = await self._queue.do(work)
        return new

    async def analyze(self) -> None:
        """Update the planner's statistics: after many new jobs its plans are made for other tables."""
        await self._queue.read("ANALYZE kling_job, kling_content", [])

    async def outcome(self, batch: str, key: str) -> Row:
        """Return the row of a job when it has ended, whichever worker does it. Wrap it in a timeout.

        Raises:
            LedgerError: There is no such job.
        """
        while True:
            news = self.news
            found = await self.find(batch, key)
            if found is None:
                raise LedgerError(f"the ledger has no job {key!r} in the batch {batch!r}", key=key, advice="enqueue it")
            if found[0].state.ended:
                return found[0]
            await self.wait(news)
