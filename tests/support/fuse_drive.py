"""Serve a folder as a drive without shared memory maps and hard links: `python fuse_drive.py FOLDER MOUNT`."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import mfusepy  # type: ignore[import-untyped]  # it has no types


class Drive(mfusepy.Operations):  # type: ignore[misc]  # untyped
    use_ns = True

    def __init__(self, behind: Path) -> None:
        self.behind = behind

    def at(self, path: str) -> Path:
        return self.behind / path.lstrip("/")

    def access(self, path: str, amode: int) -> int:
        if not os.access(self.at(path), amode):
            raise mfusepy.FuseOSError(errno.EACCES)
        return 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = self.at(path).lstat()
        names = ("st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid")
        times = {f"st_{name}time": getattr(found, f"st_{name}time_ns") for name in "acm"}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(found.name for found in self.at(path).iterdir())]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.at(path), os.O_RDWR | os.O_CREAT, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.at(path), flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_TRUNC))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self.at(path) if fh is None else fh, length)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def rename(self, old: str, new: str) -> int:
        self.at(old).rename(self.at(new))
        return 0

    def link(self, target: str, source: str) -> int:
        raise mfusepy.FuseOSError(errno.EPERM)

    symlink = link

    def mkdir(self, path: str, mode: int) -> int:
        self.at(path).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        self.at(path).rmdir()
        return 0

    def unlink(self, path: str) -> int:
        self.at(path).unlink()
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self.at(path).chmod(mode)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        os.utime(self.at(path), ns=times)
        return 0


if __name__ == "__main__":
    # With `direct_io` the kernel refuses shared memory maps.
    mfusepy.FUSE(Drive(Path(sys.argv[1])), sys.argv[2], foreground=True, nothreads=True, direct_io=True)
