"""Marks that people give videos: good, bad, or to be made again."""

from __future__ import annotations

from enum import StrEnum

import attrs


class Mark(StrEnum):
    """Opinion on a video."""

    GOOD = "good"
    BAD = "bad"
    AGAIN = "again"


@attrs.frozen
class Marked:
    """A mark of a video.

    Attributes:
        mark: The mark.
        at: Time at which it was given, in seconds since the epoch.
    """

    mark: Mark
    at: float
