"""`kling-async ledger`: show the jobs in doubt, settle them by hand, and show the steps of a job."""

from __future__ import annotations

import json
import shlex
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import anyio
from rich.text import Text

from kling_async._core.states import IN_DOUBT, Entry, State
from kling_async._core.text import one_line
from kling_async.errors import ConfigurationError, LedgerError, NotInHandError
from kling_async.ledger import Doubt
from kling_async.results import job_of

from .asking import confirmed
from .exits import Exit
from .output import format_usd, has_cursor, make_console, new_table, plural, print_text
from .reading import (
    format_iso_time,
    format_local_time,
    format_names,
    in_doubt,
    rows_of,
    steps_of,
    writers_of,
)
from .results import print_command

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async.ledger import Row

    from .ledgers import LedgerName
    from .options import DoubtOptions

_MAX_PROMPT_CHARS: Final = 60
_HEADINGS: Final = {
    Doubt.WHOSE: "paid for, but it is unknown which candidate belongs to which job",
    Doubt.WHETHER: "unknown whether paid for",
}


def doubts(options: DoubtOptions) -> Exit:
    """Print the jobs in doubt, and how to settle them."""
    ledger = options.ledger_name
    writers = writers_of(ledger)
    rows = [row for row in rows_of(ledger, batch=options.name, states=IN_DOUBT) if in_doubt(row, written=bool(writers))]
    if options.as_json:
        sys.stdout.write(json.dumps([_as_json(row) for row in rows], indent=2) + "\n")
        return Exit.WELL
    console = make_console()
    if not rows:
        print_text(console, f"Nothing is in doubt in {ledger}.")
        return Exit.WELL
    for doubt, heading in _HEADINGS.items():
        of = [row for row in rows if _doubt(row) is doubt]
        if of:
            print_text(console, Text(f"{plural(len(of), 'job')}: {heading}", "bold yellow"))
            _print_jobs(console, of)
    if writers:
        who = f"Process {writers.process} has" if writers.process is not None else "Workers have"
        print_text(console, Text(f"{who} this ledger open and may still settle them.", "dim"))
    _print_ways(console, ledger, rows[0])
    return Exit.WELL


def _doubt(row: Row) -> Doubt:
    """Return the kind of a doubt; before the job was looked for, nothing is known."""
    return row.doubt or Doubt.WHETHER


def _print_jobs(console: Console, rows: list[Row]) -> None:
    batches = len({row.batch for row in rows}) > 1
    table = new_table(console, *(["batch"] if batches else []), "key", "prompt", "sent at", ">price", "candidates")
    for row in rows:
        prompt = one_line(str((job_of(row) or {}).get("prompt") or ""))
        prompt = prompt if len(prompt) <= _MAX_PROMPT_CHARS else f"{prompt[: _MAX_PROMPT_CHARS - 1]}…"
        table.add_row(
            *([one_line(row.batch)] if batches else []),
            Text(one_line(row.key), "bold"),
            prompt,
            format_local_time(row.intent_at),
            format_usd(row.cost),
            Text(("\n" if has_cursor(console) else " ").join(map(one_line, row.candidates)) or "none"),
        )
    console.print(table)


def _print_ways(console: Console, ledger: LedgerName, row: Row) -> None:
    """Print the commands that settle a job, with a job as the example."""
    print_text(console, "A resume looks for them once more. By hand, after a look at the account's history:")
    command = _command(ledger)
    print_command(console, f"{command} adopt KEY {row.candidates[0] if row.candidates else 'PREDICTION_ID'}")
    print_command(console, f"{command} unaccepted KEY   # the next run sends it again")
    print_command(console, f"{command} give-up KEY      # it is never sent again")


def _command(ledger: LedgerName) -> str:
    return shlex.join(["kling-async", "ledger", *ledger.as_argument])


def _as_json(row: Row) -> dict[str, object]:
    return {
        "batch": row.batch,
        "key": row.key,
        "doubt": _doubt(row).value,
        "model": row.model,
        "prompt": (job_of(row) or {}).get("prompt"),
        "sent_at": format_iso_time(row.intent_at),
        "price_usd": None if row.cost is None else float(row.cost),
        "candidates": list(row.candidates),
        "error": row.error,
    }


def history(options: DoubtOptions, key: str) -> Exit:
    """Print every recorded step of a job."""
    row = _row(options, key)
    steps = list(steps_of(options.ledger_name, batch=row.batch, key=key))
    if options.as_json:
        shown = [
            {
                "state": step.state.value,
                "at": format_iso_time(step.at),
                "attempt": step.attempt,
                "prediction_id": step.prediction_id,
                "error": step.error,
            }
            for step in steps
        ]
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return Exit.WELL
    console = make_console()
    table = new_table(console, "at", "state", ">attempt", "prediction", "message")
    for step in steps:
        cells = (format_local_time(step.at), step.state.label, str(step.attempt or ""), step.prediction_id, step.error)
        table.add_row(*(one_line(cell or "") for cell in cells))
    console.print(table)
    spent = format_usd(row.spent or Decimal(0))
    text = Text.assemble((one_line(key), "bold"), f": {row.state.label}, {spent} spent")
    if row.refunded:
        text.append(f", {format_usd(row.refunded)} refunded")
    if row.path:
        text.append(f", {one_line(row.path)}", "dim")
    print_text(console, text)
    return Exit.WELL


def adopt(options: DoubtOptions, key: str, prediction_id: str, *, yes: bool) -> Exit:
    """Settle a job in doubt as accepted.

    Args:
        options: Ledger and batch.
        key: Key of the job.
        prediction_id: Id of its prediction.
        yes: Do not ask for confirmation.

    Raises:
        ConfigurationError: The id is not an id, or belongs to another job; or see `_to_settle`.
        LedgerError: See `_to_settle` and `_record`.
    """
    row = _to_settle(options, key, abandoned=True)
    prediction_id = prediction_id.strip()
    for known in steps_of(options.ledger_name):
        if known.prediction_id == prediction_id:
            raise ConfigurationError(
                f"prediction {prediction_id} is that of job {known.key} already"
                + (f" in batch {known.batch}" if known.batch else ""),
                advice="look for another one in the account's history at the service",
            )
    if not prediction_id or not prediction_id.isprintable():
        raise ConfigurationError(
            f"expected the id of a prediction, got {prediction_id!r}", advice="kling-async ledger shows the candidates"
        )
    means = f"{_price(row)} counts as spent, the job is the prediction {prediction_id}, and "
    means += f"{_next_command(options)} fetches its video."
    if row.candidates and prediction_id not in row.candidates:
        means += f" It is none of the candidates ({', '.join(row.candidates)})."
    # The video's 7 days began when the job was sent, not now.
    at = row.intent_at or time.time()
    step = Entry(batch=row.batch, key=key, state=State.SUBMITTED, at=at, prediction_id=prediction_id)
    return _settle(options, row, step, means, yes=yes)


def unaccepted(options: DoubtOptions, key: str, *, yes: bool) -> Exit:
    """Settle a job in doubt as not accepted, so that it can be sent again.

    Args:
        options: Ledger and batch.
        key: Key of the job.
        yes: Do not ask for confirmation.

    Raises:
        ConfigurationError: See `_to_settle`.
        LedgerError: See `_to_settle` and `_record`.
    """
    row = _to_settle(options, key, abandoned=True)
    means = (
        f"The job is sent again by {_next_command(options)}, for {_price(row)}. If the service did accept it, it is "
        "paid for twice."
    )
    step = Entry(batch=row.batch, key=key, state=State.PENDING, at=time.time(), error="settled by hand as not accepted")
    return _settle(options, row, step, means, yes=yes)


def give_up(options: DoubtOptions, key: str, *, yes: bool) -> Exit:
    """End a job in doubt: it is neither looked up nor sent again.

    Args:
        options: Ledger and batch.
        key: Key of the job.
        yes: Do not ask for confirmation.

    Raises:
        ConfigurationError: See `_to_settle`.
        LedgerError: See `_to_settle` and `_record`.
    """
    row = _to_settle(options, key)
    means = f"The job ends without a video and is not sent again. {_price(row)} may have been spent on it."
    why = "given up by hand; it may have been paid for, and is not sent again"
    step = Entry(batch=row.batch, key=key, state=State.ABANDONED, at=time.time(), error=why)
    return _settle(options, row, step, means, yes=yes)


def _next_command(options: DoubtOptions) -> str:
    """Return what continues a settled job."""
    return "the next run or resume" if options.ledger_name.path is not None else "the next worker, run or resume"


def _price(row: Row) -> str:
    return format_usd(row.cost) if row.cost is not None else "an unknown price"


def _row(options: DoubtOptions, key: str) -> Row:
    """Return the row of a job.

    Raises:
        ConfigurationError: No batch has the key, or several have.
    """
    ledger = options.ledger_name
    found = [row for row in rows_of(ledger, batch=options.name) if row.key == key]
    if len(found) == 1:
        return found[0]
    if found:
        batches = format_names(sorted(row.batch for row in found))
        raise ConfigurationError(f"key {key!r} is in several batches: {batches}", advice="choose one with --name NAME")
    where = f"batch {options.name!r} of {ledger}" if options.name is not None else str(ledger)
    raise ConfigurationError(f"{where} has no job {key!r}", advice=f"{_command(ledger)} shows the keys")


def _to_settle(options: DoubtOptions, key: str, *, abandoned: bool = False) -> Row:
    """Return the row of a job in doubt that may be settled by hand.

    Args:
        options: Ledger and batch.
        key: Key of the job.
        abandoned: Accept a job that was given up, too.

    Raises:
        LedgerError: Another process has the ledger's file open.
        ConfigurationError: There is no such job, or it is not in doubt.
    """
    ledger = options.ledger_name
    writers = writers_of(ledger)
    if writers.process is not None:
        raise LedgerError(
            f"process {writers.process} has {ledger} open and may be settling it",
            advice="wait for its end, or end it with Ctrl-C",
        )
    row = _row(options, key)
    if not (in_doubt(row, written=False) or (abandoned and row.state is State.ABANDONED)):
        raise ConfigurationError(
            f"job {key!r} is not in doubt: it is {row.state.label}",
            advice=f"{_command(ledger)} shows the jobs in doubt",
        )
    return row


def _settle(options: DoubtOptions, row: Row, step: Entry, means: str, *, yes: bool) -> Exit:
    """Print the consequences, ask, and record the step."""
    console = make_console()
    if not confirmed(
        console,
        one_line(f"{row.key}: {means}"),
        yes=yes,
        purpose="ask before a doubt is settled",
        undone="Nothing was changed or spent",
        advice="add --yes to settle it without asking",
    ):
        return Exit.NOTHING_DONE
    anyio.run(_record, options.ledger_name, row, step)
    print_text(console, Text(f"{one_line(row.key)} is {step.state.label}.", "green"))
    return Exit.WELL


async def _record(name: LedgerName, row: Row, step: Entry) -> None:
    """Record the step if the job is unchanged.

    Raises:
        LedgerError: The job has changed, another process has the file or the job, or the id belongs to another job.
    """
    ledger = name.create()
    await ledger.open()
    try:
        found = await ledger.find(row.batch, row.key)
        if found is None or not _is_unchanged(found[0], row):
            raise LedgerError(f"job {row.key} has changed meanwhile; nothing was recorded", key=row.key)
        await ledger.record(step)
    except NotInHandError as error:
        raise LedgerError(
            f"another worker has job {row.key} and may be settling it; nothing was recorded",
            key=row.key,
            advice="wait for the worker, or end it: kling-async status shows the live ones",
        ) from error
    finally:
        await ledger.aclose()


def _is_unchanged(found: Row, row: Row) -> bool:
    """Return whether a job is as it was shown."""
    if row.state is State.INTENT and found.state is State.UNCERTAIN:
        # Opening a database marks the intents of dead workers as uncertain.
        return found.attempt == row.attempt
    return (found.state, found.updated_at) == (row.state, row.updated_at)
