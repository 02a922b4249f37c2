"""Where videos go: what `--out` means."""

from __future__ import annotations

from pathlib import Path

from kling_async.storage import Outputs


def is_store(out: str) -> bool:
    """Whether that is the URL of an object store, and no folder."""
    return "://" in out


def plain(out: str) -> str:
    """The same as users and messages write it: a folder without a final slash."""
    return out if is_store(out) else str(Path(out))


def place(out: str) -> Path | Outputs:
    """What a session is told.

    Raises:
        ConfigurationError: It is the URL of an object store, and obstore is missing or makes nothing of it.
    """
    return Outputs(out) if is_store(out) else Path(out)
