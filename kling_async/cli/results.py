"""Results of a run: JSON lines, and the paid predictions that have no video yet."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.text import Text

from kling_async._core.endings import state_of
from kling_async._core.states import UNSAVED
from kling_async._core.text import one_line

from .output import plural, print_panel, print_text
from .reading import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console

    from kling_async._core.prediction import Outcome
    from kling_async.errors import RowProblem
    from kling_async.ledger import Row

    from .ledgers import LedgerName

_MAX_IDS_LISTED: Final = 10
_MAX_IDS_IN_COMMAND: Final = 4


def row(outcome: Outcome, folder: Path) -> dict[str, object]:
    """Return an outcome as a line of `--json`.

    Args:
        outcome: The outcome.
        folder: Folder that the paths of files are relative to.
    """
    error = outcome.error
    file: str | None = None
    if outcome.saved is not None:
        where = outcome.saved.location
        if isinstance(where, Path):
            path, parent = where.absolute(), folder.absolute()
            where = (path.relative_to(parent) if path.is_relative_to(parent) else where).as_posix()
        file = where
    return {
        "key": outcome.key,
        "model": outcome.job.model,
        "status": state_of(outcome).label,
        "prediction_id": outcome.prediction.id if outcome.prediction else error.prediction_id if error else None,
        "file": file,
        "cost_usd": None if outcome.cost is None else float(outcome.cost),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
    }


def problem_lines(problems: Iterable[RowProblem]) -> Iterator[str]:
    """Yield the problems of a manifest as JSON lines."""
    for problem in problems:
        line = {"file": problem.file, "line": problem.line, "field": problem.path, "message": problem.message}
        yield json.dumps(line) + "\n"


def unfetched(ledger: LedgerName) -> dict[str, Row]:
    """Return the paid predictions of a ledger that are neither saved nor known to have failed, by id."""
    return {row.prediction_id: row for row in rows_of(ledger, states=UNSAVED) if row.prediction_id}


def fetch_command(ids: Mapping[str, str], out: str | Path, ledger: LedgerName | None, provider: str) -> str:
    """Return the command that fetches the videos of predictions.

    Args:
        ids: Ids and keys; many of them are left for the ledger to name.
        out: Destination of the videos.
        ledger: Ledger with the ids; None if there is none.
        provider: Name of the provider.
    """
    listed = list(ids) if len(ids) <= _MAX_IDS_IN_COMMAND or ledger is None else []
    words = ["kling-async", "fetch", *listed, "--out", str(out)]
    if ledger is not None:
        words += ledger.option_for(str(out))
    if provider != "wavespeed":
        words += ["--provider", provider]
    return shlex.join(words)


def print_command(console: Console, command: str) -> None:
    """Print a command on one line, without a frame, so that it can be copied."""
    console.print(Text(f"  {one_line(command)}", "bold green"), soft_wrap=True)


def print_unsaved(
    console: Console,
    unsaved: Mapping[str, str],
    running: int,
    *,
    out: str | Path,
    ledger: LedgerName | None,
    provider: str,
    rehearsal: bool = False,
) -> None:
    """Print which paid predictions have no video yet, and the command that fetches them.

    Args:
        console: The console to print to.
        unsaved: Ids and keys.
        running: Number of them that still run.
        out: Destination of the videos.
        ledger: Ledger with the ids; None if there is none.
        provider: Name of the provider.
        rehearsal: The service was an emulator that has ended.
    """
    if not unsaved:
        return
    lines = [
        Text(one_line(f"{prediction_id}  {key}")) for prediction_id, key in list(unsaved.items())[:_MAX_IDS_LISTED]
    ]
    if len(unsaved) > _MAX_IDS_LISTED:
        lines.append(Text(f"and {len(unsaved) - _MAX_IDS_LISTED} more", "dim"))
    ended = len(unsaved) - running
    title = [f"{plural(running, 'paid prediction')} still running at the service"] if running else []
    title += [f"{plural(ended, 'video')} paid for and not saved"] if ended else []
    if ledger is not None:
        lines.append(Text(f"The ids are in {ledger}.", "dim"))
    if rehearsal:
        lines.append(Text("They ran in the emulator, which has ended with this command: there is nothing to fetch."))
    print_panel(console, ", ".join(title), lines, "yellow")
    if not rehearsal:
        print_text(
            console,
            "There is no cancel on this service. Videos are kept for 7 days; this fetches them at no further cost:",
        )
        print_command(console, fetch_command(unsaved, out, ledger, provider))
