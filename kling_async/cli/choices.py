"""The words that options take."""

from __future__ import annotations

from enum import StrEnum


class ProviderChoice(StrEnum):
    """Who makes the videos."""

    WAVESPEED = "wavespeed"
    GPTPROTO = "gptproto"


class LevelChoice(StrEnum):
    """What an account is called by WaveSpeed, and permitted."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"
    ULTRA = "ultra"


class ProfileChoice(StrEnum):
    """What the emulator serves as videos."""

    VIDEO = "video"
    TINY = "tiny"


class FormatChoice(StrEnum):
    """What `export` writes."""

    RESULTS = "results"
    ERRORS = "errors"
    STATS = "stats"
    METADATA = "metadata"
    PARQUET = "parquet"
