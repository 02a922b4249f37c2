"""Whether a file is a whole MP4, as far as its boxes tell: a few reads, nothing decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

_NEEDED = (b"moov", b"mdat")
_HEAD = 8
"""Bytes of the length and the type that a box begins with."""
_MOST = 100_000
"""Boxes that are looked at: a fragmented file has two for every fragment."""


def flaw(file: BinaryIO, size: int) -> str | None:
    """What shows that the file is no whole MP4; None when nothing does.

    What follows the last box and is none is let pass: players do so too, and a paid video must not be thrown away.

    Args:
        file: The file; it is read from.
        size: Its length.
    """
    seen: set[bytes] = set()
    at = 0
    for _ in range(_MOST):
        if size - at < _HEAD:
            break
        file.seek(at)
        head = file.read(2 * _HEAD)
        kind = head[4:8]
        if at == 0 and kind != b"ftyp":
            return f"it begins with {head[:12]!r}"
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big") if len(head) == 2 * _HEAD else 2 * _HEAD
        end = at + length if length else size
        if length and (length < _HEAD or not kind.isalnum()):
            break
        if end > size:
            return f"its {kind.decode()!r} box ends at byte {end} of {size}"
        seen.add(kind)
        at = end
    missing = [kind.decode() for kind in _NEEDED if kind not in seen]
    return f"it has no {' and no '.join(missing)} box" if missing else None
