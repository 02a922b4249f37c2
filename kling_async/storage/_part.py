"""The temporary file of one output: written, checked, and then kept or removed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import sys
import tempfile
import threading
from pathlib import Path, PurePath
from typing import BinaryIO, TypeVar

from kling_async._core.prediction import SavedFile
from kling_async.errors import StorageError

from ._mp4 import flaw

_BLOCK = 2**20
_AHEAD = 16 * 2**20
"""Bytes after which the disk is told to begin: it works while the rest comes, and the last sync has little to wait for.

Nor has the sync of a ledger on the same disk, which some file systems let wait for all that is unwritten.
"""
_Path = TypeVar("_Path", bound=PurePath)


class Part:
    """The temporary file. Its methods block and run in worker threads, one after the other.

    The lock makes that hold in the one case where asyncio does not wait for a thread: a task that was cancelled
    natively goes on to `discard` while its write still runs. What comes after `discard` does nothing.

    Args:
        label: What it is for, as errors name it. What is called `.mp4` must be an MP4.
        beside: The file that it is to become; without one it is a nameless file of the system's temporary folder,
            which goes with its process.
    """

    def __init__(self, label: str, beside: Path | None = None) -> None:
        self.size = 0
        self.label = label
        self._begun = 0
        self._target = beside
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._done = False
        self._sha256 = hashlib.sha256()
        self._lock = threading.Lock()

    @property
    def sha256(self) -> str:
        """The digest of what was written, lower-case hex."""
        return self._sha256.hexdigest()

    def open(self) -> None:
        """Make the file; what a killed process left of the same output is removed."""
        with self._lock:
            if self._done:
                return
            if self._target is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- `discard` closes it
                return
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._path, self._file = _claimed(self._target)

    def write(self, piece: bytes) -> None:
        """Append; the digest is taken while the piece is still in the processor's cache."""
        with self._lock:
            if self._file is not None:
                self._file.write(piece)
                self._sha256.update(piece)
                self.size += len(piece)
                if self._path is not None and self.size - self._begun >= _AHEAD:
                    _begin_sync(self._file, self._begun, self.size)
                    self._begun = self.size

    def restart(self) -> None:
        """Drop what was written."""
        with self._lock:
            if self._file is not None:
                self._file.seek(0)
                self._file.truncate()
                self._sha256 = hashlib.sha256()
                self.size = self._begun = 0

    def complete(self) -> BinaryIO | None:
        """The checked file, at its beginning; None when it was discarded meanwhile.

        Raises:
            StorageError: It is empty, or no whole MP4.
        """
        with self._lock:
            return self._complete()

    def keep(self, *, replace: bool) -> SavedFile:
        """Give the checked file its name, in one step. A name that is taken by other content stays as it is.

        Args:
            replace: Whether to take the name from what has it.

        Raises:
            StorageError: It is empty, or no whole MP4; or both names are taken.
        """
        with self._lock:
            target, file = self._target, self._complete()
            if target is None or self._path is None or file is None:
                raise StorageError("the saving was cancelled", target=self.label)
            os.fsync(file.fileno())
            if os.name == "nt":
                file.close()  # an open file can be neither renamed nor removed there
            if replace:
                self._path.replace(target)
            else:
                target = self._named(self._path, target)
            self._done = True
            file.close()
            _sync_folder(target.parent)
            return SavedFile(target, self.size, self.sha256)

    def discard(self) -> None:
        """Remove the file, unless it was kept."""
        with self._lock:
            if self._done:
                return
            self._done = True
            # Removed before it is closed: while it is open it is locked, and the name nobody else's.
            if self._path is not None and os.name != "nt":
                with contextlib.suppress(OSError):
                    self._path.unlink()
            if self._file is not None:
                # Closing flushes, which fails on a full disk; the file goes anyway.
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
            if self._path is not None and os.name == "nt":
                with contextlib.suppress(OSError):
                    self._path.unlink()

    def _complete(self) -> BinaryIO | None:
        file = self._file
        if file is None:
            return None
        if not self.size:
            raise StorageError("the output is empty", target=self.label)
        file.flush()
        wrong = flaw(file, self.size) if self.label.lower().endswith(".mp4") else None
        if wrong:
            raise StorageError(
                f"the output is no whole MP4: {wrong}",
                target=self.label,
                advice="save it again, or look at the output's URL in a browser within 7 days; both cost nothing",
            )
        file.seek(0)
        return file

    def _named(self, part: Path, target: Path) -> Path:
        """The name that the part took: its own, or one with its digest beside a file with other content."""
        for name in (target, beside(target, self.sha256)):
            try:
                _link(part, name)
            except FileExistsError:
                if name.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
                if not _is(name, self.size, self.sha256):
                    continue
            with contextlib.suppress(FileNotFoundError):  # it was renamed, not linked
                part.unlink()
            return name
        raise StorageError(
            f"{target} and {beside(target, self.sha256).name} are there already with other content",
            target=self.label,
            advice="save it elsewhere; that costs nothing",
        )


def beside(target: _Path, sha256: str) -> _Path:
    """The name for an output whose own name is taken by other content: it tells what it holds."""
    return target.with_name(f"{target.stem}-{sha256[:8]}{target.suffix}")


def _claimed(target: Path) -> tuple[Path, BinaryIO]:
    """A part that is ours alone.

    Its name follows from the target's, so that what a killed process left is found, and does not pile up. Whether it
    is left or in use tells a lock, which goes with its process however that ends. While it is in use, and where there
    are no locks, the part gets a name of its own.
    """
    path = target.with_name(f".{target.name[:200]}.part")
    _remove_left(path)
    with contextlib.suppress(FileExistsError):
        file = path.open("x+b")
        if _locked(file) and _names(path, file):
            return path, file
        file.close()
    path = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.part")
    return path, path.open("x+b")


def _remove_left(path: Path) -> None:
    """Remove a part that nobody writes any more."""
    with contextlib.suppress(OSError), path.open("r+b") as left:
        if _locked(left) and _names(path, left):
            path.unlink()


def _locked(file: BinaryIO) -> bool:
    """Whether the lock of the file is ours now."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 -- there alone

            file.seek(2**30)  # beyond what is written: a locked byte cannot be read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl  # noqa: PLC0415 -- there alone

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _names(path: Path, file: BinaryIO) -> bool:
    """Whether the name still stands for the open file: another process may have removed and made it anew."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _link(part: Path, target: Path) -> None:
    """Give the part a second name, if nothing has it.

    Raises:
        FileExistsError: Something has it.
    """
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links. Between the look and the renaming another process may take the name.
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        part.replace(target)


def _begin_sync(file: BinaryIO, start: int, end: int) -> None:
    """Let the system write that range to the disk without waiting for it, where it can be told so."""
    if sys.platform == "linux":
        file.flush()
        # What is unwritten cannot be dropped, and is begun to be written instead.
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _is(path: Path, size: int, sha256: str) -> bool:
    """Whether the file has that content."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            digest = hashlib.sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == sha256


def _sync_folder(folder: Path) -> None:
    """Make a rename last. Windows and some file systems cannot, and the file is complete without it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
