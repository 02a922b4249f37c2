"""Check that a file is a complete MP4, by its box structure; nothing is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from typing import BinaryIO

_REQUIRED_BOXES = (b"moov", b"mdat")
_HEADER_BYTES = 8
"""Length and type at the beginning of a box."""
_MAX_BOXES = 100_000
"""Boxes that are read; a fragmented file has two for every fragment."""


@attrs.frozen
class Flaw:
    """Reason why a file is not a complete output.

    Attributes:
        reason: The reason.
        is_mp4: True if it begins as an MP4; False for an error page, or nothing.
    """

    reason: str
    is_mp4: bool = False


def page_flaw(file: BinaryIO) -> Flaw | None:
    """Return the flaw of an output of another kind than MP4 that is a page or a message; None for anything else."""
    file.seek(0)
    head = file.read(512).lstrip()[:1]
    return Flaw("it begins like a page or a message") if head in {b"<", b"{"} else None


def flaw(file: BinaryIO, size: int) -> Flaw | None:
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
            return Flaw(f"it begins with {head[:12]!r}")
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big") if len(head) == 2 * _HEADER_BYTES else 2 * _HEADER_BYTES
        end = at + length if length else size
        if length and (length < _HEADER_BYTES or not kind.isalnum()):
            break
        if end > size:
            return Flaw(f"its {kind.decode()!r} box ends at byte {end} of {size}", is_mp4=True)
        seen.add(kind)
        at = end
    missing = [kind.decode() for kind in _REQUIRED_BOXES if kind not in seen]
    return Flaw(f"it has no {' and no '.join(missing)} box", is_mp4=b"ftyp" in seen) if missing else None
