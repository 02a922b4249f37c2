"""`kling-async export`: results as files, from a ledger."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from rich.text import Text

from kling_async.results import Format
from kling_async.results import export as write

from .choices import FormatChoice
from .interrupts import Exit
from .ledgers import LedgerName
from .output import clean, console, say
from .progress import counted
from .results import tell_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from kling_async.results import Exported


@attrs.frozen(kw_only=True)
class ExportOptions:
    """What the user asked for; see the help of the command."""

    ledger: LedgerName
    out: Path
    formats: tuple[FormatChoice, ...] = ()
    batch: str | None = None


def export(options: ExportOptions) -> Exit:
    """Write and tell."""
    to = console()
    formats = [Format(choice.value) for choice in options.formats] or [Format.RESULTS, Format.ERRORS, Format.STATS]
    ledger = options.ledger
    for made in write(ledger.where, options.out, formats, account=ledger.account, batch=options.batch):
        _tell(to, made, options.out)
    return Exit.WELL


def _tell(to: Console, made: Exported, out: Path) -> None:
    say(to, Text(f"{_path(made, out)}: {counted(made.rows, 'job')}"))
    tell_left_out(to, made)
    if made.format is Format.ERRORS and made.rows:
        say(to, "They have no video, and none is on its way. This runs them again, and pays for them:")
        tell_command(to, again_command(made, out, out))


def tell_left_out(to: Console, made: Exported) -> None:
    """Say which jobs are missing in a file, and why."""
    for reason, count in made.left_out.items():
        say(to, Text(f"  {counted(count, 'job')} left out: {clean(reason)}", "yellow"))


def again_command(made: Exported, folder: Path, out: str | Path, more: Sequence[str] = ()) -> str:
    """The command that runs the jobs of an errors manifest.

    Args:
        made: The manifest.
        folder: The folder of the manifest, as the user named it.
        out: Where the videos go.
        more: Further options of the run.
    """
    words = ["kling-async", "run", str(_path(made, folder)), "--out", str(out), *more]
    return shlex.join([*words, *(["--root", str(made.root)] if made.root else [])])


def _path(made: Exported, folder: Path) -> Path:
    return folder / made.path.relative_to(folder.absolute())
