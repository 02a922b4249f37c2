"""The thread that writes a ledger file: it commits what has arrived meanwhile in one transaction (group commit)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import threading
import time
import uuid
from collections import defaultdict
from itertools import chain, count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import attrs

from kling_async._files import make_part
from kling_async._log import log
from kling_async._loops import LoopBinding
from kling_async.errors import LedgerError

from . import lock
from .connection import BESIDE, CLOSED, beside, checkpoint, connect, unwritable
from .registration import registered, unregister
from .statements import values_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from filelock import FileLock

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


class Writer:
    """Writer of a ledger file.

    Args:
        path: The file.
        lock_timeout: Seconds to wait for another program that has locked the file.
        reset: Called in the writer's thread when rows may differ from what was read before: after opening, after a
            rollback, and after a commit of another program.

    Attributes:
        path: The file.
        deferred: Rows to insert before the group is committed, by their statement: between two statements the event
            loop may take the interpreter, and one statement takes no longer than another.
        successor: Whoever has opened the file since, as a phrase; None as long as nobody has.
    """

    def __init__(self, path: Path, *, lock_timeout: float, reset: Callable[[], None]) -> None:
        self.path = path
        self.deferred: defaultdict[str, list[tuple[object, ...]]] = defaultdict(list)
        self._lock_timeout = lock_timeout
        self._reset = reset
        # Where the rows are: beside `path`, once another file has taken its place.
        self._actual_path = path
        self._file: os.stat_result | None = None
        self._replaced = False
        self._token = ""
        self.successor: str | None = None
        # Whether the registration is in the ledger file itself. (In the `-wal` file alone, no copy without it has it.)
        self._registered = False
        # Changes with each commit of another connection.
        self._data_version: int | None = None
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._lock: FileLock | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._pid = os.getpid()
        self._loop = LoopBinding(f"the ledger {path}")

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
        self._loop.bind()
        self._queue = SimpleQueue()
        self._token, self.successor = uuid.uuid4().hex, None
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
        """Commit what was requested, and release the file.

        Raises:
            WrongLoopError: It was opened in another event loop.
        """
        if self._thread is None or self._ended is None:
            return
        self._loop.check()
        self._thread = None
        self._queue.put(None)
        await self._ended

    def check_open(self) -> None:
        """Check that requests are taken.

        Raises:
            LedgerError: The ledger is not open, or was opened before a fork.
            WrongLoopError: It was opened in another event loop.
        """
        if self._thread is None:
            raise LedgerError(f"the ledger {self.path} is not open")
        if os.getpid() != self._pid:
            raise LedgerError(
                f"the ledger {self.path} was opened before a fork and has no writer in this process",
                advice="make the session in the process that uses it",
            )
        self._loop.check()

    def ask(self, work: Work) -> asyncio.Future[Any]:
        """Return the future result of work: it is done in the writer's thread, and resolved when it is on the disk.

        What a piece of work refuses by a `LedgerError` must not have changed anything.
        """
        self.check_open()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put(_Request(work, future))
        return future

    def put(self, work: Work) -> None:
        """Do work with the next group; a failure is logged."""
        self.check_open()
        self._queue.put(_Request(work, None))

    # In the writer's thread

    def superseded(self) -> LedgerError:
        """Return the error for when another process has opened the ledger: it sends the jobs that wait here, too."""
        return LedgerError(
            f"{self.successor} has opened the ledger {self.path} for writing since process {os.getpid()} opened it; "
            "only the later one may send its jobs",
            advice="let that process end; then run the same call again with this ledger: what was accepted is not paid "
            "for again. Do not remove the lock file beside an open ledger",
        )

    def check_sending(self) -> None:
        """Check that a paid request may be sent.

        Raises:
            LedgerError: Another file has taken the place of the ledger, or another process has opened it.
        """
        if self._replaced:
            raise self._out_of_place()
        if self.successor is not None:
            raise self.superseded()

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
            self._lock = lock.acquire(self.path)
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
                connection = self._commit(connection, group, loop)
        finally:
            self._close(connection)
            _resolve(loop, [(ended, None, None)])

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = connect(path, self._lock_timeout, self._token)
        self._actual_path, self._file, self._replaced = path, path.stat(), path != self.path
        self._data_version = None
        self._registered = checkpoint(connection)
        return connection

    def _close(self, connection: sqlite3.Connection) -> None:
        """Unregister, close the file, and unlock it."""
        # First all steps, then that it is closed: a copy made in between is known to be one.
        complete = checkpoint(connection)
        try:
            unregister(connection, self._token)
        except sqlite3.Error:
            # Another program holds the file.
            log.exception("the ledger %s cannot be closed as it should", self.path)
            if complete and self.successor is None:
                # Not in the lock file: some versions of filelock empty it when they lock it.
                with contextlib.suppress(OSError):
                    beside(self.path, CLOSED).write_text(self._token, encoding="ascii")
        connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            lock.release(self._lock, remove=self.successor is None)
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

    def _commit(
        self, connection: sqlite3.Connection, group: list[_Request], loop: asyncio.AbstractEventLoop
    ) -> sqlite3.Connection:
        """Do the requests in one transaction and resolve their futures; return the connection for the next group."""
        results: list[tuple[_Request, Any, Exception | None]] = []
        try:
            connection = self._in_place(connection)
            if not group:
                return connection
            connection.execute("BEGIN IMMEDIATE")
            self._look_for_other_writers(connection)
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
            if not self._registered:
                self._registered = checkpoint(connection)
        except Exception as trouble:
            self.deferred.clear()
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._reset()
            if not group:
                log.exception("the ledger %s cannot be closed as it should", self.path)
            # An error of its own for each caller, who adds the job to it.
            results = [(request, None, unwritable(self.path, trouble)) for request in group]
        resolved: list[_Result] = []
        for request, result, failure in results:
            if request.future is not None:
                resolved.append((request.future, result, failure))
            elif failure is not None:
                log.error("a step could not be noted in the ledger: %s", failure)
        _resolve(loop, resolved)
        return connection

    def _look_for_other_writers(self, connection: sqlite3.Connection) -> None:
        """Drop what was read before another connection wrote, and find out whether another process is the writer now.

        In the transaction of a group, so that nobody can open the ledger between this and its commit.
        """
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version == self._data_version:
            return
        self._data_version = version
        self._reset()
        writer = registered(connection)
        if self.successor is None and (writer is None or writer.token != self._token):
            # One that has ended is not registered any more.
            self.successor = f"another writer, {writer}," if writer else "another writer"
            log.error("%s", self.superseded())

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
        if found is None and self._lock is not None and not Path(self._lock.lock_file).exists():
            deleted, self._lock = self._lock, lock.acquire(self.path)
            lock.release(deleted, remove=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = path.with_name(f"{path.name}.part")
        make_part(copy)
        if self._file is not None:
            copy.chmod(stat.S_IMODE(self._file.st_mode))
        with contextlib.closing(sqlite3.connect(copy)) as copied:
            connection.backup(copied)
        copy.replace(path)
        connection.close()
        for suffix in BESIDE:
            # Left behind, these would be replayed into another file of this name.
            beside(self._actual_path, suffix).unlink(missing_ok=True)
        connection = self._connect(path)
        if self._replaced:
            log.error("%s", self._out_of_place())
        else:
            log.error("the ledger %s was deleted while it was open, and was put back", self.path)
        return connection

    def _out_of_place(self) -> LedgerError:
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
