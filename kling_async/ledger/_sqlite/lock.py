"""Lock file beside a ledger: one writer at a time, released with its process, however that ends.

It refuses a second writer before anything is done. It does not protect a ledger that has several names, or whose lock
file was removed: the registration in the ledger itself does.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from kling_async._files import make_private
from kling_async.errors import LedgerError

from .connection import LOCK, beside, unusable
from .reader import writer_of

ACQUIRE_S = 0.2
"""Seconds to wait for the lock. An owner that has just ended may have removed the file that was opened here."""


def acquire(ledger: Path) -> FileLock:
    """Lock a ledger file.

    Raises:
        LedgerError: Another process holds the lock, or the lock file cannot be written.
    """
    path = beside(ledger, LOCK)
    # A soft lock, which takes the place of a missing `flock`, would stay after a crash.
    lock = FileLock(path, timeout=ACQUIRE_S, thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `FileLock` knows one mode, not that of the ledger: who shares a ledger shares its lock.
        make_private(path, like=ledger)
        lock.acquire()
    except Timeout:
        if not path.exists():
            # It waits for a file that cannot be made, too.
            raise unusable(ledger, OSError(f"unable to open {path}")) from None
        owner = writer_of(ledger)
        raise LedgerError(
            f"the ledger {ledger} is being written by {'another process' if owner is None else f'process {owner}'}",
            advice="end that process, or name another file; reading with read_ledger() is always possible",
        ) from None
    except OSError as error:
        raise unusable(ledger, error) from error
    return lock


def release(lock: FileLock, *, remove: bool = True) -> None:
    """Unlock.

    Args:
        lock: The lock, held.
        remove: Whether to remove its file; False when the file may be another writer's.
    """
    # Before unlocking: afterwards the file may be another writer's. (Windows has it removed by `FileLock`.)
    if remove:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()
