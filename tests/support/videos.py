"""Files with the box structure of an MP4 and random content."""

from __future__ import annotations

import random


def box(kind: bytes, content: bytes, *, long: bool = False) -> bytes:
    """Return one MP4 box; `long` writes its length in the 64-bit form."""
    if long:
        return b"\0\0\0\1" + kind + (len(content) + 16).to_bytes(8, "big") + content
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def mp4(size: int, seed: int = 1) -> bytes:
    """Return an MP4 of `size` bytes."""
    head = box(b"ftyp", b"isom" + bytes(20)) + box(b"moov", bytes(100))
    return head + box(b"mdat", random.Random(seed).randbytes(size - len(head) - 8))
