"""`kling-async resume`: continue a batch of an earlier process from its ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._core.states import IN_DOUBT, UNSENT
from kling_async._core.text import one_line
from kling_async.ledger import State

from .exits import Exit
from .films import check_films
from .interrupts import interruptible
from .output import make_console, plural, print_text, route_logs
from .places import destination
from .plan import Plan, parse_budget, print_level_hint, print_plan
from .reading import identity_of, order_of, rows_of, the_batch
from .runner import check_destination, check_gallery, new_batch_session, run_batch
from .spending import Payable, confirm_spending, due_of_rows, print_budget_warning
from .work import Work

if TYPE_CHECKING:
    from rich.console import Console

    from .options import ResumeOptions
    from .reading import Summary


def resume(options: ResumeOptions) -> Exit:
    """Find the batch, price its unsent jobs, ask, run it and print its summary."""
    console = make_console(stderr=options.as_json)
    ledger = options.ledger_name
    ledger.require_real()
    session = new_batch_session(options)
    check_gallery(options)
    check_films(options)
    check_destination(options)
    found = the_batch(ledger, options.name)
    identity_of(ledger, found.name, options.ignored_parameters)
    budget = parse_budget(options.budget, allow_estimate=options.allow_estimate)
    due = due_of_rows(rows_of(ledger, batch=found.name), Payable(ledger, options.retry_failed, options.seen))
    work = Work(
        name=found.name,
        total=found.jobs,
        due=due,
        plan=Plan.of(due.kinds, options.provider),
        budget=budget,
        order=lambda: order_of(ledger, found.name),
        batch=lambda kling: kling.resume(
            name=found.name,
            budget=budget,
            save_to=destination(options.out),
        ),
    )
    if not options.quiet:
        _print_batch(console, options, found)
        if due.kinds:
            print_plan(console, work.plan)
            print_budget_warning(console, work)
            print_level_hint(console, due.kinds, session)
    if not confirm_spending(console, options, work):
        return Exit.NOTHING_DONE
    route_logs(console, debug=options.debug)
    return interruptible(lambda: run_batch(console, options, work, clock=SystemClock()))


def _print_batch(console: Console, options: ResumeOptions, found: Summary) -> None:
    """Print how many jobs of the batch are in which state."""
    states = found.states
    counts = (
        (states[State.DOWNLOADED], State.DOWNLOADED.label),
        (states[State.COMPLETED], State.COMPLETED.label),
        (states[State.SUBMITTED], State.SUBMITTED.label),
        (sum(states[state] for state in IN_DOUBT), f"{State.UNCERTAIN.label}, looked for at the service"),
        (states[State.FAILED], State.FAILED.label),
        (states[State.EXPIRED], State.EXPIRED.label),
        (states[State.ABANDONED], State.ABANDONED.label),
        (states[State.REUSED], State.REUSED.label),
        (sum(states[state] for state in UNSENT), f"to be sent to {options.provider}"),
    )
    text = ", ".join(f"{count} {word}" for count, word in counts if count)
    batch = one_line(f" of {found.name}") if found.name else ""
    print_text(console, Text.assemble((plural(found.jobs, "job"), "bold"), f"{batch} in {options.ledger_name}: {text}"))
