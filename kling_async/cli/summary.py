"""Summary printed at the end of a batch: failures, counts, money, files, and commands to continue."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from rich.text import Text

from kling_async._core.budget import Budget
from kling_async._core.endings import state_of
from kling_async._core.picture_names import shown_name
from kling_async._core.states import State
from kling_async._core.text import one_line
from kling_async._session.batch import Batch
from kling_async.errors import PriceUnknownError, SkippedError
from kling_async.progress._board import Board
from kling_async.results import Exported, Format

from .audit import Audit
from .exits import Exit
from .export import print_left_out, print_rerun
from .films import Made, print_films
from .hints import kept_options
from .output import (
    format_duration,
    format_usd,
    has_cursor,
    new_table,
    plural,
    print_error,
    print_text,
)
from .plan import Plan, format_difference
from .results import print_command, print_unsaved
from .status import STYLES

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async._core.prediction import Outcome

    from .options import BatchOptions

_MAX_FAILURES_SHOWN: Final = 20
_MAX_KEYS_PER_FAILURE: Final = 3


@attrs.define(kw_only=True)
class Report:
    """Facts of a run, collected until its end.

    Attributes:
        name: Name of the batch.
        total: Number of jobs.
        plan: Jobs to be paid for, with prices.
        budget: Limit of the cost; None if there is none.
        board: Counters of the run.
        batch: The batch; None until it has begun.
        seconds: Duration of the run on the session's clock.
        interrupted: The user interrupted the run.
        error: Error that ended the run early; None if there was none.
        left_running: Number of predictions that still run at the service.
        audit: Comparison with the service's bill; None if there was none.
        audit_error: Reason why the bill could not be read; empty if it could.
        exported: Result files.
        export_error: Reason why the result files could not be written; empty if they could.
        gallery: The kept page; None if there is none.
        films: Films that were to be joined.
    """

    name: str
    total: int
    plan: Plan
    budget: Budget | None
    board: Board
    batch: Batch | None = None
    seconds: float = 0.0
    interrupted: bool = False
    error: Exception | None = None
    left_running: int = 0
    audit: Audit | None = None
    audit_error: str = ""
    exported: list[Exported] = attrs.field(factory=list)
    export_error: str = ""
    gallery: Path | None = None
    films: list[Made] = attrs.field(factory=list)

    @property
    def exit_status(self) -> Exit:
        """Exit status of the command."""
        board = self.board
        if self.interrupted:
            return Exit.INTERRUPTED
        if self.error is not None:
            return Exit.SOME_FAILED if board.accepted else Exit.BAD_INPUT
        if board.endings and not board.accepted and not board.done and not board.uncertain:
            return Exit.NOTHING_DONE
        if any(film.film is None for film in self.films):
            return Exit.SOME_FAILED
        return Exit.SOME_FAILED if board.endings else Exit.WELL

    @property
    def stopped(self) -> bool:
        """True if the run ended before every job was tried; the same command continues it."""
        return self.interrupted or self.error is not None or (self.batch is not None and self.batch.stopped is not None)


def print_summary(console: Console, options: BatchOptions, report: Report) -> None:
    """Print the summary of a run.

    Args:
        console: The console to print to.
        options: Options of the command.
        report: Facts of the run.
    """
    _print_failures(console, options, report)
    _print_counts(console, options, report)
    print_films(console, report.films, lines=options.as_json, from_ledger=options.ledger_is_complete)
    if not options.quiet:
        _print_money(console, report)
        _print_files(console, options, report)
    if report.gallery is not None:
        print_text(console, Text.assemble("Gallery: ", (str(report.gallery), "cyan")))
    print_unsaved(
        console,
        report.board.unsaved,
        report.left_running,
        out=options.out,
        ledger=options.ledger_name,
        provider=options.provider,
        rehearsal=options.rehearsal,
    )
    if report.board.uncertain and not options.rehearsal:
        print_text(console, "The uncertain jobs, and how to settle them by hand:")
        print_command(console, shlex.join(["kling-async", "ledger", *options.ledger_name.as_argument]))
    if (report.interrupted or report.board.endings[State.PENDING]) and not options.rehearsal:
        _print_continuation(console, options, report)
    if report.error is not None:
        print_error(report.error)


def _print_failures(console: Console, options: BatchOptions, report: Report) -> None:
    batch = report.batch
    if batch is None:
        return
    failures = list(batch.failures)
    if not options.as_json:
        _print_failure_table(console, [outcome for outcome in failures if not _is_shared(outcome)])
    if any(isinstance(outcome.error, PriceUnknownError) for outcome in failures) and not options.allow_estimate:
        print_text(console, "--allow-estimate reserves the list price where the service quotes none.")
    if batch.stopped is not None:
        print_error(batch.stopped)
        text = f"{plural(report.board.endings[State.SKIPPED], 'job')} skipped, unpaid."
        console.print(Text(text, "red"))


def _is_shared(outcome: Outcome) -> bool:
    """Return whether every later job failed for the same reason, which is printed once."""
    return isinstance(outcome.error, SkippedError) or (outcome.error is not None and outcome.error.account_wide)


def _print_failure_table(console: Console, failures: list[Outcome]) -> None:
    """Print the failures, grouped by result and message, the largest group first."""
    if not failures:
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for outcome in failures:
        error = outcome.error
        advice = f" ({error.advice})" if error is not None and error.advice and has_cursor(console) else ""
        message = one_line((error.message if error is not None else "") + advice)
        groups.setdefault((state_of(outcome).label, message), []).append(
            one_line(shown_name(outcome.key, outcome.job.image))
        )
    table = new_table(console, "without a video", "state", "message")
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (result, message), keys in largest[:_MAX_FAILURES_SHOWN]:
        more = len(keys) - _MAX_KEYS_PER_FAILURE
        names = ", ".join(keys[:_MAX_KEYS_PER_FAILURE]) + (f" and {more} more" if more > 0 else "")
        table.add_row(names, Text(result, STYLES[result]), message)
    console.print(table)
    if len(largest) > _MAX_FAILURES_SHOWN:
        rest = sum(len(keys) for _, keys in largest[_MAX_FAILURES_SHOWN:])
        console.print(Text(f"and {rest} more", "dim"))


def _print_counts(console: Console, options: BatchOptions, report: Report) -> None:
    board = report.board
    videos = f"{board.done} of {plural(board.total or board.admitted, 'video')}"
    text = Text.assemble(
        ("Interrupted. " if report.interrupted else "", "bold yellow"),
        (videos, "bold green" if board.done else ""),
        f" in {options.videos}",
    )
    if board.reused:
        text.append(f", {board.reused} reused", "green")
    # The words and numbers of `status` and of the result files.
    for state in State:
        count = len(board.uncertain) if state is State.UNCERTAIN else board.endings[state]
        if count and state is not State.PENDING:
            text.append(f", {count} {state.label}", STYLES[state.label])
    if board.waiting and (report.interrupted or board.endings[State.PENDING]):
        text.append(f", {board.waiting} never sent" if report.interrupted else f", {board.waiting} waiting", "yellow")
    text.append(f", {format_usd(board.spent)} spent")
    if board.unpriced:
        text.append(f" plus {plural(board.unpriced, 'job')} of unknown price")
    text.append(f", {format_duration(report.seconds)}", "dim")
    print_text(console, text)


def _print_money(console: Console, report: Report) -> None:
    """Print the estimate, the cost, and the comparison with the service's bill."""
    plan, found = report.plan, report.audit
    if plan.jobs > plan.unpriced:
        estimate = f"{'≈ ' if plan.approximate else ''}{format_usd(plan.usd)}"
        text = Text(f"Money: {estimate} estimated, {format_usd(report.board.spent)} spent")
        if found is not None:
            text.append(f", {format_usd(found.refunded)} refunded")
        if found is not None and found.refundable:
            text.append(f" and {format_usd(found.refundable)} still due for failed jobs", "yellow")
        if report.budget is not None:
            text.append(f"; {format_usd(report.budget.left)} of {format_usd(report.budget.usd)} left")
        print_text(console, text)
    if report.audit_error:
        print_text(console, Text(one_line(report.audit_error), "yellow"))
    elif found is not None and found.predictions:
        style = "" if found.difference else "dim"
        text = Text(f"The service's bill: {format_usd(found.deducted)} for ", style)
        predictions = f"{found.billed} of {plural(found.predictions, 'prediction')}"
        text.append(f"{predictions}, {format_difference(found.difference)}", style)
        if found.billed < found.predictions:
            text.append(f"; {found.predictions - found.billed} not on it yet", "yellow")
        print_text(console, text)


def _print_files(console: Console, options: BatchOptions, report: Report) -> None:
    if report.export_error:
        print_text(console, Text(one_line(report.export_error), "yellow"))
    folder = options.results_folder
    written = [made for made in report.exported if made.rows]
    ledger = f"Ledger: {options.ledger_name}"
    if written:
        names = ", ".join(made.path.name for made in written)
        ledger = f"Results: {folder} ({names})   {ledger}"
    print_text(console, Text(ledger, "dim"))
    for made in written:
        # Unsent jobs of a stopped run are sent by the same command, not from the errors manifest.
        if made.format is not Format.ERRORS or report.stopped:
            continue
        print_left_out(console, made)
        print_rerun(console, made, folder, ledger=options.ledger_name, to=options.out, more=kept_options(options))


def _print_continuation(console: Console, options: BatchOptions, report: Report) -> None:
    text = "The same command continues where this one stopped and pays for nothing twice. So does this"
    unread = 0 if report.batch is None else report.total - report.batch.statistics().read
    if unread and not options.ledger_is_complete:
        text += f", without the {plural(unread, 'job')} that only the manifest has"
    print_text(console, f"{text}:")
    words = ["kling-async", "resume", *options.ledger_name.as_argument, "--name", report.name, "--out", options.out]
    words += kept_options(options)
    print_command(console, shlex.join(words))
