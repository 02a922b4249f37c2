"""`kling-async resume`: a batch that an earlier process began, out of its ledger alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._core.states import UNSENT
from kling_async.errors import ConfigurationError
from kling_async.ledger import State
from kling_async.manifest import Kind
from kling_async.results import job_of

from .interrupts import Exit, interruptible
from .ledgers import LedgerName
from .output import clean, console, route_logs, say
from .places import place
from .plan import Plan, tell_level, tell_plan
from .progress import counted
from .reading import rows_of, the_batch
from .runner import BatchOptions, Work, agreed, check_gallery, check_out, run_batch, tell_budget

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async.ledger import Row

    from .reading import Summary


@attrs.frozen(kw_only=True)
class ResumeOptions(BatchOptions):
    """What the user asked for; see the help of the command."""

    ledger: LedgerName
    name: str | None = None

    @property
    def ledger_path(self) -> LedgerName:
        """The ledger."""
        return self.ledger

    @property
    def home(self) -> Path:
        """The ledger's folder, or one that is called after the batch."""
        file = self.ledger.path
        return Path(f"kling-{self.name}" if self.name else "kling-results") if file is None else file.parent

    @property
    def from_ledger(self) -> bool:
        """Whether the ledger has all jobs before the first is sent."""
        return True


def resume(options: ResumeOptions) -> Exit:
    """Find the batch, estimate, ask, run, tell."""
    to = console(stderr=options.as_json)
    if options.ledger.rehearsal:
        raise ConfigurationError(
            f"{options.ledger} is of a rehearsal, whose emulator has ended, and its predictions with it",
            advice="rehearse again with kling-async run --emulator, or name the ledger of a real run",
        )
    session = options.session()
    check_gallery(options)
    check_out(options)
    found = the_batch(options.ledger, options.name)
    budget = options.new_budget()
    unsent = list(rows_of(options.ledger, batch=found.name, states=UNSENT))
    kinds = Counter(_kind(row) for row in unsent)
    work = Work(
        name=found.name,
        total=found.jobs,
        plan=Plan.of(kinds, options.provider),
        budget=budget,
        batch=lambda kling: kling.resume(
            name=found.name, budget=budget, save_to=place(options.out), deadline=options.deadline
        ),
    )
    if not options.quiet:
        _tell(to, options, found, len(unsent))
        if kinds:
            tell_plan(to, work.plan)
            tell_budget(to, work)
            tell_level(to, kinds, session)
    if kinds and not agreed(to, options):
        to.print("Nothing was sent.")
        return Exit.NOTHING_DONE
    route_logs(to, debug=options.debug)
    return interruptible(lambda: run_batch(to, options, work, clock=SystemClock()))


def _kind(row: Row) -> Kind:
    fields = job_of(row) or {}
    duration = fields.get("duration")
    return Kind(row.model, duration if isinstance(duration, int) else 0, bool(fields.get("sound")))


def _tell(to: Console, options: ResumeOptions, found: Summary, unsent: int) -> None:
    """Where the batch stands."""
    states = found.states
    stands = (
        (states[State.DOWNLOADED], "saved"),
        (states[State.COMPLETED], "to be saved"),
        (states[State.SUBMITTED], "running"),
        (states[State.INTENT] + states[State.UNCERTAIN], "in doubt, looked for at the service"),
        (states[State.FAILED], "failed"),
        (states[State.EXPIRED], "expired"),
        (states[State.ABANDONED], "given up"),
        (unsent, f"to be sent to {options.provider}"),
    )
    told = ", ".join(f"{count} {word}" for count, word in stands if count)
    batch = clean(f" of {found.name}") if found.name else ""
    say(to, Text.assemble((counted(found.jobs, "job"), "bold"), f"{batch} in {options.ledger}: {told}"))
