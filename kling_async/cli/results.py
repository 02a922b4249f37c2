"""What is told of the jobs of a run: a line each, the paid ids that still have no video, and how to get at them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.text import Text

from kling_async.errors import (
    KlingError,
    PredictionFailedError,
    PredictionTimeoutError,
    SkippedError,
    StorageError,
    SubmissionUncertainError,
)
from kling_async.ledger import State

from .output import block, clean, say
from .progress import counted
from .reading import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console

    from kling_async._core.prediction import Outcome
    from kling_async.errors import RowProblem
    from kling_async.ledger import Row

    from .ledgers import LedgerName

_LISTED: Final = 10
_NAMED: Final = 4


def status(outcome: Outcome) -> str:
    """One word for how a job came out."""
    match outcome.error:
        case None:
            return "completed"
        case SkippedError():
            return "skipped"
        case SubmissionUncertainError():
            return "uncertain"
        case PredictionTimeoutError():
            return "running"
        case StorageError():
            return "unsaved"
        case PredictionFailedError(prediction=prediction) if prediction is not None:
            return prediction.status.value
        case KlingError(prediction_id=None):
            return "rejected"
        case _:
            return "unknown"


def row(outcome: Outcome, folder: Path) -> dict[str, object]:
    """An outcome as a line of `--json`.

    Args:
        outcome: The outcome.
        folder: What the paths of files are relative to.
    """
    error = outcome.error
    file: str | None = None
    if outcome.saved is not None:
        where = outcome.saved.location
        if isinstance(where, Path):
            where = (where.relative_to(folder) if where.is_relative_to(folder) else where).as_posix()
        file = where
    return {
        "key": outcome.key,
        "model": outcome.job.model,
        "status": status(outcome),
        "prediction_id": outcome.prediction.id if outcome.prediction else error.prediction_id if error else None,
        "file": file,
        "cost_usd": None if outcome.cost is None else float(outcome.cost),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
    }


def problem_lines(problems: Iterable[RowProblem]) -> Iterator[str]:
    """What is wrong with a manifest, as JSON lines."""
    for problem in problems:
        told = {"file": problem.file, "line": problem.line, "field": problem.path, "message": problem.message}
        yield json.dumps(told) + "\n"


def unfetched(ledger: LedgerName) -> dict[str, Row]:
    """The paid predictions of a ledger that are not known to have failed or to be saved, by id."""
    return {row.prediction_id: row for row in rows_of(ledger, states=_OPEN) if row.prediction_id}


_OPEN: Final = frozenset({State.SUBMITTED, State.COMPLETED})


def fetch_command(ids: Mapping[str, str], out: str | Path, ledger: LedgerName | None, provider: str) -> str:
    """The command that brings those videos."""
    named = list(ids) if len(ids) <= _NAMED or ledger is None else []
    words = ["kling-async", "fetch", *named, "--out", str(out)]
    if ledger is not None and ledger.path != Path(out) / "run.db":
        words += ledger.option
    if provider != "wavespeed":
        words += ["--provider", provider]
    return shlex.join(words)


def tell_command(to: Console, command: str) -> None:
    """A command to copy: never framed, never broken."""
    to.print(Text(f"  {command}", "bold green"), soft_wrap=True)


def tell_unsaved(
    to: Console,
    unsaved: Mapping[str, str],
    running: int,
    *,
    out: str | Path,
    ledger: LedgerName | None,
    provider: str,
    rehearsal: bool = False,
) -> None:
    """Say which paid predictions have no video yet, and how to get them.

    Args:
        to: Where to.
        unsaved: Ids and keys.
        running: How many of them still run.
        out: Where the videos go.
        ledger: The ledger that has their ids.
        provider: The provider's name.
        rehearsal: Whether it was the emulator that is gone now.
    """
    if not unsaved:
        return
    lines = [Text(f"{prediction_id}  {clean(key)}") for prediction_id, key in list(unsaved.items())[:_LISTED]]
    if len(unsaved) > _LISTED:
        lines.append(Text(f"and {len(unsaved) - _LISTED} more", "dim"))
    ended = len(unsaved) - running
    said = [f"{counted(running, 'paid prediction')} still running at the service"] if running else []
    said += [f"{counted(ended, 'video')} paid for and not saved"] if ended else []
    if ledger is not None:
        lines.append(Text(f"The ids are in {ledger}.", "dim"))
    if rehearsal:
        lines.append(Text("They ran in the emulator, which has ended with this command: there is nothing to fetch."))
    block(to, ", ".join(said), lines, "yellow")
    if not rehearsal:
        say(to, "There is no cancel on this service. Videos are kept for 7 days; this brings them at no further cost:")
        tell_command(to, fetch_command(unsaved, out, ledger, provider))
