"""`kling-async ledger`: what is in doubt, how to settle it by hand, and all that a job has gone through."""

from __future__ import annotations

import json
import shlex
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import anyio
import attrs
import typer
from rich.text import Text

from kling_async._core.states import IN_DOUBT, Entry, State
from kling_async.errors import ConfigurationError, LedgerError, NotInHandError
from kling_async.ledger import Doubt
from kling_async.results import job_of

from .interrupts import Exit
from .ledgers import LedgerName
from .output import clean, console, pretty, say, table, usd
from .progress import counted
from .reading import in_doubt, instant, moment, named, rows_of, steps_of, writers_of
from .results import tell_command

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async.ledger import Row

_PROMPT_WIDTH: Final = 60


@attrs.frozen(kw_only=True)
class LedgerOptions:
    """Which jobs the user means; see the help of the command."""

    ledger: LedgerName
    name: str | None = None
    as_json: bool = False


def doubts(options: LedgerOptions) -> Exit:
    """Show what is held."""
    writers = writers_of(options.ledger)
    rows = [
        row
        for row in rows_of(options.ledger, batch=options.name, states=IN_DOUBT)
        if in_doubt(row, written=bool(writers))
    ]
    if options.as_json:
        sys.stdout.write(json.dumps([_shown(row) for row in rows], indent=2) + "\n")
        return Exit.WELL
    to = console()
    if not rows:
        say(to, f"Nothing is in doubt in {options.ledger}.")
        return Exit.WELL
    for doubt, heading in _HEADINGS.items():
        of = [row for row in rows if _doubt(row) is doubt]
        if of:
            say(to, Text(f"{counted(len(of), 'job')}: {heading}", "bold yellow"))
            _tell(to, of)
    if writers:
        who = f"Process {writers.process} has" if writers.process is not None else "Workers have"
        say(to, Text(f"{who} this ledger open, and may settle them yet.", "dim"))
    _tell_ways(to, options.ledger, rows[0])
    return Exit.WELL


_HEADINGS: Final = {
    Doubt.WHOSE: "paid for, but which of the candidates is whose is not known",
    Doubt.WHETHER: "not known whether they were paid for",
}


def _doubt(row: Row) -> Doubt:
    """Return the kind of a doubt; before it was looked for, nothing is known."""
    return row.doubt or Doubt.WHETHER


def _tell(to: Console, rows: list[Row]) -> None:
    batches = len({row.batch for row in rows}) > 1
    shown = table(to, *(["batch"] if batches else []), "key", "prompt", "sent at", ">price", "candidates")
    for row in rows:
        prompt = clean(str((job_of(row) or {}).get("prompt") or ""))
        prompt = prompt if len(prompt) <= _PROMPT_WIDTH else f"{prompt[: _PROMPT_WIDTH - 1]}…"
        shown.add_row(
            *([clean(row.batch)] if batches else []),
            Text(clean(row.key), "bold"),
            prompt,
            moment(row.intent_at),
            usd(row.cost),
            Text(("\n" if pretty(to) else " ").join(map(clean, row.candidates)) or "none"),
        )
    to.print(shown)


def _tell_ways(to: Console, ledger: LedgerName, row: Row) -> None:
    say(to, "A resume looks for them once more. By hand, with what the account's history at the service shows:")
    command = _command(ledger)
    tell_command(to, f"{command} adopt KEY {row.candidates[0] if row.candidates else 'PREDICTION_ID'}")
    tell_command(to, f"{command} unaccepted KEY   # it is not there: free to be sent again")
    tell_command(to, f"{command} give-up KEY      # it ends here, and is never sent again")


def _command(ledger: LedgerName) -> str:
    return shlex.join(["kling-async", "ledger", *ledger.words])


def _shown(row: Row) -> dict[str, object]:
    return {
        "batch": row.batch,
        "key": row.key,
        "doubt": _doubt(row).value,
        "model": row.model,
        "prompt": (job_of(row) or {}).get("prompt"),
        "sent_at": instant(row.intent_at),
        "price_usd": None if row.cost is None else float(row.cost),
        "candidates": list(row.candidates),
        "error": row.error,
    }


def history(options: LedgerOptions, key: str) -> Exit:
    """Show the steps of a job."""
    row = _row(options, key)
    steps = list(steps_of(options.ledger, batch=row.batch, key=key))
    if options.as_json:
        shown = [
            {
                "state": step.state.value,
                "at": instant(step.at),
                "attempt": step.attempt,
                "prediction_id": step.prediction_id,
                "error": step.error,
            }
            for step in steps
        ]
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return Exit.WELL
    to = console()
    told = table(to, "at", "state", ">attempt", "prediction", "what was said")
    for step in steps:
        cells = (moment(step.at), step.state.value, str(step.attempt or ""), step.prediction_id, step.error)
        told.add_row(*(clean(cell or "") for cell in cells))
    to.print(told)
    money = Text.assemble((clean(key), "bold"), f": {row.state.value}, {usd(row.spent or Decimal(0))} spent")
    if row.refunded:
        money.append(f", {usd(row.refunded)} given back")
    if row.path:
        money.append(f", {clean(row.path)}", "dim")
    say(to, money)
    return Exit.WELL


def adopt(options: LedgerOptions, key: str, prediction_id: str, *, yes: bool) -> Exit:
    """A job in doubt was accepted as this prediction."""
    row = _to_settle(options, key, abandoned=True)
    prediction_id = prediction_id.strip()
    for known in steps_of(options.ledger):
        if known.prediction_id == prediction_id:
            raise ConfigurationError(
                f"prediction {prediction_id} is that of job {known.key} already"
                + (f" in batch {known.batch}" if known.batch else ""),
                advice="see the account's history at the service for another one",
            )
    if not prediction_id or not prediction_id.isprintable():
        raise ConfigurationError("an id of a prediction is expected", advice="kling-async ledger shows the candidates")
    means = f"{_price(row)} counts as spent, the job is the prediction {prediction_id}, and "
    means += f"{_later(options)} fetches its video."
    if row.candidates and prediction_id not in row.candidates:
        means += f" It is none of the candidates ({', '.join(row.candidates)})."
    # It was accepted when it was sent, or soon after: its video expires that much earlier.
    at = row.intent_at or time.time()
    step = Entry(batch=row.batch, key=key, state=State.SUBMITTED, at=at, prediction_id=prediction_id)
    return _settle(options, row, step, means, yes=yes)


def unaccepted(options: LedgerOptions, key: str, *, yes: bool) -> Exit:
    """A job in doubt was not accepted, and may be sent again."""
    row = _to_settle(options, key, abandoned=True)
    means = (
        f"The job is sent again by {_later(options)}, for {_price(row)}. If the service did accept it, that is "
        "paid twice."
    )
    step = Entry(batch=row.batch, key=key, state=State.PENDING, at=time.time(), error="said by hand to be unaccepted")
    return _settle(options, row, step, means, yes=yes)


def give_up(options: LedgerOptions, key: str, *, yes: bool) -> Exit:
    """A job in doubt is neither looked for nor sent again."""
    row = _to_settle(options, key)
    means = f"The job ends without a video and is not sent again. {_price(row)} may have been spent on it."
    why = "given up by hand; it may have been paid for, and is not sent again"
    step = Entry(batch=row.batch, key=key, state=State.ABANDONED, at=time.time(), error=why)
    return _settle(options, row, step, means, yes=yes)


def _later(options: LedgerOptions) -> str:
    """Who goes on with a job that is settled."""
    return "the next run or resume" if options.ledger.path is not None else "the next worker, run or resume"


def _price(row: Row) -> str:
    return usd(row.cost) if row.cost is not None else "a price that is not known"


def _row(options: LedgerOptions, key: str) -> Row:
    """The row of a job.

    Raises:
        ConfigurationError: There is none, or there are several.
    """
    found = [row for row in rows_of(options.ledger, batch=options.name) if row.key == key]
    if len(found) == 1:
        return found[0]
    if found:
        batches = named(sorted(row.batch for row in found))
        raise ConfigurationError(f"key {key!r} is in several batches: {batches}", advice="say which: --name NAME")
    where = f"batch {options.name!r} of {options.ledger}" if options.name is not None else str(options.ledger)
    raise ConfigurationError(f"{where} has no job {key!r}", advice=f"{_command(options.ledger)} shows the keys")


def _to_settle(options: LedgerOptions, key: str, *, abandoned: bool = False) -> Row:
    """The row of a job that is in doubt, in a file that nobody writes, or in a database.

    Args:
        options: Where to look.
        key: The job's name.
        abandoned: Accept a job that was given up, too.

    Raises:
        LedgerError: A process writes the file.
        ConfigurationError: There is no such job, or it is not in doubt.
    """
    writers = writers_of(options.ledger)
    if writers.process is not None:
        raise LedgerError(
            f"process {writers.process} has {options.ledger} open, and may be settling it",
            advice="wait for its end, or end it with Ctrl-C",
        )
    row = _row(options, key)
    if not (in_doubt(row, written=False) or (abandoned and row.state is State.ABANDONED)):
        raise ConfigurationError(
            f"job {key!r} is not in doubt: it is {row.state.value}",
            advice=f"{_command(options.ledger)} shows what is",
        )
    return row


def _settle(options: LedgerOptions, row: Row, step: Entry, means: str, *, yes: bool) -> Exit:
    to = console()
    say(to, Text(clean(f"{row.key}: {means}")))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError("nobody can be asked whether that is meant", advice="--yes says that it is")
        if not typer.confirm("Is that meant?"):
            to.print("Nothing was changed.")
            return Exit.NOTHING_DONE
    anyio.run(_record, options.ledger, row, step)
    say(to, Text(f"{clean(row.key)} is {step.state.value}.", "green"))
    return Exit.WELL


async def _record(name: LedgerName, row: Row, step: Entry) -> None:
    """Write the step down, if the job still stands where it stood.

    Raises:
        LedgerError: It does not, another process has the file or the job, or the id belongs to another job.
    """
    ledger = name.made()
    await ledger.open()
    try:
        found = await ledger.find(row.batch, row.key)
        if found is None or not _stands(found[0], row):
            raise LedgerError(f"job {row.key} has changed meanwhile; nothing was written", key=row.key)
        await ledger.record(step)
    except NotInHandError as error:
        raise LedgerError(
            f"job {row.key} is in the hand of another worker, which may be settling it; nothing was written",
            key=row.key,
            advice="wait until that is done, or end the worker: kling-async status shows who is alive",
        ) from error
    finally:
        await ledger.aclose()


def _stands(found: Row, row: Row) -> bool:
    """Whether a job is as it was shown."""
    if row.state is State.INTENT and found.state is State.UNCERTAIN:
        # Opening a database frees what the dead were sending.
        return found.attempt == row.attempt
    return (found.state, found.updated_at) == (row.state, row.updated_at)
