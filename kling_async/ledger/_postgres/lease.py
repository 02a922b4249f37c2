"""Lease of a worker in a shared ledger: as long as it runs, the jobs that the worker has claimed are its own.

The lease is renewed through the connection that steps are committed through, so that it ends when nothing can be
written.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from typing import TYPE_CHECKING, Any

from kling_async._core.states import State
from kling_async._log import log
from kling_async.errors import LedgerError

from . import chains, statements, tables
from .connection import Connection, Database, fetch
from .notifications import Listener, notify
from .queue import RequestQueue
from .requests import WorkRequest, lease_ended

if TYPE_CHECKING:
    from .connection import Address
    from .requests import Name
    from .statements import Line

OPEN_PATIENCE_S = 5.0
"""Seconds that opening waits for a database that cannot be reached."""
MIGRATION_TIMEOUT_S = 600.0
"""Seconds that a migration of the tables may take, its wait for running transactions included."""
UNUSED_SHARE = 0.1
"""Share of a lease, at its end, in which nothing is sent any more."""


class WorkerLease:
    """Lease of this process in a shared ledger, with its queue and its listener.

    Args:
        address: Address of the database.
        account: Name of the account.
        lease: Seconds after which the jobs of a worker that does not renew its lease are released.
        poll: Seconds that a wait for notifications takes at most.
        patience: Seconds that a request waits for a database that cannot be reached.
        runs: Seconds after its submission in which a job in doubt occupies one of the account's slots.

    Attributes:
        account: Name of the account.
        name: Host and process.
        worker_id: Id of the worker; another one after a lease that was lost.
        lines: Lines of the jobs that this worker owns, as they are in the database: nobody else writes them.
        held: Names of those that a worker releases itself.
        live: True when the lease was running when the present transaction began.
        former: Attempts that were being sent when a lease was lost, by job.
        queue: Requests to the database.
        listener: Notifications of other processes.
    """

    def __init__(
        self, address: Address, account: str, *, lease: float, poll: float, patience: float, runs: float
    ) -> None:
        self.account = account
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.former: dict[Name, int] = {}
        self._address = address
        self._seconds = lease
        self._patience = patience
        self._database = Database(address, name="kling_async", answer_within=max(1.0, min(10.0, lease / 2)))
        self.queue = RequestQueue(self._database, address, self, patience=patience, runs=runs)
        self.listener = Listener(address, account, poll=poll, worker_id=lambda: self.worker_id)
        self._tasks: list[asyncio.Task[None]] = []
        self._reset()

    def _reset(self) -> None:
        """Become a worker that owns no job."""
        self.worker_id = uuid.uuid4().hex
        self.lines: dict[Name, Line] = {}
        self.held: set[Name] = set()
        self.live = True
        self._ends_at = 0.0

    async def open(self) -> None:
        """Connect, migrate the tables, and release the jobs of workers whose leases have ended.

        Raises:
            LedgerError: The database cannot be reached or written, or a later version made its tables.
        """
        if self.queue.is_open:
            raise LedgerError(f"the ledger {self._address} is open already", advice="each session needs one of its own")
        self.queue.loop.bind()
        self._reset()
        self.former.clear()
        patience = min(OPEN_PATIENCE_S, self._patience)
        try:
            if not await self._database.run(lambda link: tables.is_current(link, self._address), patience=patience):
                await self._database.run(
                    lambda link: tables.migrate(link, self._address),
                    patience=patience,
                    answer_within=MIGRATION_TIMEOUT_S,
                )
            self.queue.open()
            await self.renew()
        except BaseException:
            self.queue.is_open = False
            await self._database.aclose()
            raise
        self._tasks = [
            asyncio.create_task(self._keep_alive(), name="kling-lease"),
            asyncio.create_task(self.listener.run(), name="kling-news"),
        ]

    async def aclose(self) -> None:
        """Commit what is left, and release the jobs: others follow them at once."""
        if not self.queue.is_open:
            return
        self.queue.loop.check()
        released: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.queue.put(WorkRequest(released, self._release_all))
        # Later requests would claim jobs that nobody releases.
        self.queue.is_open = False
        for task in self._tasks:
            task.cancel()
        try:
            await released
        except LedgerError as error:
            log.warning("the jobs of this worker are released when its lease ends: %s", error.message)
        finally:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.queue.join()
            await self._database.aclose()

    async def _release_all(self, connection: Connection) -> None:
        await tables.read_version(connection, self._address)
        await fetch(connection, statements.RELEASE, {"workers": [self.worker_id], "worker": self.name})
        await notify(connection, self.account)

    def own(self, lines: list[Line]) -> None:
        """Add lines that this worker has claimed."""
        self.lines |= {line.name: line for line in lines}

    def disown(self, name: Name) -> None:
        """Remove a line whose step could not be written: renewing the lease releases it."""
        line = self.lines.pop(name, None)
        if line is not None and line.row.state is State.INTENT:
            self.former[name] = line.row.attempt

    def fence(self, name: Name) -> None:
        """Check, right before a paid request, that this worker owns a job.

        Raises:
            LedgerError: It may not: the lease is about to end.
        """
        unused = UNUSED_SHARE * self._seconds
        if name not in self.lines or asyncio.get_running_loop().time() > self._ends_at - unused:
            raise lease_ended(name[1])

    async def is_alive(self, connection: Connection) -> bool:
        """Return whether the lease runs; nobody can claim a job of this worker until the transaction ends.

        A worker whose lease was removed has lost its jobs, and gets a new lease.

        Raises:
            LedgerError: A later version of the package has migrated the tables.
        """
        found = await fetch(connection, statements.ALIVE, [self.worker_id])
        if found:
            ((version, self.live),) = found
            tables.check_version(version, self._address)
            return self.live
        await tables.read_version(connection, self._address)
        self.former |= {name: line.row.attempt for name, line in self.lines.items() if line.row.state.in_doubt}
        if self.lines:
            log.warning("the lease on %d jobs ended: they are other workers' now", len(self.lines))
        self._reset()
        self._ends_at = asyncio.get_running_loop().time() + self._seconds
        await fetch(connection, statements.REGISTER, [self.worker_id, self.account, self.name, self._seconds])
        return True

    async def renew(self) -> None:
        """Renew the lease, and release the jobs of workers whose leases have ended.

        Raises:
            LedgerError: The database cannot be reached, or a later version of the package has migrated its tables.
        """

        async def work(connection: Connection) -> float:
            sent = asyncio.get_running_loop().time()
            if not await fetch(connection, statements.RENEW, [self._seconds, self.worker_id]):
                await self.is_alive(connection)
            expired = [id_ for (id_,) in await fetch(connection, statements.EXPIRED_WORKERS, [self.account])]
            # The answer to a claim may have been lost.
            owned = {id_ for (id_,) in await fetch(connection, statements.OWNED, [self.worker_id])}
            strays = list(owned - {line.id for line in self.lines.values()})
            if expired:
                await fetch(connection, statements.RELEASE, {"workers": expired, "worker": self.name})
            if strays:
                values = {"ids": strays, "worker_id": self.worker_id, "worker": self.name}
                await fetch(connection, statements.RELEASE_STRAYS, values)
            if expired or strays:
                await chains.skip_left(connection, self.account, worker=self.name)
                await notify(connection, self.account)
            return sent

        self._ends_at = await self.queue.do(work) + self._seconds

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 4)
            try:
                await self.renew()
            except LedgerError as error:
                log.warning("the lease cannot be renewed: %s", error.message)
