"""Target of one output: the protocol, and files on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import anyio.to_thread
import attrs

from kling_async._core.prediction import SavedFile

from ._part import Part, beside


class Target(Protocol):
    """Destination of one output: a file, or an object in a store."""

    @property
    def address(self) -> str:
        """Absolute path or URL, as the ledger records it."""
        ...

    def part(self) -> Part:
        """Return a new temporary file for it."""
        ...

    async def keep(self, part: Part) -> SavedFile:
        """Move the part, which is complete and checked, to the destination atomically.

        Raises:
            StorageError: The destination refused it.
            OSError: The disk refused.
        """
        ...

    async def kept(self, address: str, size: int, sha256: str) -> SavedFile | None:
        """Return the file that was saved to this target before at `address`, if it still has that size; else None."""
        ...


@attrs.frozen
class FileTarget:
    """File on the disk.

    Attributes:
        path: Path of the file; its folder is created.
        replace: Whether to replace a file of that name with other content; if not, the output is saved next to it under
            a name with the beginning of its digest.
        renamed: Whether the output may have another name in this folder, because it is named after a picture.
    """

    path: Path
    replace: bool = False
    renamed: bool = False

    @property
    def address(self) -> str:
        """Absolute path."""
        return str(self.path.absolute())

    def part(self) -> Part:
        """Return a temporary file in the same folder, so that it can be renamed atomically."""
        return Part(str(self.path), self.path)

    async def keep(self, part: Part) -> SavedFile:
        """Rename the part."""
        return await anyio.to_thread.run_sync(lambda: part.keep(replace=self.replace))

    async def kept(self, address: str, size: int, sha256: str) -> SavedFile | None:
        """Return the file if it is still there."""
        paths = [self.path, beside(self.path, sha256)]
        if self.renamed and address:
            paths.append(self.path.parent / Path(address).name)
        for path in paths:
            if str(path.absolute()) == address and await anyio.to_thread.run_sync(_size, path) == size:
                return SavedFile(path, size, sha256)
        return None


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes, or None if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return None
