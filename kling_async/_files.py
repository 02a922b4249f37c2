"""Files: those that hold prompts and paid ids are made for their owner only, devices are not read, and few are open."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

OWNER_ONLY = 0o600
"""Mode of files with prompts or paid ids, on POSIX."""
FOR_ALL = 0o666
"""Mode of files for whom the process makes files for, on POSIX."""


def make_private(path: Path, *, like: Path | None = None) -> None:
    """Make an empty file, if there is none, which only its owner can read and write.

    Args:
        path: The file. If it exists, its mode is left.
        like: A file whose mode it gets too, if that one exists: who shares a ledger shares what belongs to it.

    Raises:
        OSError: It cannot be made.
    """
    if not path.exists():
        _make(path, OWNER_ONLY, like)


def make_part(path: Path, *, like: Path | None = None, mode: int = OWNER_ONLY) -> None:
    """Make an empty file in place of what is there, a symbolic link included; it is written and then renamed.

    Args:
        path: The file.
        like: As for `make_private`.
        mode: Its mode, less the mask of the process.

    Raises:
        OSError: It cannot be made, or somebody else has just made one.
    """
    path.unlink(missing_ok=True)
    _make(path, mode, like, os.O_EXCL)


def _make(path: Path, mode: int, like: Path | None, flags: int = 0) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | flags, mode))
    if like is not None and like.exists():
        path.chmod(stat.S_IMODE(like.stat().st_mode) | OWNER_ONLY)


def open_file(path: Path) -> BinaryIO:
    """Open an ordinary file for reading.

    Raises:
        OSError: It cannot be opened, or is a device, a pipe or a folder, which may never end.
    """
    # Without O_NONBLOCK, a pipe would be waited for.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "expected an ordinary file, got a device or a pipe", str(path))
    return os.fdopen(descriptor, "rb")


def max_open_files() -> int:
    """Return the number of files and sockets that this process may have open."""
    try:
        # Imported here: Windows has none, and no such limit.
        import resource  # noqa: PLC0415
    except ImportError:
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
