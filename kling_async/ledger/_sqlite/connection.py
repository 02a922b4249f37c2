"""Connections to a ledger file: checked before anything is changed, migrated when writing, and errors with advice."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from kling_async.errors import LedgerError

from .tables import APPLICATION_ID, MIGRATIONS, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BESIDE = ("-wal", "-shm")
"""Suffixes of the files that SQLite keeps beside an open one."""


def connect(path: Path, lock_timeout: float) -> sqlite3.Connection:
    """Return the writer's connection, to a file that is a ledger, intact, writable, and migrated.

    Args:
        path: The file; created when it does not exist.
        lock_timeout: Seconds to wait for another program that has locked the file.

    Raises:
        LedgerError: It cannot be written, is no ledger, is damaged, or was made by a later version.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for beside in (path.with_name(path.name + suffix) for suffix in BESIDE):
            # SQLite gave it the rights of the file, which was read-only then.
            if path.exists() and beside.exists() and not os.access(beside, os.W_OK):
                beside.chmod(path.stat().st_mode)
        connection = sqlite3.connect(path, timeout=lock_timeout, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, error) from error
    try:
        # Checked before anything is changed: the file may be another program's.
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        migrate(connection)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        raise unusable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def reading(path: Path) -> Iterator[tuple[sqlite3.Connection, int]]:
    """Open a ledger file for reading; yield the connection, in a transaction, and the version of the tables.

    Raises:
        LedgerError: There is no such file, it is no ledger, is damaged, or was made by a later version.
    """
    if not path.exists():
        raise LedgerError(f"there is no ledger {path}", advice="name the file that was given as ledger=")
    # A reader that cannot write leaves SQLite's files behind; one that can removes them with the last connection.
    # Where a writer, alive or killed, has left steps in them, reading must not touch those.
    mode = "ro" if _has_steps_beside(path) else "rw"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)) as connection:
            connection.execute("PRAGMA query_only = ON")
            # One snapshot for the version and the rows: a writer may migrate the file meanwhile.
            connection.execute("BEGIN")
            yield connection, check(connection, path)
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from error


def check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of a file's tables.

    Raises:
        LedgerError: It is no ledger, is damaged, or was made by a later version.
    """
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise LedgerError(f"{path} is another program's database", advice="name another file as the ledger")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"the ledger {path} was made by a later version of kling_async",
            advice="upgrade kling_async, or name another file",
        )
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise LedgerError(f"the ledger {path} is damaged: {found}", advice=_DAMAGED)
    return int(version)


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
    elif "full" in text or "No space" in text:
        first = "make room on the disk"
    elif isinstance(error, OSError) or "readonly" in text or "unable to open" in text:
        first = "let this user write the file and its folder"
    else:
        first = "see to the disk: room, quota, a limit on the length of files"
    return f"{first}; then run the same call again with this ledger: what was accepted is not paid for again"


_DAMAGED = (
    "restore it from a copy; `sqlite3 FILE .recover` reads what is left; do not submit its jobs again before that"
)


def _has_steps_beside(path: Path) -> bool:
    """Return whether the write-ahead log beside the file has steps."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except OSError:
        return False
