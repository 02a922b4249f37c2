"""`kling-async status`: where the jobs of a ledger stand, also while another process writes it."""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import TYPE_CHECKING, Final

import attrs
from rich.console import Group
from rich.live import Live
from rich.text import Text

from kling_async.ledger import State

from .interrupts import Exit
from .ledgers import LedgerName
from .output import clean, console, pretty, span, table, usd
from .progress import counted
from .reading import Summary, Writers, expires_at, instant, summaries, the_batch

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from kling_async.ledger import Row

_EVERY_SECONDS: Final = 1.0
_MOVING: Final = (State.PENDING, State.CLAIMED, State.INTENT, State.SUBMITTED)
"""What workers bring on; what is in doubt may stay so."""


@attrs.frozen(kw_only=True)
class StatusOptions:
    """What the user asked for; see the help of the command."""

    ledger: LedgerName
    name: str | None = None
    as_json: bool = False
    watch: bool = False


@attrs.frozen
class _Status:
    """What a ledger tells at one moment."""

    ledger: LedgerName
    writers: Writers
    batches: tuple[Summary, ...]

    @property
    def over(self) -> bool:
        """Whether nothing of it changes any more by itself."""
        if self.ledger.path is not None:
            return not self.writers
        # Workers go on for ever, and others may come for what waits.
        return not any(batch.states[state] for batch in self.batches for state in _MOVING)

    @property
    def in_hands(self) -> bool:
        """Whether somebody goes on with it."""
        return bool(self.writers) and not self.over


def status(options: StatusOptions) -> Exit:
    """Read and tell, once or until nobody writes any more."""
    if options.name is not None:
        the_batch(options.ledger, options.name)  # a name that is wrong is told
    to = console()
    if not options.watch:
        now = _read(options)
        if options.as_json:
            sys.stdout.write(json.dumps(_shown(now), indent=2) + "\n")
        else:
            to.print(_picture(to, now), soft_wrap=not pretty(to))
        return Exit.WELL
    if pretty(to) and not options.as_json:
        _watch_live(to, options)
    else:
        _watch_lines(to, options)
    return Exit.WELL


def _read(options: StatusOptions) -> _Status:
    writers, found = summaries(options.ledger, batch=options.name)
    return _Status(options.ledger, writers, tuple(found.values()))


def _watch_live(to: Console, options: StatusOptions) -> None:
    with Live(console=to, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            now = _read(options)
            live.update(_picture(to, now), refresh=True)
            if now.over:
                return
            _rest(begun)


def _watch_lines(to: Console, options: StatusOptions) -> None:
    """What has changed since the last look, each time."""
    last = ""
    while True:
        begun = time.monotonic()
        now = _read(options)
        shown = json.dumps(_shown(now)) if options.as_json else "\n".join(_line(batch) for batch in now.batches)
        if shown != last:
            to.print(shown, markup=False, soft_wrap=True)
            to.file.flush()
            last = shown
        if now.over:
            return
        _rest(begun)


def _rest(begun: float) -> None:
    """Wait for the next look. A long ledger is read less often: reading takes a tenth of the time at most."""
    time.sleep(max(_EVERY_SECONDS, 9 * (time.monotonic() - begun)))


def _line(batch: Summary) -> str:
    told = ", ".join(f"{count} {word}" for word, count in _counts(batch) if count)
    return clean(f"{batch.name or '(no batch)'}: {counted(batch.jobs, 'job')}: {told}; {usd(batch.spent)} spent")


def _counts(batch: Summary) -> tuple[tuple[str, int], ...]:
    """How many jobs are where, in the words of the table."""
    states = batch.states
    return (
        ("waiting", batch.unsent),
        ("sending", states[State.INTENT] + states[State.UNCERTAIN] - batch.in_doubt),
        ("running", states[State.SUBMITTED]),
        ("unsaved", states[State.COMPLETED]),
        ("saved", states[State.DOWNLOADED]),
        ("failed", states[State.FAILED]),
        ("rejected", states[State.REJECTED]),
        ("expired", states[State.EXPIRED]),
        ("given up", states[State.ABANDONED]),
        ("in doubt", batch.in_doubt),
    )


_STYLES: Final = {
    "waiting": "dim",
    "sending": "cyan",
    "running": "cyan",
    "unsaved": "blue",
    "saved": "green",
    "failed": "red",
    "rejected": "red",
    "expired": "red",
    "given up": "red",
    "in doubt": "yellow",
}


def _picture(to: Console, now: _Status) -> RenderableType:
    if not now.batches:
        return Text(f"{now.ledger} has no jobs.")
    counts = [_counts(batch) for batch in now.batches]
    # A column that says nothing of any batch is left out.
    words = [word for place, (word, _) in enumerate(counts[0]) if any(row[place][1] for row in counts)]
    refunds = any(batch.refunded for batch in now.batches)
    shown = table(to, "batch", ">jobs", *(f">{word}" for word in words), ">spent", *([">refunded"] if refunds else []))
    for batch, row in zip(now.batches, counts, strict=True):
        shown.add_row(
            Text(clean(batch.name) or "(no batch)", "bold cyan" if batch.name else "dim"),
            str(batch.jobs),
            *(Text(str(count or ""), _STYLES[word]) for word, count in row if word in words),
            usd(batch.spent),
            *([usd(batch.refunded)] if refunds else []),
        )
    lines: list[RenderableType] = [shown]
    for batch in now.batches:
        lines += _said(batch)
    lines += _writing(now)
    if not now.in_hands:
        lines += _next(now)
    return Group(*lines)


def _writing(now: _Status) -> list[Text]:
    """Who goes on with it."""
    writers = now.writers
    if writers.process is not None:
        return [Text(f"Process {writers.process} has this ledger open, and goes on with it.", "green")]
    if now.ledger.path is not None:
        return []
    if not writers:
        return [] if now.over else [Text("No worker is alive.", "yellow")]
    told = ", ".join(f"{clean(one.name)} with {counted(one.jobs, 'job')} in hand" for one in writers.workers)
    return [Text(f"{counted(len(writers.workers), 'worker')}: {told}", "green")]


def _said(batch: Summary) -> list[Text]:
    """What the counts of a batch do not say."""
    of = f" of {clean(batch.name)}" if batch.name else ""
    said = []
    if batch.running:
        named = [
            f"{clean(row.key)} for {span(time.time() - (row.submitted_at or row.updated_at))}" for row in batch.running
        ]
        more = batch.states[State.SUBMITTED] - len(named)
        said.append(Text(f"Running{of}: {', '.join(named)}{f', and {more} more' if more else ''}", "cyan"))
    if batch.oldest is not None:
        row = batch.oldest
        left = expires_at(row) - time.time()
        when = f"in {_long(left)}" if left > 0 else "any moment, or has expired"
        text = f"Oldest unsaved video{of}: {clean(row.key)} ({row.prediction_id}), expires {when}"
        said.append(Text(text, "red" if left < 86_400 else ""))  # noqa: PLR2004 -- a day
    if batch.in_doubt:
        said.append(Text(f"In doubt{of}: {usd(batch.doubtful)} that may have been paid", "yellow"))
    if batch.refundable:
        said.append(Text(f"Failed{of}: {usd(batch.refundable)} that the service may still give back", "dim"))
    return said


def _long(seconds: float) -> str:
    """A length of time in days: `6 d 23 h`, `5 h 10 min`."""
    minutes = int(seconds // 60)
    if minutes >= 1440:  # noqa: PLR2004 -- a day
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    return f"{minutes // 60} h {minutes % 60} min"


def _next(now: _Status) -> list[Text]:
    """What to do next, as commands to copy."""
    said: list[Text] = []
    for why, command in _commands(now):
        said += [Text(why), Text(f"  {command}", "bold green", no_wrap=True, overflow="ignore")]
    return said or [Text("All of it has ended: nothing is left to do.", "green")]


def _commands(now: _Status) -> list[tuple[str, str]]:
    ledger = now.ledger
    # A database lies in no folder.
    out = "OUT" if ledger.path is None else str(ledger.path.parent)
    found: list[tuple[str, str]] = []
    if any(batch.in_doubt for batch in now.batches):
        told = "What is known of the jobs in doubt, and how to settle them by hand:"
        found.append((told, shlex.join(["kling-async", "ledger", *ledger.words])))
    for batch in now.batches:
        if batch.unfinished and not ledger.rehearsal:
            what = (
                f"{counted(batch.unfinished, 'job')}{f' of {clean(batch.name)}' if batch.name else ''} to go on with:"
            )
            words = ["kling-async", "resume", *ledger.words, "--out", out, "--name", batch.name]
            found.append((what, shlex.join(words)))
    if any(batch.states[state] for batch in now.batches for state in (State.FAILED, State.REJECTED, State.EXPIRED)):
        told = "Jobs without a video, as a manifest to run again:"
        where = ["--out", out] if ledger.path is None else []
        found.append((told, shlex.join(["kling-async", "export", *ledger.words, *where, "--format", "errors"])))
    return found


def _shown(now: _Status) -> dict[str, object]:
    return {
        "ledger": str(now.ledger),
        "writer": now.writers.process,
        "workers": [{"name": one.name, "lease": round(one.lease, 1), "jobs": one.jobs} for one in now.writers.workers],
        "batches": [_batch(batch) for batch in now.batches],
        "next": [] if now.in_hands else [command for _, command in _commands(now)],
    }


def _batch(batch: Summary) -> dict[str, object]:
    return {
        "name": batch.name,
        "jobs": batch.jobs,
        "states": {state.value: batch.states[state] for state in State if batch.states[state]},
        "spent_usd": float(batch.spent),
        "refunded_usd": float(batch.refunded),
        "refundable_usd": float(batch.refundable),
        "in_doubt": batch.in_doubt,
        "doubtful_usd": float(batch.doubtful),
        "oldest_unsaved": None if batch.oldest is None else _unsaved(batch.oldest),
        "running": [_unsaved(row) for row in batch.running],
    }


def _unsaved(row: Row) -> dict[str, object]:
    return {
        "key": row.key,
        "prediction_id": row.prediction_id,
        "submitted_at": instant(row.submitted_at),
        "expires_at": instant(expires_at(row)),
    }
