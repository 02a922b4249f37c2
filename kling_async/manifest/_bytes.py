"""Bytes of text files as UTF-8 with line feeds: unpacked, of other encodings and line ends."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from typing import IO, TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

GZIP: Final = b"\x1f\x8b"
OLE: Final = b"\xd0\xcf\x11\xe0"
"""First bytes of Excel workbooks that are locked, and of those before Excel 2007."""
_SNIFFED_BYTES: Final = 2**16
_CHUNK_BYTES: Final = 2**16
_DAMAGE: Final = (EOFError, zlib.error, gzip.BadGzipFile)


def unpacked(file: IO[bytes]) -> IO[bytes]:
    """Return the content of a file that may be packed by gzip, at its beginning.

    Raises:
        OSError: It cannot be read.
    """
    magic = file.read(len(GZIP))
    file.seek(0)
    return cast("IO[bytes]", _Gzip(fileobj=file)) if magic == GZIP else file


class _Gzip(gzip.GzipFile):
    """A packed file whose damage is an `OSError`."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except _DAMAGE as error:
            raise gzip.BadGzipFile(f"the gzip file is damaged or cut: {error}") from None

    def readline(self, size: int | None = -1) -> bytes:
        try:
            return super().readline(size)
        except _DAMAGE as error:
            raise gzip.BadGzipFile(f"the gzip file is damaged or cut: {error}") from None


def as_utf8(file: IO[bytes]) -> IO[bytes]:
    """Return a text file as UTF-8 with line feeds: UTF-16 is decoded, and single carriage returns end lines too.

    Raises:
        OSError: It cannot be read.
    """
    head = file.read(_SNIFFED_BYTES)
    file.seek(0)
    encoding = _encoding(head)
    if encoding is not None:

        def decoded() -> Callable[[bytes], bytes]:
            decode = codecs.getincrementaldecoder(encoding)(errors="replace").decode
            return lambda chunk: decode(chunk, final=not chunk).replace("\r\n", "\n").encode()

        return _Changed.of(file, decoded)
    if b"\r" in head and b"\n" not in head:
        # Line ends of old versions of Excel for the Mac.
        return _Changed.of(file, lambda: lambda chunk: chunk.replace(b"\r", b"\n"))
    return file


def _encoding(head: bytes) -> str | None:
    """Return the encoding of a text of two bytes per character, by its mark or its zeros; None for any other."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head[:4] and not any(head[1:16:2]) and all(head[0:16:2]):
        return "utf-16-le"
    if head[:4] and not any(head[0:16:2]) and all(head[1:16:2]):
        return "utf-16-be"
    return None


class _Changed(io.RawIOBase):
    """A file whose content is changed chunk by chunk while it is read, and that can be read again from its beginning.

    Args:
        file: The file.
        begin: Returns what changes the chunks, from the first.
    """

    def __init__(self, file: IO[bytes], begin: Callable[[], Callable[[bytes], bytes]]) -> None:
        self._file = file
        self._begin = begin
        self._change = begin()
        self._rest = b""
        self._position = 0

    @classmethod
    def of(cls, file: IO[bytes], change: Callable[[], Callable[[bytes], bytes]]) -> IO[bytes]:
        """Return such a file, buffered."""
        return io.BufferedReader(cls(file, change), _CHUNK_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if (offset, whence) == (0, os.SEEK_SET):
            self._file.seek(0)
            self._change, self._rest, self._position = self._begin(), b"", 0
        elif (offset, whence) != (0, os.SEEK_CUR):
            raise io.UnsupportedOperation("it can be read from its beginning alone")
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self._rest:
            chunk = self._file.read(_CHUNK_BYTES)
            self._rest = self._change(chunk)
            if not chunk:
                break
        size = min(len(view), len(self._rest))
        view[:size], self._rest = self._rest[:size], self._rest[size:]
        self._position += size
        return size
