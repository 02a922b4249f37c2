"""Where one output goes: a file, or a name in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import anyio.to_thread
import attrs

from kling_async._core.prediction import SavedFile

from ._part import Part, beside


class Target(Protocol):
    """Where one output goes."""

    @property
    def address(self) -> str:
        """What the ledger calls it: an absolute path, or a URL."""
        ...

    def part(self) -> Part:
        """A new temporary file for it."""
        ...

    async def keep(self, part: Part) -> SavedFile:
        """Put what was written to `part` where it belongs, checked and in one step.

        Raises:
            StorageError: It is no whole MP4, or could not be put.
            OSError: The disk refused.
        """
        ...

    async def kept(self, address: str, size: int, sha256: str) -> SavedFile | None:
        """What an earlier saving to this target left at `address`, if it is there still with that size."""
        ...


@attrs.frozen
class FileTarget:
    """A file on the disk.

    Attributes:
        path: The file; its folder is made.
        replace: Whether a file of that name with other content gives way; else it stays, and the output is saved beside
            it with the beginning of its digest in its name.
    """

    path: Path
    replace: bool = False

    @property
    def address(self) -> str:
        """The absolute path."""
        return str(self.path.absolute())

    def part(self) -> Part:
        """A temporary file in the folder, so that it can be renamed in one step."""
        return Part(str(self.path), self.path)

    async def keep(self, part: Part) -> SavedFile:
        """Give the part its name."""
        return await anyio.to_thread.run_sync(lambda: part.keep(replace=self.replace))

    async def kept(self, address: str, size: int, sha256: str) -> SavedFile | None:
        """The file of an earlier saving."""
        for path in (self.path, beside(self.path, sha256)):
            if str(path.absolute()) == address and await anyio.to_thread.run_sync(_size, path) == size:
                return SavedFile(path, size, sha256)
        return None


def _size(path: Path) -> int | None:
    """Bytes of a file, or None when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return None
