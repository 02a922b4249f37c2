"""Temporary file of one output: written, checked, then renamed or removed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import sys
import tempfile
import threading
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, TypeVar

from kling_async._core.prediction import SavedFile
from kling_async._files import open_file
from kling_async.errors import StorageError

from ._mp4 import Flaw, flaw, page_flaw
from .naming import MEDIA_TYPES, SUFFIX

_READ_BYTES = 2**20
_WRITEBACK_BYTES = 16 * 2**20
"""Bytes after which write-back to the disk is started, so that the final fsync has little left to write.

The fsync of a ledger on the same disk profits too: some file systems make it wait for all unwritten data.
"""
_Path = TypeVar("_Path", bound=PurePath)


class Part:
    """Temporary file of one output. Its methods block and run in worker threads, one after the other.

    The lock enforces that order in one case: a natively cancelled task does not wait for its thread, and reaches
    `discard` while the write still runs. After `discard` the other methods do nothing.

    Args:
        label: Name of the target in errors. A name in `.mp4` requires an MP4.
        beside: The final file, in whose folder the part is created; None for an anonymous file in the system's
            temporary folder, which disappears with its process.
    """

    def __init__(self, label: str, beside: Path | None = None) -> None:
        self.size = 0
        self.label = label
        self._writeback_from = 0
        self._target = beside
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._done = False
        self._sha256 = hashlib.sha256()
        self._lock = threading.Lock()

    @property
    def sha256(self) -> str:
        """SHA-256 of the written bytes, in lower-case hex."""
        return self._sha256.hexdigest()

    @property
    def path(self) -> Path | None:
        """Path at which something else may write the file while it is open; None for an anonymous or discarded one."""
        return self._path

    def measure(self) -> None:
        """Take length and digest from the file, which something else has written by its path."""
        with self._lock:
            self._sha256, self.size = hashlib.sha256(), 0
            file = self._rewound()
            while file is not None and (block := file.read(_READ_BYTES)):
                self._sha256.update(block)
                self.size += len(block)

    def open(self) -> None:
        """Create the file, unless it is open; remove a leftover of a killed process for the same output."""
        with self._lock:
            if self._done or self._file is not None:
                return
            if self._target is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- `discard` closes it
                return
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._path, self._file = _create(self._target)

    def write(self, chunk: bytes) -> None:
        """Append a chunk and update the digest, while the chunk is still in the processor's cache."""
        with self._lock:
            if self._file is not None:
                self._file.write(chunk)
                self._sha256.update(chunk)
                self.size += len(chunk)
                if self._path is not None and self.size - self._writeback_from >= _WRITEBACK_BYTES:
                    _start_writeback(self._file, self._writeback_from, self.size)
                    self._writeback_from = self.size

    def restart(self) -> None:
        """Truncate the file."""
        with self._lock:
            if self._file is not None:
                self._file.seek(0)
                self._file.truncate()
                self._sha256 = hashlib.sha256()
                self.size = self._writeback_from = 0

    def flaw(self) -> Flaw | None:
        """Return why the file is not a complete output, or None."""
        with self._lock:
            if self._file is None:
                return None
            if not self.size:
                return Flaw("it is empty")
            self._file.flush()
            suffix = PurePosixPath(self.label).suffix.lower()
            if suffix == SUFFIX:
                return flaw(self._file, self.size)
            return page_flaw(self._file) if suffix in MEDIA_TYPES else None

    def complete(self) -> BinaryIO | None:
        """Return the file rewound; None if it was discarded meanwhile."""
        with self._lock:
            return self._rewound()

    def keep(self, *, replace: bool) -> SavedFile:
        """Rename the file atomically. `flaw` has checked it.

        Args:
            replace: Whether to replace an existing file with other content; if not, the part gets a name with its
                digest next to it.

        Raises:
            StorageError: Both names exist with other content.
        """
        with self._lock:
            target, file = self._target, self._rewound()
            if target is None or self._path is None or file is None:
                raise StorageError("saving was cancelled", target=self.label)
            os.fsync(file.fileno())
            if os.name == "nt":
                file.close()  # Windows can neither rename nor remove an open file
            if replace:
                self._path.replace(target)
            else:
                target = self._link_as(self._path, target)
            self._done = True
            file.close()
            _sync_folder(target.parent)
            return SavedFile(target, self.size, self.sha256)

    def release(self) -> None:
        """Remove the file and what it has; `open` creates it again. A download that waits keeps no file open."""
        with self._lock:
            if not self._done:
                self._remove()
                self._sha256 = hashlib.sha256()
                self.size = self._writeback_from = 0

    def discard(self) -> None:
        """Remove the file, unless `keep` has renamed it."""
        with self._lock:
            if not self._done:
                self._done = True
                self._remove()

    def _remove(self) -> None:
        # Removed before it is closed: its lock, which is held until then, reserves the name.
        if self._path is not None and os.name != "nt":
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._file is not None:
            # Closing flushes, which fails on a full disk; the file is removed anyway.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        if self._path is not None and os.name == "nt":
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._path = None

    def _rewound(self) -> BinaryIO | None:
        if self._file is not None:
            self._file.flush()
            self._file.seek(0)
        return self._file

    def _link_as(self, part: Path, target: Path) -> Path:
        """Rename the part without replacing other content, and return its new name."""
        for name in (target, beside(target, self.sha256)):
            try:
                _link(part, name)
            except FileExistsError:
                if name.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
                if not _has_content(name, self.size, self.sha256):
                    continue
            with contextlib.suppress(FileNotFoundError):  # where it was renamed instead of linked
                part.unlink()
            return name
        raise StorageError(
            f"{target} and {beside(target, self.sha256).name} already exist with other content",
            target=self.label,
            advice="save it elsewhere, which is free",
        )


def beside(target: _Path, sha256: str) -> _Path:
    """Return the name with the digest, for an output whose own name exists with other content."""
    return target.with_name(f"{target.stem}-{sha256[:8]}{target.suffix}")


def _create(target: Path) -> tuple[Path, BinaryIO]:
    """Create and lock the part of a target.

    Its name derives from the target's, so that the next run finds and removes the leftover of a killed process. A file
    lock, which ends with its process, distinguishes leftovers from parts in use. While the name is in use, and on file
    systems without locks, the part gets a random name.
    """
    path = target.with_name(f".{target.name[:200]}.part")
    _remove_leftover(path)
    with contextlib.suppress(FileExistsError):
        file = path.open("x+b")
        if _try_lock(file) and _is_same_file(path, file):
            return path, file
        file.close()
    path = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.part")
    return path, path.open("x+b")


def _remove_leftover(path: Path) -> None:
    """Remove a part that no process has locked."""
    with contextlib.suppress(OSError), path.open("r+b") as leftover:
        if _try_lock(leftover) and _is_same_file(path, leftover):
            path.unlink()


def _try_lock(file: BinaryIO) -> bool:
    """Lock the file without waiting; return whether that succeeded."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 -- exists on Windows only

            file.seek(2**30)  # beyond the content: a locked byte cannot be read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl  # noqa: PLC0415 -- does not exist on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_same_file(path: Path, file: BinaryIO) -> bool:
    """Return whether the path still refers to the open file; another process may have removed and recreated it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _link(part: Path, target: Path) -> None:
    """Link the part to a second name.

    Raises:
        FileExistsError: The name exists.
    """
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links; another process may create the name between check and rename.
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        part.replace(target)


def _start_writeback(file: BinaryIO, start: int, end: int) -> None:
    """Start writing a range to the disk without waiting for it, on Linux."""
    if sys.platform == "linux":
        file.flush()
        # Dirty pages cannot be dropped: this advice makes Linux start writing them.
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _has_content(path: Path, size: int, sha256: str) -> bool:
    """Return whether the file has that size and digest."""
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            digest = hashlib.sha256()
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == sha256


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system supports that; the file is complete either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
