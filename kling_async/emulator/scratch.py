"""A temporary directory for videos, and the removal of directories left by killed emulators.

Each directory contains a file that its process keeps locked. The operating system releases the lock however the process
ends, so a directory whose lock can be acquired is abandoned.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

import attrs

__all__ = ["Scratch"]

_PREFIX: Final = "kling-async-emulator-"
_LOCK: Final = ".lock"


@attrs.frozen(eq=False)
class Scratch:
    """A temporary directory and the lock that marks it as in use.

    Attributes:
        path: the directory.
        lock: file descriptor that holds the lock; None on Windows, where there is none.
    """

    path: Path
    lock: int | None

    @classmethod
    def make(cls) -> Scratch:
        """Create a directory, after removing abandoned ones."""
        _remove_abandoned(Path(tempfile.gettempdir()))
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Lock before renaming: another process must never find the lock file of a live directory unlocked.
        new = path / f"{_LOCK}.new"
        lock = os.open(new, os.O_CREAT | os.O_RDWR, 0o600) if sys.platform != "win32" else None
        if lock is not None and _try_lock(lock):
            new.rename(path / _LOCK)
        return cls(path, lock)

    def remove(self) -> None:
        """Remove the directory and its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)


def _try_lock(descriptor: int) -> bool:
    """Acquire the lock without blocking and return whether it succeeded."""
    if sys.platform == "win32":
        return False
    import fcntl  # noqa: PLC0415 -- there is none on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    if sys.platform == "win32":
        return
    for path in folder.glob(f"{_PREFIX}*"):
        # Skip what cannot be checked: directories of other users, links, or removed meanwhile.
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _try_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
