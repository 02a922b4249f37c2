"""Values of options that accept one of several words."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class ProviderChoice(StrEnum):
    """Service that makes the videos."""

    WAVESPEED = "wavespeed"
    GPTPROTO = "gptproto"

    @property
    def images(self) -> Literal["upload", "inline"]:
        """Way in which image files are sent to it: GPTProto takes no uploads."""
        return "inline" if self is ProviderChoice.GPTPROTO else "upload"


class LevelChoice(StrEnum):
    """Account level at WaveSpeed, which sets the rate limits."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"
    ULTRA = "ultra"


class ProfileChoice(StrEnum):
    """Kind of video that the emulator serves."""

    VIDEO = "video"
    TINY = "tiny"


class NetworkChoice(StrEnum):
    """Line between the emulator and its clients."""

    WAN = "wan"
    THIN = "thin"


class PollingChoice(StrEnum):
    """Policy by which the status of videos is read."""

    BALANCED = "balanced"
    GENTLE = "gentle"
    EAGER = "eager"
    LIST = "list"


class FormatChoice(StrEnum):
    """Format written by `export`."""

    RESULTS = "results"
    ERRORS = "errors"
    AGAIN = "again"
    STATS = "stats"
    METADATA = "metadata"
    PARQUET = "parquet"


class SeenChoice(StrEnum):
    """Treatment of jobs that another batch of the ledger has paid for."""

    STOP = "stop"
    REUSE = "reuse"
    PAY = "pay"
