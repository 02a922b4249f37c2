"""Registration of the writer in the ledger file itself: who has it open, and a token that each opening replaces."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import sqlite3


@attrs.frozen
class Registration:
    """The process that has a ledger file open for writing, or had when it ended without closing it.

    Attributes:
        token: Random text, different at every opening.
        process: Id of the process.
        host: Name of its computer.
        journal: SQLite's journal mode; with "wal", the latest steps may be in the `-wal` file beside the ledger alone.
    """

    token: str
    process: int
    host: str
    journal: str

    @property
    def here(self) -> bool:
        """True when it is of this computer."""
        return self.host == platform.node()

    def __str__(self) -> str:
        return f"process {self.process}{'' if self.here else f' on {self.host}'}"


def registered(connection: sqlite3.Connection) -> Registration | None:
    """Return the registration in a file; None when it was closed, or is of a version that did not register."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'writer'").fetchone() is None:
        return None
    found = connection.execute("SELECT token, process, host, journal FROM writer").fetchone()
    return None if found is None else Registration(*found)


def register(connection: sqlite3.Connection, token: str, journal: str) -> None:
    """Register this process in place of any other, within the transaction of the connection."""
    connection.execute("DELETE FROM writer")
    own = Registration(token, os.getpid(), platform.node(), journal)
    connection.execute("INSERT INTO writer(token, process, host, journal) VALUES (?, ?, ?, ?)", attrs.astuple(own))


def unregister(connection: sqlite3.Connection, token: str) -> None:
    """Remove the registration with a token; one that has replaced it stays."""
    connection.execute("DELETE FROM writer WHERE token = ?", (token,))
