"""Image files as bodies of requests: read piece by piece while they are sent, so that they need no memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import attrs

from .preflight import changed, open_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PIECE_BYTES = 2**17
"""Bytes that are read, and sent, at once. Files of no more are sent from memory."""


@attrs.frozen
class ImageStream:
    """Content of an image file.

    The last piece is given only if the content is that of the digest, so that no storage gets a whole file of another.

    Attributes:
        path: The file.
        field: Field of the job, for errors.
        size: Length in bytes.
        sha256: SHA-256 of the content in hex.
    """

    path: Path
    field: str
    size: int
    sha256: str

    async def __aiter__(self) -> AsyncIterator[bytes]:
        whole = hashlib.sha256()

        def read(start: int) -> bytes:
            # Opened for each piece: many files may be sent at once, and the open ones of a process are limited.
            with open_image(self.path, self.field) as file:
                file.seek(start)
                piece = file.read(PIECE_BYTES)
            whole.update(piece)
            return piece

        sent = 0
        while sent < self.size:
            piece = await anyio.to_thread.run_sync(read, sent)
            sent += len(piece)
            if not piece or (sent >= self.size and whole.hexdigest() != self.sha256):
                raise changed(self.path, self.field, expected=self.sha256, found=whole.hexdigest())
            yield piece
