"""Rehearsals of earlier runs of `run --emulator`: their videos are fakes, and their predictions ended with them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from rich.text import Text

from kling_async.errors import LedgerError
from kling_async.ledger import State, read_ledger
from kling_async.ledger._sqlite.reader import writer_of

from .ledgers import REHEARSAL_FILE
from .output import plural, print_text

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async.ledger import Row

_EMULATOR_HOST: Final = "127.0.0.1"
_SUFFIXES: Final = ("", "-wal", "-shm", ".closed", ".options")


def remove_rehearsal(ledger: Path) -> None:
    """Remove an earlier rehearsal, so that a new one begins without its ledger and gets the same names.

    Args:
        ledger: The ledger of the rehearsal; it need not exist.

    Raises:
        LedgerError: A process is rehearsing there, or the file is no ledger.
        OSError: A file cannot be removed.
    """
    if not ledger.is_file():
        return
    owner = writer_of(ledger)
    if owner is not None:
        raise LedgerError(
            f"process {owner} is rehearsing with {ledger}; nothing was sent",
            advice="wait for its end, or choose another --out",
        )
    _remove_fakes(ledger)
    for suffix in _SUFFIXES:
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)


def clear_names(console: Console, folder: Path) -> None:
    """Remove the fakes that a rehearsal of an older version left among the videos, so that paid ones get their names.

    The ledger of that rehearsal stays: its name alone does not prove that nothing in it was paid.

    Args:
        console: The console to print to.
        folder: Folder of the videos.

    Raises:
        OSError: A file cannot be removed.
    """
    ledger = folder / REHEARSAL_FILE
    if not ledger.is_file() or writer_of(ledger) is not None:
        return
    try:
        removed = _remove_fakes(ledger)
    except LedgerError:
        return  # unreadable: nothing shows which files are fakes
    if removed:
        text = f"{plural(removed, 'video')} of an earlier rehearsal removed from {folder}: an emulator had made them."
        print_text(console, Text(text, "dim"))


def _remove_fakes(ledger: Path) -> int:
    """Remove the videos of a rehearsal that are unchanged; return their number.

    Raises:
        LedgerError: The file is no ledger.
    """
    fakes = [Path(row.path or "") for row in read_ledger(ledger, states=[State.DOWNLOADED]) if _is_fake(row)]
    for fake in fakes:
        fake.unlink(missing_ok=True)
    return len(fakes)


def _is_fake(row: Row) -> bool:
    """Return whether the video of a job was made by an emulator on this computer, and is still as it was saved."""
    path = Path(row.path or "")
    if urlsplit(row.output or "").hostname != _EMULATOR_HOST or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == row.sha256
