"""Names that several rows of a list share, in a few bytes per row: a list may have millions."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import pairwise
from typing import Final

from kling_async._core.picture_names import folded

_BUCKETS: Final = 256


class RepeatedNames:
    """Names that are not unique in a list; in an extremely rare case, also others.

    Args:
        digests: Their hashes, sorted.
    """

    def __init__(self, digests: array[int] | None = None) -> None:
        self._digests = digests if digests is not None else array("q")

    def __contains__(self, name: str) -> bool:
        digest = hash(folded(name))
        place = bisect_left(self._digests, digest)
        return place < len(self._digests) and self._digests[place] == digest


class Names:
    """Collects the names of rows, of which only hashes are kept."""

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    def add(self, name: str | None) -> None:
        """Add the name of a row, if it has one."""
        if name is not None:
            digest = hash(folded(name))
            self._buckets[digest % _BUCKETS].append(digest)

    def repeated(self) -> RepeatedNames:
        """Return the names that were added more than once, and forget all of them."""
        found: list[int] = []
        for place, bucket in enumerate(self._buckets):
            digests = sorted(bucket)
            found += {one for one, other in pairwise(digests) if one == other}
            self._buckets[place] = array("q")
        return RepeatedNames(array("q", sorted(found)))
