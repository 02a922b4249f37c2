"""Connections to a ledger file: checked before anything is changed, migrated when writing, and errors with advice."""

from __future__ import annotations

import contextlib
import mmap
import os
import sqlite3
import tempfile
from functools import cache
from typing import TYPE_CHECKING

from kling_async._files import make_private, open_file
from kling_async._log import log
from kling_async.errors import LedgerError

from .registration import register, registered
from .statements import MISMATCHED
from .tables import APPLICATION_ID, MIGRATIONS, define_label_text, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .registration import Registration

BESIDE = ("-wal", "-shm")
"""Suffixes of the files that SQLite keeps beside an open one."""
LOCK = ".lock"
"""Suffix of the lock file."""
CLOSED = ".closed"
"""Suffix of the file with the token of a writer that closed a ledger and could not unregister."""
_TOKEN_BYTES = 256
"""More than any token has."""


def beside(path: Path, suffix: str) -> Path:
    """Return the path of a file beside a ledger; SQLite has its own beside the file that a symbolic link points to."""
    real = path.resolve()
    return real.with_name(real.name + suffix)


def connect(path: Path, lock_timeout: float, token: str) -> sqlite3.Connection:
    """Return the writer's connection, to a file that is a ledger, intact, writable, migrated, and registered as open.

    Args:
        path: The file; created, for its owner only, when it does not exist.
        lock_timeout: Seconds to wait for another program that has locked the file.
        token: Token of the registration.

    Raises:
        LedgerError: It cannot be written, is no ledger, is damaged, or was made by a later version.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for log_file in (beside(path, suffix) for suffix in BESIDE):
            # SQLite gave it the rights of the file, which was read-only then.
            if path.exists() and log_file.exists() and not os.access(log_file, os.W_OK):
                log_file.chmod(path.stat().st_mode)
        if path.exists():
            check_writable(path, lock_timeout, token)
        # SQLite gives the files beside it the same mode.
        make_private(path)
        connection = sqlite3.connect(path, timeout=lock_timeout, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, error) from error
    try:
        wanted = "WAL" if _has_shared_maps(path) else "DELETE"
        (journal,) = connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
        # Without a write-ahead log, only EXTRA makes a commit outlast a power failure.
        connection.execute(f"PRAGMA synchronous = {'FULL' if journal == 'wal' else 'EXTRA'}")
        # On macOS, fsync alone leaves the data in the drive's cache.
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        connection.execute("BEGIN IMMEDIATE")
        migrate(connection)
        register(connection, token, journal)
        connection.execute("COMMIT")
        beside(path, CLOSED).unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        connection.close()
        raise unusable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _has_shared_maps(path: Path) -> bool:
    """Return whether files beside a ledger can be mapped into the memory of several processes.

    SQLite's write-ahead log needs it; network drives and FUSE may lack it. Once the log is on, a file on such a drive
    can neither be read nor changed back.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=f".{path.name[:60]}.") as file:
            file.truncate(mmap.PAGESIZE)
            try:
                mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
            except OSError:
                return False
    except OSError:
        pass  # SQLite says better what is wrong with the folder
    return True


def check_writable(path: Path, lock_timeout: float, token: str) -> None:
    """Check that a file may be written as a ledger: nothing in it is damaged, missing, or of another program.

    Read-only: a connection that may write folds the steps beside the file into it when it is closed, and a bad copy is
    not to be told apart from a good one any more.

    Args:
        path: The file.
        lock_timeout: Seconds to wait for another program that has locked the file.
        token: Token of a registration of this process, which may be in the file.

    Raises:
        LedgerError: It may not.
    """
    with contextlib.closing(connect_reader(path, lock_timeout)) as connection:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            return
        check(connection, path, copied=has_steps_beside(path))
        writer = unclosed_by(connection, path)
    if writer is not None and writer.token != token:
        raise LedgerError(
            f"{_incomplete(path, writer)}: jobs that were sent since would be paid for again",
            advice="go on with the original, or copy it again, with its -wal file; if nothing is missing, because a "
            f"database tool wrote this file: kling-async ledger {path} declare-complete",
        )


def checkpoint(connection: sqlite3.Connection) -> bool:
    """Copy the steps from the `-wal` file into the ledger file as far as readers let it; return whether all are there.

    The `-wal` file stays: its absence beside a file that is registered as open shows that the file was copied alone.
    """
    try:
        _, steps, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.Error as error:
        # What was committed is safe.
        log.debug("steps could not be copied into the ledger file: %s", error)
        return False
    return bool(steps == copied)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[tuple[sqlite3.Connection, int]]:
    """Open a ledger file for reading; yield the connection, in a transaction, and the version of the tables.

    Raises:
        LedgerError: There is no such file, it is no ledger, is damaged, or was made by a later version.
    """
    if not path.exists():
        raise LedgerError(f"there is no ledger {path}", advice="name the file that was given as ledger=")
    try:
        with contextlib.closing(connect_reader(path)) as connection:
            # One snapshot for the version and the rows: a writer may migrate the file meanwhile.
            connection.execute("BEGIN")
            version = check(connection, path)
            writer = unclosed_by(connection, path)
            if writer is not None:
                _warn(f"{_incomplete(path, writer)}: this is what the file has without them")
            yield connection, version
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from error


def connect_reader(path: Path, lock_timeout: float = 5.0) -> sqlite3.Connection:
    """Return a connection that changes neither a ledger file nor the steps beside it.

    Args:
        path: The file.
        lock_timeout: Seconds to wait for another program that has locked the file.
    """
    # A reader that cannot write leaves SQLite's files behind; one that can removes them with the last connection.
    # Where a writer, alive or killed, has left steps in them, reading must not touch those.
    mode = "ro" if has_steps_beside(path) else "rw"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=lock_timeout)
    connection.execute("PRAGMA query_only = ON")
    define_label_text(connection)
    return connection


def check(connection: sqlite3.Connection, path: Path, *, copied: bool = False) -> int:
    """Return the version of a file's tables.

    Args:
        connection: A connection to the file.
        path: The file.
        copied: Whether file and `-wal` file may be copies of different moments; finding out takes 15 s for a million
            jobs.

    Raises:
        LedgerError: It is no ledger, is damaged, or was made by a later version.
    """
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise LedgerError(f"{path} is another program's database", advice="name another file as the ledger")
    if connection.execute("SELECT 1 FROM sqlite_master WHERE type IN ('view', 'trigger') LIMIT 1").fetchone():
        raise LedgerError(
            f"{path} has views or triggers, which no ledger has", advice="name another file as the ledger"
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"the ledger {path} was made by a later version of kling_async",
            advice="upgrade kling_async, or name another file",
        )
    (found,) = connection.execute(f"PRAGMA {'integrity_check' if copied else 'quick_check'}(1)").fetchone()
    if found != "ok":
        raise LedgerError(f"the ledger {path} is damaged: {found}", advice=_DAMAGED)
    job = connection.execute(MISMATCHED).fetchone() if copied else None
    if job is not None:
        raise LedgerError(
            f"the ledger {path} and its -wal file do not belong together: job {job[0]} differs from its last step",
            advice=_DAMAGED,
        )
    return int(version)


def unclosed_by(connection: sqlite3.Connection, path: Path) -> Registration | None:
    """Return the writer that did not close a file, if the `-wal` file with its latest steps is missing, or empty."""
    writer = registered(connection)
    if writer is None or writer.journal != "wal" or has_steps_beside(path) or writer.token == closed_by(path):
        return None
    return writer


def closed_by(path: Path) -> str:
    """Return the token of the last writer if it could close a file and not unregister; else another text."""
    try:
        with open_file(beside(path, CLOSED)) as file:
            return file.read(_TOKEN_BYTES).decode("ascii", "replace")
    except OSError:
        return ""


def _incomplete(path: Path, writer: Registration) -> str:
    name = beside(path, "-wal").name
    return f"{writer} did not close the ledger {path}, and {name} beside it, which has the latest steps, is missing"


@cache
def _warn(text: str) -> None:
    """Log a warning once."""
    log.warning("%s", text)


def unusable(path: Path, error: Exception) -> LedgerError:
    """Return the error for a file that cannot be opened."""
    text = str(error)
    if "not a database" in text:
        return LedgerError(f"{path} is no ledger: {text}", advice="name another file as the ledger")
    if "malformed" in text:
        return LedgerError(f"the ledger {path} is damaged: {text}", advice=_DAMAGED)
    return LedgerError(f"the ledger {path} cannot be opened: {text}", advice=_advice(error))


def unwritable(path: Path, error: Exception) -> LedgerError:
    """Return a new error for a file that could not be written."""
    why, advice = (error.message, error.advice) if isinstance(error, LedgerError) else (error, _advice(error))
    return LedgerError(f"the ledger {path} cannot be written: {why}", advice=advice)


def _advice(error: Exception) -> str:
    """Return what to do about a file that cannot be used; never another file, whose jobs would be paid for again."""
    text = str(error)
    if "malformed" in text or "not a database" in text:
        return _DAMAGED
    if "locked" in text or "busy" in text:
        first = "another program holds the file (sqlite3, a backup): let it end"
    elif getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR_SHM"):
        first = (
            "the ledger was made on another drive, and this one has no shared memory maps, as network drives: copy it, "
            "with its -wal file, to a local drive, and name it there"
        )
    elif "is full" in text or "No space" in text:
        first = "make room on the disk"
    elif isinstance(error, OSError) or "readonly" in text or "unable to open" in text:
        first = "let this user write the file and its folder"
    else:
        first = "see to the disk: room, quota, a limit on the length of files"
    return f"{first}; then run the same call again with this ledger: what was accepted is not paid for again"


_DAMAGED = (
    "restore it from a copy; if it is one, make it again, with the -wal file and while no process writes it; "
    "`sqlite3 FILE .recover` reads what is left; do not submit its jobs again before that"
)


def has_steps_beside(path: Path) -> bool:
    """Return whether the write-ahead log beside the file has steps."""
    try:
        return beside(path, "-wal").stat().st_size > 0
    except OSError:
        return False
