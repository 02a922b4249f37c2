"""Lock file beside a ledger: one writer at a time, released with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kling_async.errors import LedgerError

from .connection import unusable

if TYPE_CHECKING:
    from typing import Self

_PID_DIGITS = 20


class FileLock:
    """Lock of a ledger file, held. Made by `acquire`.

    Attributes:
        path: The lock file; it has the id of the process that holds it.
    """

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self._file = file

    @classmethod
    def acquire(cls, ledger: Path) -> Self:
        """Lock a ledger file.

        Raises:
            LedgerError: Another process holds the lock, or the lock file cannot be written.
        """
        path = _lock_path(ledger)
        file: IO[str] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                file = path.open("a+", encoding="ascii")
                if not _try_lock(file):
                    file.seek(0)
                    owner = file.read(_PID_DIGITS).strip() or "unknown"
                    file.close()
                    raise LedgerError(
                        f"the ledger {ledger} is being written by process {owner}",
                        advice="end that process, or name another file; reading with read_ledger() is always possible",
                    )
                # The previous owner may have removed the file between its opening and its locking here.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        break
                file.close()
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        except OSError as error:
            if file is not None:
                file.close()
            raise unusable(ledger, error) from error
        return cls(path, file)

    def release(self) -> None:
        """Unlock, and remove the file unless it is another writer's by now."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                self.path.unlink()
        self.close()

    def close(self) -> None:
        """Unlock and leave the file alone."""
        self._file.close()


def writer_of(ledger: str | os.PathLike[str]) -> int | None:
    """Return the id of the process that has a ledger file open for writing, or None.

    The id is read, not proven: locking the file, even for a moment, could refuse a writer that opens just then.
    """
    try:
        owner = int(_lock_path(Path(ledger)).read_text(encoding="ascii")[:_PID_DIGITS])
        if os.name == "posix":
            # Killed processes leave the file behind. (Elsewhere this call would be a signal.)
            with contextlib.suppress(PermissionError):
                os.kill(owner, 0)
    except (OSError, ValueError, OverflowError):
        return None
    return owner


def _lock_path(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}.lock")


try:
    import fcntl
except ImportError:  # pragma: no cover -- Windows
    import msvcrt

    def _try_lock(lock: IO[str]) -> bool:
        try:
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # there only
        except OSError:
            return False
        return True

else:

    def _try_lock(lock: IO[str]) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
