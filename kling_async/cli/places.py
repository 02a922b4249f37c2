"""Destination of videos: the value of `--out`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kling_async.storage import Outputs


def is_store(out: str) -> bool:
    """Return whether the destination is the URL of an object store instead of a folder."""
    return "://" in out


def normalized(out: str) -> str:
    """Return the destination without the final slash of a folder, as messages and commands print it."""
    return out if is_store(out) else str(Path(out))


def below(out: str, name: str) -> str:
    """Return the destination of that name inside a folder or an object store."""
    return f"{out.rstrip('/')}/{name}" if is_store(out) else str(Path(out) / name)


def destination(out: str) -> Path | Outputs:
    """Return the value for a session's `save_to`.

    Raises:
        ConfigurationError: The URL is not of an object store, or obstore is not installed.
    """
    if not is_store(out):
        return Path(out)
    from kling_async.storage import Outputs  # noqa: PLC0415 -- slow to import, and `--help` does not need it

    return Outputs(out)
