"""Ledger files that no process closed and whose `-wal` file is missing: find them, and declare one complete."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kling_async.errors import LedgerError

from . import lock
from .connection import check, connect, connect_reader, reading, unclosed_by
from .registration import unregister

if TYPE_CHECKING:
    from pathlib import Path

    from .registration import Registration


def unclosed(path: Path) -> Registration | None:
    """Return the writer that did not close a file whose `-wal` file is missing; None if the file can be opened.

    Raises:
        LedgerError: There is no such file, it is no ledger, is damaged, or was made by a later version.
    """
    with reading(path) as (connection, _):
        return unclosed_by(connection, path)


def declare_complete(path: Path, lock_timeout: float) -> None:
    """Declare that such a file lacks no steps, so that it can be opened again.

    Args:
        path: The file.
        lock_timeout: Seconds to wait for another program that has locked the file.

    Raises:
        LedgerError: Another process writes it, it is damaged, cannot be written, or needs no declaration.
    """
    held = lock.acquire(path)
    try:
        writer = unclosed(path)
        if writer is None:
            raise LedgerError(f"the ledger {path} lacks no file, so nothing was changed", advice="open it as it is")
        with contextlib.closing(connect_reader(path, lock_timeout)) as connection:
            check(connection, path, copied=True)
        with contextlib.closing(connect(path, lock_timeout, writer.token)) as connection:
            unregister(connection, writer.token)
    finally:
        lock.release(held)
