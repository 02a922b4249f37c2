"""`kling-async ledger FILE declare-complete`: go on with a ledger file that was refused for lack of its `-wal` file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from kling_async._core.text import one_line
from kling_async.errors import ConfigurationError
from kling_async.ledger._sqlite import completeness
from kling_async.ledger.sqlite import LOCK_TIMEOUT_S

from .asking import confirmed
from .exits import Exit
from .output import make_console, plural, print_text
from .reading import format_local_time, rows_of

if TYPE_CHECKING:
    from .options import DoubtOptions


def declare_complete(options: DoubtOptions, *, yes: bool) -> Exit:
    """Print what a ledger file has and what is risked, ask, and declare that the file lacks no steps.

    Args:
        options: The ledger.
        yes: Do not ask for confirmation.

    Raises:
        ConfigurationError: The ledger is a database, or there is no terminal to ask.
        LedgerError: A process writes the file, it is damaged, cannot be written, or lacks nothing.
    """
    ledger = options.ledger_name
    if ledger.path is None:
        raise ConfigurationError(f"{ledger} is a database, and has no files to be complete", advice="name a file")
    console = make_console()
    jobs, last = 0, None
    for row in rows_of(ledger):
        jobs, last = jobs + 1, row.updated_at
    writer = completeness.unclosed(ledger.path)
    if writer is not None:
        has = f"{plural(jobs, 'job')}, the last step of {format_local_time(last)}" if jobs else "no jobs"
        means = (
            f"{ledger} has {has}; {writer} did not close it. What it sent after that is paid for again by the next run."
        )
        if not confirmed(
            console,
            one_line(means),
            yes=yes,
            purpose="ask for confirmation",
            undone="Nothing was changed.",
            advice="confirm with --yes",
        ):
            return Exit.NOTHING_DONE
    completeness.declare_complete(ledger.path, LOCK_TIMEOUT_S)
    print_text(console, Text(one_line(f"{ledger} can be opened again."), "green"))
    return Exit.WELL
