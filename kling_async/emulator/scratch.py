"""A temporary directory for videos, and what a killed emulator left of its own.

Each directory holds a file that its owner keeps locked for as long as it lives. The system gives the lock back however
the owner ends, so a directory whose lock can be had belongs to nobody any more.
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
    """A directory and the lock that says it is in use.

    Attributes:
        path: the directory.
        lock: the descriptor that holds the lock; None where there are no such locks.
    """

    path: Path
    lock: int | None

    @classmethod
    def make(cls) -> Scratch:
        """A new directory; those of emulators that were killed are removed on the way."""
        _sweep(Path(tempfile.gettempdir()))
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Locked before it has its name: under that name nobody ever finds it unlocked and alive.
        new = path / f"{_LOCK}.new"
        lock = os.open(new, os.O_CREAT | os.O_RDWR, 0o600) if sys.platform != "win32" else None
        if lock is not None and _locked(lock):
            new.rename(path / _LOCK)
        return cls(path, lock)

    def remove(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)


def _locked(descriptor: int) -> bool:
    """Take the lock without waiting, if it can be had."""
    if sys.platform == "win32":
        return False
    import fcntl  # noqa: PLC0415 - there is none on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(folder: Path) -> None:
    if sys.platform == "win32":
        return
    for path in folder.glob(f"{_PREFIX}*"):
        # Whatever is in the way (another user's, gone meanwhile, a link) stays where it is.
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _locked(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
