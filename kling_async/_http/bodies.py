"""Bodies of replies, decoded here in pieces.

aiohttp's decoding is switched off: releases before 3.13.3 decode whatever one read of the socket has at once, which may
be a thousand times as long.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import anyio.lowlevel

if TYPE_CHECKING:
    import aiohttp

ACCEPT_ENCODING = "gzip, deflate"
"""Encodings that can be decoded."""
_PIECE_BYTES = 2**18
"""Greatest size in bytes of a decoded piece."""
_MAX_OVERHEAD_BYTES = 2**20
"""Bytes by which an encoded body may be longer than what it stands for: empty blocks could go on forever."""


class BodyTooLargeError(Exception):
    """A body is larger than allowed."""


class BodyUndecodableError(Exception):
    """A body is not encoded as its headers say."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the whole body of a response; `Body.read` has the arguments and errors.

    Most replies are short, and as long as their headers say: aiohttp reads those in less time.
    """
    length = response.content_length
    if length is not None and length <= limit and "Content-Encoding" not in response.headers:
        return await response.read()
    return await Body(response).read(limit)


class Body:
    """The body of a response, decoded by its `Content-Encoding`; bytes in another encoding are left as they are.

    Args:
        response: Response of a request that was made with `auto_decompress=False`.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        self._is_deflate = encoding == "deflate"
        # 32: zlib finds out whether the format is gzip or zlib.
        self._decoder = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoding in {"gzip", "x-gzip", "deflate"} else None
        self._encoded = b""
        self._received = self._decoded = 0

    async def read(self, limit: int) -> bytes:
        """Return the whole body.

        Args:
            limit: Greatest size in bytes, before and after decoding.

        Raises:
            BodyTooLargeError: It is larger; the rest was not read.
            BodyUndecodableError: It cannot be decoded.
        """
        pieces: list[bytes] = []
        size = self._response.content_length or 0
        while size <= limit and (piece := await self.next()):
            pieces.append(piece)
            size = max(self._received, self._decoded)
        if size > limit:
            raise BodyTooLargeError(f"more than {limit:,} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def next(self) -> bytes:
        """Return the next piece; empty at the end.

        Raises:
            BodyUndecodableError: It cannot be decoded.
        """
        if self._decoder is None:
            piece = await self._content.readany()
            self._received += len(piece)
            return piece
        while True:
            if self._encoded:
                # A small body may stand for a large one.
                await anyio.lowlevel.checkpoint()
            else:
                self._encoded = await self._content.readany()
            at_end = not self._encoded
            if not self._received and self._encoded and self._is_deflate and self._encoded[0] & 0xF != zlib.DEFLATED:
                # Some servers send the bare format without zlib's header.
                self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
            piece = self._decode(self._decoder)
            if piece or at_end:
                return piece

    def _decode(self, decoder: zlib._Decompress) -> bytes:
        """Return what the next bytes stand for, up to `_PIECE_BYTES`."""
        encoded = self._encoded
        try:
            piece = decoder.decompress(encoded, _PIECE_BYTES)
        except zlib.error as error:
            raise BodyUndecodableError("the encoded body is corrupt") from error
        if decoder.unused_data:
            raise BodyUndecodableError("bytes follow the end of the encoded body")
        self._encoded = decoder.unconsumed_tail
        self._received += len(encoded) - len(self._encoded)
        self._decoded += len(piece)
        if not (encoded or piece or decoder.eof or not self._received):
            raise BodyUndecodableError("the encoded body ends early")
        if self._received > self._decoded + _MAX_OVERHEAD_BYTES:
            raise BodyUndecodableError("the encoded body stands for much less than its size")
        return piece
