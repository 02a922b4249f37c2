"""`kling-async export`: results as files, from a ledger."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.text import Text

from kling_async._core.text import one_line
from kling_async.results import Format
from kling_async.results import export as write_files

from .exits import Exit
from .hints import RunRecord, recorded_run
from .output import make_console, plural, print_text
from .results import print_command

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console

    from kling_async.results import Exported

    from .ledgers import LedgerName
    from .options import ExportOptions


def export(options: ExportOptions) -> Exit:
    """Write the files and print their paths."""
    console = make_console()
    formats = [Format(choice.value) for choice in options.formats or ()]
    formats = formats or [Format.RESULTS, Format.ERRORS, Format.STATS]
    ledger, out = options.ledger_name, options.out or options.ledger_name.folder
    for made in write_files(ledger.where, out, formats, account=ledger.account, batch=options.name):
        print_text(console, Text(f"{_path(made, out)}: {plural(made.rows, 'job')}"))
        print_left_out(console, made)
        if made.format is Format.AGAIN:
            _print_again(console, made, options)
        if made.format is Format.ERRORS and made.rows:
            record = recorded_run(ledger, options.name)
            if record is None:
                record = RunRecord(str(out), ("--emulator",) if ledger.is_rehearsal else ())
            print_rerun(console, made, out, ledger=ledger, to=record.shown_out, more=record.options)
    return Exit.WELL


def _print_again(console: Console, made: Exported, options: ExportOptions) -> None:
    """Print what to do with the manifest of videos to make again."""
    if not made.rows:
        print_text(console, "No video is marked to be made again; kling-async gallery LEDGER --serve marks them.")
        return
    ledger, out = options.ledger_name, options.out or options.ledger_name.folder
    record = recorded_run(ledger, options.name) or RunRecord(str(out), ())
    words = ["kling-async", "run", str(_path(made, out)), "--out", record.shown_out]
    words += [*ledger.option_for(record.shown_out), *record.options]
    words += [] if "--seen" in record.options else ["--seen", "pay"]
    words += ["--root", str(made.root)] if made.root else []
    words += ["--from-service"] if made.own_models else []
    print_text(console, "Edit its prompts as you like. This makes these videos again, and pays for them again:")
    print_command(console, shlex.join(words))


def print_left_out(console: Console, made: Exported) -> None:
    """Print how many jobs are missing in a file, by reason."""
    for reason, count in made.left_out.items():
        print_text(console, Text(f"  {plural(count, 'job')} left out: {one_line(reason)}", "yellow"))


def print_rerun(
    console: Console, made: Exported, folder: Path, *, ledger: LedgerName, to: str, more: Iterable[str]
) -> None:
    """Print the command that runs the jobs of an errors manifest, and whether they are paid for again.

    Args:
        console: The console to print to.
        made: The manifest.
        folder: Folder of the manifest, as the user wrote it.
        ledger: Ledger of the jobs.
        to: Destination of the videos.
        more: Further options of the run.
    """
    count = made.rows - made.invalid
    if made.invalid:
        rows = "1 row was" if made.invalid == 1 else f"{made.invalid} rows were"
        print_text(
            console, Text(f"{rows} left out: mend them in {_path(made, folder)}, where _error says why.", "yellow")
        )
    if count:
        jobs, them = ("1 job has", "it") if count == 1 else (f"{count} jobs have", "them")
        again = f"runs {them} again, and pays for {them} again"
        if ledger.is_rehearsal:
            again = f"rehearses {them} again, for nothing"
        print_text(console, f"{jobs} no video and none is on its way. This {again}:")
    else:
        print_text(console, "Then this runs them:")
    words = ["kling-async", "run", str(_path(made, folder)), "--out", to, *ledger.option_for(to), *more]
    words += ["--root", str(made.root)] if made.root else []
    words += ["--from-service"] if made.own_models else []
    print_command(console, shlex.join(words))


def _path(made: Exported, folder: Path) -> Path:
    """Return the path of a file below a folder as the user wrote it."""
    return folder / made.path.relative_to(folder.absolute())
