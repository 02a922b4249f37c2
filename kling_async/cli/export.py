"""`kling-async export`: results as files, from a ledger."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.text import Text

from kling_async.results import Format
from kling_async.results import export as write_files

from .interrupts import Exit
from .output import make_console, plural, print_text, printable
from .results import print_command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from kling_async.results import Exported

    from .options import ExportOptions


def export(options: ExportOptions) -> Exit:
    """Write the files and print their paths."""
    console = make_console()
    formats = [Format(choice.value) for choice in options.formats or ()]
    formats = formats or [Format.RESULTS, Format.ERRORS, Format.STATS]
    ledger, out = options.ledger_name, options.out or options.ledger_name.folder
    for made in write_files(ledger.where, out, formats, account=ledger.account, batch=options.batch):
        print_text(console, Text(f"{_path(made, out)}: {plural(made.rows, 'job')}"))
        print_left_out(console, made)
        if made.format is Format.ERRORS and made.rows:
            print_text(console, "They have no video, and none is on its way. This runs them again, and pays for them:")
            print_command(console, rerun_command(made, out, out))
    return Exit.WELL


def print_left_out(console: Console, made: Exported) -> None:
    """Print how many jobs are missing in a file, by reason."""
    for reason, count in made.left_out.items():
        print_text(console, Text(f"  {plural(count, 'job')} left out: {printable(reason)}", "yellow"))


def rerun_command(made: Exported, folder: Path, out: str | Path, more: Sequence[str] = ()) -> str:
    """Return the command that runs the jobs of an errors manifest.

    Args:
        made: The manifest.
        folder: Folder of the manifest, as the user wrote it.
        out: Destination of the videos.
        more: Further options of the run.
    """
    words = ["kling-async", "run", str(_path(made, folder)), "--out", str(out), *more]
    return shlex.join([*words, *(["--root", str(made.root)] if made.root else [])])


def _path(made: Exported, folder: Path) -> Path:
    """Return the path of a file below a folder as the user wrote it."""
    return folder / made.path.relative_to(folder.absolute())
