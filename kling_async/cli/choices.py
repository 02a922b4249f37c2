"""Values of options that accept one of several words."""

from __future__ import annotations

from enum import StrEnum


class ProviderChoice(StrEnum):
    """Service that makes the videos."""

    WAVESPEED = "wavespeed"
    GPTPROTO = "gptproto"


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


class FormatChoice(StrEnum):
    """Format written by `export`."""

    RESULTS = "results"
    ERRORS = "errors"
    STATS = "stats"
    METADATA = "metadata"
    PARQUET = "parquet"
