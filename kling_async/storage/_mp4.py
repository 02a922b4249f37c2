"""Check that a file is a complete MP4, by its box structure; nothing is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

_REQUIRED_BOXES = (b"moov", b"mdat")
_HEADER_BYTES = 8
"""Length and type at the beginning of a box."""
_MAX_BOXES = 100_000
"""Boxes that are read; a fragmented file has two for every fragment."""


def flaw(file: BinaryIO, size: int) -> str | None:
    """Return why the file is not a complete MP4, or None.

    Trailing bytes that are not a box are accepted: players accept them too, and a paid video must not be discarded.

    Args:
        file: The open file.
        size: Its length in bytes.
    """
    seen: set[bytes] = set()
    at = 0
    for _ in range(_MAX_BOXES):
        if size - at < _HEADER_BYTES:
            break
        file.seek(at)
        head = file.read(2 * _HEADER_BYTES)
        kind = head[4:8]
        if at == 0 and kind != b"ftyp":
            return f"it begins with {head[:12]!r}"
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big") if len(head) == 2 * _HEADER_BYTES else 2 * _HEADER_BYTES
        end = at + length if length else size
        if length and (length < _HEADER_BYTES or not kind.isalnum()):
            break
        if end > size:
            return f"its {kind.decode()!r} box ends at byte {end} of {size}"
        seen.add(kind)
        at = end
    missing = [kind.decode() for kind in _REQUIRED_BOXES if kind not in seen]
    return f"it has no {' and no '.join(missing)} box" if missing else None
