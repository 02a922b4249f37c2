"""`kling-async export`: results as files, from a ledger."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from rich.text import Text

from kling_async.cli.choices import FormatChoice
from kling_async.cli.interrupts import Exit
from kling_async.cli.ledgers import LedgerName
from kling_async.cli.output import clean, console, say
from kling_async.cli.progress import counted
from kling_async.cli.results import tell_command
from kling_async.results import Format
from kling_async.results import export as write

if TYPE_CHECKING:
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
    path = out / made.path.relative_to(out.absolute())
    say(to, Text(f"{path}: {counted(made.rows, 'job')}"))
    for reason, count in made.left_out.items():
        say(to, Text(f"  {counted(count, 'job')} left out: {clean(reason)}", "yellow"))
    if made.format is Format.ERRORS and made.rows:
        say(to, "They have no video, and none is on its way. This runs them again, and pays for them:")
        words = ["kling-async", "run", str(path), "--out", str(out)]
        tell_command(to, shlex.join([*words, *(["--root", str(made.root)] if made.root else [])]))
