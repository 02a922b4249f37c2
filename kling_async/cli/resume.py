"""`kling-async resume`: continue a batch of an earlier process from its ledger alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._core.states import IN_DOUBT, UNSENT
from kling_async.errors import ConfigurationError
from kling_async.ledger import State
from kling_async.manifest import Kind
from kling_async.results import job_of

from .interrupts import Exit, interruptible
from .output import make_console, plural, print_text, printable, route_logs
from .places import destination
from .plan import Plan, parse_budget, print_level_hint, print_plan
from .reading import rows_of, the_batch
from .runner import (
    Work,
    check_destination,
    check_gallery,
    confirm_spending,
    new_session,
    print_budget_warning,
    run_batch,
)

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async.ledger import Row

    from .options import ResumeOptions
    from .reading import Summary


def resume(options: ResumeOptions) -> Exit:
    """Find the batch, price its unsent jobs, ask, run it and print its summary."""
    console = make_console(stderr=options.as_json)
    ledger = options.ledger_name
    if ledger.is_rehearsal:
        raise ConfigurationError(
            f"{ledger} is of a rehearsal: its predictions ended with its emulator",
            advice="rehearse again with kling-async run --emulator, or name the ledger of a real run",
        )
    session = new_session(options)
    check_gallery(options)
    check_destination(options)
    found = the_batch(ledger, options.name)
    budget = parse_budget(options.budget, options.provider, allow_estimate=options.allow_estimate)
    unsent = list(rows_of(ledger, batch=found.name, states=UNSENT))
    kinds = Counter(_kind(row) for row in unsent)
    work = Work(
        name=found.name,
        total=found.jobs,
        plan=Plan.of(kinds, options.provider),
        budget=budget,
        batch=lambda kling: kling.resume(
            name=found.name, budget=budget, save_to=destination(options.out), deadline=options.deadline
        ),
    )
    if not options.quiet:
        _print_batch(console, options, found, len(unsent))
        if kinds:
            print_plan(console, work.plan)
            print_budget_warning(console, work)
            print_level_hint(console, kinds, session)
    if kinds and not confirm_spending(console, options):
        console.print("Nothing was sent.")
        return Exit.NOTHING_DONE
    route_logs(console, debug=options.debug)
    return interruptible(lambda: run_batch(console, options, work, clock=SystemClock()))


def _kind(row: Row) -> Kind:
    fields = job_of(row) or {}
    duration = fields.get("duration")
    return Kind(row.model, duration if isinstance(duration, int) else 0, bool(fields.get("sound")))


def _print_batch(console: Console, options: ResumeOptions, found: Summary, unsent: int) -> None:
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
        (unsent, f"to be sent to {options.provider}"),
    )
    text = ", ".join(f"{count} {word}" for count, word in counts if count)
    batch = printable(f" of {found.name}") if found.name else ""
    print_text(console, Text.assemble((plural(found.jobs, "job"), "bold"), f"{batch} in {options.ledger_name}: {text}"))
