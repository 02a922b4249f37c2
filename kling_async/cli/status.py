"""`kling-async status`: state and cost of the jobs of a ledger, also while another process writes it."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs
from rich.console import Group
from rich.live import Live
from rich.text import Text

from kling_async._core.text import one_line
from kling_async.ledger import State

from .exits import Exit
from .hints import recorded_run
from .ledgers import LedgerName
from .output import (
    format_duration,
    format_usd,
    has_cursor,
    make_console,
    new_table,
    plural,
)
from .reading import Summary, Writers, expires_at, format_iso_time, summaries, the_batch

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from kling_async.ledger import Row

    from .options import StatusOptions

_WATCH_INTERVAL_S: Final = 1.0
_MAX_READING_SHARE: Final = 0.1
"""Share of the time that reading may take: a long ledger is read less often."""
_ANY_WIDTH: Final = 10_000
"""Columns that hold every table."""
_EXPIRY_WARNING_S: Final = 86_400


@attrs.frozen
class _Status:
    """Content of a ledger at one moment."""

    ledger: LedgerName
    writers: Writers
    batches: tuple[Summary, ...]

    @property
    def over(self) -> bool:
        """True if nothing in the ledger will change without a new command."""
        if self.ledger.path is not None:
            return not self.writers
        # Workers never end by themselves, and new ones may take what waits.
        # A job in doubt may stay in doubt.
        return all(
            state.ended or state is State.UNCERTAIN or not count
            for batch in self.batches
            for state, count in batch.states.items()
        )

    @property
    def in_progress(self) -> bool:
        """True if a process is working on the ledger."""
        return bool(self.writers) and not self.over


def status(options: StatusOptions) -> Exit:
    """Print the status once, or with `--watch` until nothing changes any more."""
    ledger = options.ledger_name
    if options.name is not None:
        the_batch(ledger, options.name)  # raises if there is no such batch
    console = make_console()
    if not options.watch:
        now = _read(options)
        if options.as_json:
            sys.stdout.write(json.dumps(_as_json(now), indent=2) + "\n")
        else:
            console.print(_render(console, now), soft_wrap=not has_cursor(console))
        return Exit.WELL
    if has_cursor(console) and not options.as_json:
        _watch_live(console, options)
    else:
        _watch_lines(console, options)
    return Exit.WELL


def _read(options: StatusOptions) -> _Status:
    writers, found = summaries(options.ledger_name, batch=options.name, labels=options.labels)
    return _Status(options.ledger_name, writers, tuple(found.values()))


def _watch_live(console: Console, options: StatusOptions) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            now = _read(options)
            live.update(_render(console, now), refresh=True)
            if now.over:
                return
            _pause(begun)


def _watch_lines(console: Console, options: StatusOptions) -> None:
    """Print the status whenever it has changed."""
    last = ""
    while True:
        begun = time.monotonic()
        now = _read(options)
        shown = json.dumps(_as_json(now)) if options.as_json else "\n".join(_line(batch) for batch in now.batches)
        if shown != last:
            console.print(shown, soft_wrap=True)
            console.file.flush()
            last = shown
        if now.over:
            return
        _pause(begun)


def _pause(begun: float) -> None:
    """Sleep until the next reading."""
    reading = time.monotonic() - begun
    time.sleep(max(_WATCH_INTERVAL_S, reading * (1 / _MAX_READING_SHARE - 1)))


def _line(batch: Summary) -> str:
    counts = ", ".join(f"{count} {word}" for word, count in _counts(batch) if count)
    name = batch.name or "(no batch)"
    refunded = f", {format_usd(batch.refunded)} refunded" if batch.refunded else ""
    return one_line(f"{name}: {plural(batch.jobs, 'job')}: {counts}; {format_usd(batch.spent)} spent{refunded}")


def _counts(batch: Summary) -> tuple[tuple[str, int], ...]:
    """Return the number of jobs per label of the table."""
    counts: Counter[str] = Counter()
    for state, count in batch.states.items():
        counts[state.label] += count
    # An intent that no process is sending is in doubt as well.
    unowned = batch.in_doubt - batch.states[State.UNCERTAIN]
    counts[State.INTENT.label] -= unowned
    counts[State.UNCERTAIN.label] += unowned
    return tuple((label, counts[label]) for label in STYLES)


STYLES: Final = {
    State.PENDING.label: "dim",
    State.INTENT.label: "cyan",
    State.SUBMITTED.label: "cyan",
    State.COMPLETED.label: "blue",
    State.DOWNLOADED.label: "green",
    State.REUSED.label: "green",
    State.SKIPPED.label: "dim",
    State.FAILED.label: "red",
    State.REJECTED.label: "red",
    State.EXPIRED.label: "red",
    State.ABANDONED.label: "red",
    State.UNCERTAIN.label: "yellow",
}
"""Columns of the table, in their order, with their colors."""


def _render(console: Console, now: _Status) -> RenderableType:
    if not now.batches:
        return Text(f"{now.ledger} has no jobs.")
    counts = [_counts(batch) for batch in now.batches]
    # Columns without a count are omitted.
    words = [word for place, (word, _) in enumerate(counts[0]) if any(row[place][1] for row in counts)]
    more = [">refunded"] if any(batch.refunded for batch in now.batches) else []
    table = new_table(console, "batch", ">jobs", *(f">{word}" for word in words), ">spent", *more)
    for batch, row in zip(now.batches, counts, strict=True):
        table.add_row(
            Text(one_line(batch.name) or "(no batch)", "bold cyan" if batch.name else "dim"),
            str(batch.jobs),
            *(Text(str(count or ""), STYLES[word]) for word, count in row if word in words),
            format_usd(batch.spent),
            *([format_usd(batch.refunded)] if more else []),
        )
    # A table with broken words and numbers is worse than sentences.
    wide = (
        has_cursor(console)
        and console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum > console.width
    )
    lines: list[RenderableType] = [Text(_line(batch)) for batch in now.batches] if wide else [table]
    if now.in_progress or not now.ledger.is_rehearsal:
        for batch in now.batches:
            lines += _details(batch)
    lines += _describe_writers(now)
    if not now.in_progress:
        lines += _next_steps(now)
    return Group(*lines)


def _describe_writers(now: _Status) -> list[Text]:
    """Return who is working on the ledger."""
    writers = now.writers
    if writers.process is not None:
        return [Text(f"Process {writers.process} has this ledger open, and goes on with it.", "green")]
    if now.ledger.path is not None:
        return []
    if not writers:
        return [] if now.over else [Text("No worker is alive.", "yellow")]
    workers = ", ".join(f"{one_line(one.name)} with {plural(one.jobs, 'job')}" for one in writers.workers)
    return [Text(f"{plural(len(writers.workers), 'worker')}: {workers}", "green")]


def _details(batch: Summary) -> list[Text]:
    """Return what the counts of a batch do not show: running jobs, expiry, and money at stake."""
    of = f" of {one_line(batch.name)}" if batch.name else ""
    lines = []
    if batch.running:
        now = time.time()
        jobs = [
            f"{one_line(row.key)} for {format_duration(now - (row.submitted_at or row.updated_at))}"
            for row in batch.running
        ]
        more = batch.states[State.SUBMITTED] - len(jobs)
        lines.append(Text(f"Running{of}: {', '.join(jobs)}{f', and {more} more' if more else ''}", "cyan"))
    if batch.oldest is not None:
        row = batch.oldest
        left = expires_at(row) - time.time()
        when = f"in {_format_days(left)}" if left > 0 else "any moment, or has expired"
        text = one_line(f"Oldest unsaved video{of}: {row.key} ({row.prediction_id}), expires {when}")
        lines.append(Text(text, "red" if left < _EXPIRY_WARNING_S else ""))
    if batch.in_doubt:
        lines.append(Text(f"In doubt{of}: {format_usd(batch.doubtful)} that may have been paid", "yellow"))
    if batch.refundable:
        lines.append(Text(f"Failed{of}: {format_usd(batch.refundable)} that the service may still refund", "dim"))
    return lines


def _format_days(seconds: float) -> str:
    """Format a long duration: `6 d 23 h`, `5 h 10 min`."""
    minutes = int(seconds // 60)
    if minutes >= 1440:  # noqa: PLR2004 -- a day
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    return f"{minutes // 60} h {minutes % 60} min"


def _next_steps(now: _Status) -> list[Text]:
    """Return what to do next, as commands to copy."""
    unfinished = sum(batch.unfinished for batch in now.batches)
    if now.ledger.is_rehearsal and unfinished:
        text = f"This was a rehearsal, and its emulator has ended with {plural(unfinished, 'job')} unfinished. "
        return [Text(f"{text}None can be continued or fetched: rehearse again, which begins anew.")]
    lines: list[Text] = []
    for purpose, command in _commands(now):
        lines += [Text(purpose), Text(f"  {one_line(command)}", "bold green", no_wrap=True, overflow="ignore")]
    return lines or [Text("All jobs have ended: nothing is left to do.", "green")]


def _commands(now: _Status) -> list[tuple[str, str]]:
    """Return purposes and commands; none for a rehearsal, whose predictions ended with its emulator."""
    ledger = now.ledger
    if ledger.is_rehearsal:
        return []
    # A database has no folder to suggest.
    out = "OUT" if ledger.path is None else str(ledger.path.parent)
    found: list[tuple[str, str]] = []
    if any(batch.in_doubt for batch in now.batches):
        purpose = "The jobs in doubt, and how to settle them by hand:"
        found.append((purpose, shlex.join(["kling-async", "ledger", *ledger.as_argument])))
    for batch in now.batches:
        if batch.unfinished:
            of = f" of {one_line(batch.name)}" if batch.name else ""
            record = recorded_run(ledger, batch.name)
            to = out if record is None else record.shown_out
            words = ["kling-async", "resume", *ledger.as_argument, "--out", to, "--name", batch.name]
            words += () if record is None else record.options
            unknown = "; add the --level and --budget of its run" if record is None else ""
            found.append((f"{plural(batch.unfinished, 'job')}{of} to continue with{unknown}:", shlex.join(words)))
    if any(state.unsuccessful and count for batch in now.batches for state, count in batch.states.items()):
        where = ["--out", out] if ledger.path is None else []
        command = shlex.join(["kling-async", "export", *ledger.as_argument, *where, "--format", "errors"])
        found.append(("Jobs without a video, as a manifest to run again:", command))
    return found


def _as_json(now: _Status) -> dict[str, object]:
    return {
        "ledger": str(now.ledger),
        "writer": now.writers.process,
        "workers": [{"name": one.name, "lease": round(one.lease, 1), "jobs": one.jobs} for one in now.writers.workers],
        "batches": [_batch_as_json(batch) for batch in now.batches],
        "next": [] if now.in_progress else [command for _, command in _commands(now)],
    }


def _batch_as_json(batch: Summary) -> dict[str, object]:
    return {
        "name": batch.name,
        "jobs": batch.jobs,
        "states": {state.value: batch.states[state] for state in State if batch.states[state]},
        "spent_usd": float(batch.spent),
        "refunded_usd": float(batch.refunded),
        "refundable_usd": float(batch.refundable),
        "in_doubt": batch.in_doubt,
        "doubtful_usd": float(batch.doubtful),
        "oldest_unsaved": None if batch.oldest is None else _unsaved_as_json(batch.oldest),
        "running": [_unsaved_as_json(row) for row in batch.running],
    }


def _unsaved_as_json(row: Row) -> dict[str, object]:
    return {
        "key": row.key,
        "prediction_id": row.prediction_id,
        "submitted_at": format_iso_time(row.submitted_at),
        "expires_at": format_iso_time(expires_at(row)),
    }
