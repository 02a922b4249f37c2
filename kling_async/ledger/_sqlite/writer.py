"""The thread that writes a ledger file: it commits what has arrived meanwhile in one transaction (group commit)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import defaultdict
from itertools import chain, count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import attrs

from kling_async.errors import LedgerError

from .connection import BESIDE, connect, unwritable
from .lock import FileLock
from .statements import values_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("kling_async")

MAX_GROUP_STEPS = 512
"""Requests that are committed together."""
GATHER_S = 0.004
"""Seconds that a group waits for more requests when the group before it had several: fewer commits."""
MAX_INSERT_ROWS = 64
"""Rows of one INSERT statement."""

Work: TypeAlias = "Callable[[sqlite3.Connection], Any]"
_Result: TypeAlias = "tuple[asyncio.Future[Any], Any, Exception | None]"


@attrs.define
class _Request:
    """Work for the writer, and the future of its result; None when nobody waits for it."""

    work: Work
    future: asyncio.Future[Any] | None
    loop: asyncio.AbstractEventLoop


class Writer:
    """Writer of a ledger file.

    Args:
        path: The file.
        lock_timeout: Seconds to wait for another program that has locked the file.
        reset: Called in the writer's thread when rows may differ from what was read before: after opening, and after a
            rollback.

    Attributes:
        path: The file.
        deferred: Rows to insert before the group is committed, by their statement: between two statements the event
            loop may take the interpreter, and one statement takes no longer than another.
        replaced: True when another file has taken the place of the ledger: nothing more may be sent, since the next run
            would read that one.
    """

    def __init__(self, path: Path, *, lock_timeout: float, reset: Callable[[], None]) -> None:
        self.path = path
        self.deferred: defaultdict[str, list[tuple[object, ...]]] = defaultdict(list)
        self._lock_timeout = lock_timeout
        self._reset = reset
        # Where the rows are: beside `path`, once another file has taken its place.
        self._actual_path = path
        self._file: os.stat_result | None = None
        self.replaced = False
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._lock: FileLock | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._pid = os.getpid()

    async def open(self) -> None:
        """Lock, open and migrate the file, and start the thread.

        Raises:
            LedgerError: Another session or process writes it, it cannot be written, is no ledger, is damaged, or was
                made by a later version.
        """
        if self._thread is not None and os.getpid() == self._pid:
            raise LedgerError(
                f"the ledger {self.path} is open in another session",
                advice="end that one first, or give this one another file",
            )
        self._queue = SimpleQueue()
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._ended = loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(loop, opened, self._ended), name="kling-ledger", daemon=True
        )
        self._thread.start()
        try:
            await opened
        except LedgerError:
            self._thread = None
            raise
        except asyncio.CancelledError:
            # Nobody else would release the file.
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def aclose(self) -> None:
        """Commit what was requested, and release the file."""
        if self._thread is None or self._ended is None:
            return
        self._thread = None
        self._queue.put(None)
        await self._ended

    def check_open(self) -> None:
        """Check that requests are taken.

        Raises:
            LedgerError: The ledger is not open, or was opened before a fork.
        """
        if self._thread is None:
            raise LedgerError(f"the ledger {self.path} is not open")
        if os.getpid() != self._pid:
            raise LedgerError(
                f"the ledger {self.path} was opened before a fork and has no writer in this process",
                advice="make the session in the process that uses it",
            )

    def ask(self, work: Work) -> asyncio.Future[Any]:
        """Return the future result of work: it is done in the writer's thread, and resolved when it is on the disk.

        What a piece of work refuses by a `LedgerError` must not have changed anything.
        """
        self.check_open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Request(work, future, loop))
        return future

    def put(self, work: Work) -> None:
        """Do work with the next group; a failure is logged."""
        self.check_open()
        self._queue.put(_Request(work, None, asyncio.get_running_loop()))

    # In the writer's thread

    def flush(self, connection: sqlite3.Connection) -> None:
        """Insert the deferred rows."""
        for insert, rows in self.deferred.items():
            start = 0
            while start < len(rows):
                # Powers of two, so that there are few statements, which are cached.
                size = min(MAX_INSERT_ROWS, 1 << (len(rows) - start).bit_length() - 1)
                some = rows[start : start + size]
                connection.execute(values_of(insert, size, len(some[0])), [*chain.from_iterable(some)])
                start += size
        self.deferred.clear()

    def _run(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        try:
            self._lock = FileLock.acquire(self.path)
            try:
                connection = self._connect(self.path)
                self._reset()
            except BaseException:
                self._unlock()
                raise
        except LedgerError as error:
            _resolve(loop, [(opened, None, error), (ended, None, None)])
            return
        except BaseException as error:  # noqa: BLE001 -- a path with a NUL, for one: `open` waits for the result
            unusable = LedgerError(f"the ledger {self.path} cannot be opened: {error}")
            _resolve(loop, [(opened, None, unusable), (ended, None, None)])
            return
        _resolve(loop, [(opened, None, None)])
        try:
            group: list[_Request] = []
            more = True
            while more:
                group, more = self._next_group(gather=len(group) > 1)
                connection = self._commit(connection, group)
        finally:
            connection.close()
            self._unlock()
            _resolve(loop, [(ended, None, None)])

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = connect(path, self._lock_timeout)
        self._actual_path, self._file, self.replaced = path, path.stat(), path != self.path
        return connection

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _next_group(self, *, gather: bool) -> tuple[list[_Request], bool]:
        """Return the requests that have arrived, at least one, and False when the ledger is to be closed.

        Args:
            gather: Wait a moment for more requests.
        """
        group: list[_Request] = []
        with contextlib.suppress(Empty):
            while len(group) < MAX_GROUP_STEPS:
                request = self._queue.get(block=not group)
                if request is None:
                    return group, False
                if gather and not group:
                    time.sleep(GATHER_S)
                group.append(request)
        return group, True

    def _commit(self, connection: sqlite3.Connection, group: list[_Request]) -> sqlite3.Connection:
        """Do the requests in one transaction and resolve their futures; return the connection for the next group."""
        results: list[tuple[_Request, Any, Exception | None]] = []
        try:
            connection = self._in_place(connection)
            if not group:
                return connection
            connection.execute("BEGIN IMMEDIATE")
            for request in group:
                try:
                    results.append((request, request.work(connection), None))
                except LedgerError as error:
                    results.append((request, None, error))
                except sqlite3.IntegrityError as error:
                    # An id that another job has already. SQLite has undone this statement alone.
                    results.append((request, None, LedgerError(f"the ledger {self.path} refused a step: {error}")))
            self.flush(connection)
            connection.execute("COMMIT")
        except Exception as trouble:
            self.deferred.clear()
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._reset()
            if not group:
                log.exception("the ledger %s cannot be closed as it should", self.path)
            # An error of its own for each caller, who adds the job to it.
            results = [(request, None, unwritable(self.path, trouble)) for request in group]
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[_Result]] = defaultdict(list)
        for request, result, failure in results:
            if request.future is not None:
                by_loop[request.loop].append((request.future, result, failure))
            elif failure is not None:
                log.error("a step could not be noted in the ledger: %s", failure)
        for loop, resolved in by_loop.items():
            _resolve(loop, resolved)
        return connection

    def _in_place(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Return the connection to a file that is found under its name, restoring the file when it was deleted.

        SQLite goes on writing a deleted file, and its rows are gone with the process: what was paid for would be paid
        for again.
        """
        try:
            found: os.stat_result | None = self._actual_path.stat()
        except FileNotFoundError:
            found = None
        if found is not None and self._file is not None and os.path.samestat(found, self._file):
            return connection
        path = self._actual_path if found is None else _free_path(self.path)
        if found is None and self._lock is not None and not self._lock.path.exists():
            deleted, self._lock = self._lock, FileLock.acquire(self.path)
            deleted.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = path.with_name(f"{path.name}.part")
        copy.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(copy)) as copied:
            connection.backup(copied)
        copy.replace(path)
        connection.close()
        for suffix in BESIDE:
            # Left behind, these would be replayed into another file of this name.
            self._actual_path.with_name(self._actual_path.name + suffix).unlink(missing_ok=True)
        connection = self._connect(path)
        if self.replaced:
            log.error("%s", self.out_of_place())
        else:
            log.error("the ledger %s was deleted while it was open, and was put back", self.path)
        return connection

    def out_of_place(self) -> LedgerError:
        """Return the error for when another file has taken the place of the ledger."""
        return LedgerError(
            f"another file took the place of the ledger {self.path} while it was open; "
            f"what it knew is in {self._actual_path}",
            advice="end this run, put that file back in its place, and run the same call again: "
            "what was accepted is not paid for again",
        )


def _free_path(path: Path) -> Path:
    """Return a path beside a file at which there is nothing."""
    paths = (path.with_name(f"{path.name}.rescued{f'-{number}' if number else ''}") for number in count())
    return next(free for free in paths if not free.exists())


def _resolve(loop: asyncio.AbstractEventLoop, results: list[_Result]) -> None:
    """Resolve futures of an event loop, in its thread, all in one call."""

    def resolve() -> None:
        for future, result, error in results:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    # Nobody waits in a loop that is closed.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(resolve)
