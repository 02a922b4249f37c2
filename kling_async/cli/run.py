"""`kling-async run`: a manifest becomes videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from rich.text import Text

from kling_async._clock import SystemClock
from kling_async.errors import ConfigurationError

from .choices import ProfileChoice
from .interrupts import Exit, interruptible
from .ledgers import REHEARSAL, LedgerName
from .output import console, route_logs, say
from .places import place
from .plan import Plan, tell_level, tell_plan
from .progress import counted
from .reading import rows_of
from .runner import BatchOptions, Work, agreed, check_gallery, check_out, run_batch, tell_budget
from .sources import Source, checked, tell_warnings

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async.manifest import Manifest


@attrs.frozen(kw_only=True)
class RunOptions(BatchOptions):
    """What the user asked for; see the help of the command."""

    source: Source
    emulator: bool = False
    ordered: bool = False
    ledger: LedgerName | None = None
    speed: float = 20.0
    profile: ProfileChoice = ProfileChoice.VIDEO

    @property
    def ledger_path(self) -> LedgerName:
        """The ledger. What an emulator was paid is kept apart from what was really paid."""
        return self.ledger or LedgerName(self.folder / (REHEARSAL if self.emulator else "run.db"))

    @property
    def home(self) -> Path:
        """The ledger's folder, or one that is called after the batch."""
        file = None if self.ledger is None else self.ledger.path
        return Path(f"kling-{self.batch}") if file is None else file.parent

    @property
    def rehearsal(self) -> bool:
        """Whether an emulator in this process makes the videos."""
        return self.emulator

    @property
    def batch(self) -> str:
        """The batch is called as its manifest."""
        return self.source.manifest.resolve().stem


def run(options: RunOptions) -> Exit:
    """Check, estimate, ask, run, tell."""
    to = console(stderr=options.as_json)
    if options.emulator and options.ledger_path.path is None:
        raise ConfigurationError(
            "a rehearsal is not written where others go on with it", advice="leave out --ledger, or name a file"
        )
    manifest = checked(options.source, options.provider, as_json=options.as_json)
    if manifest is None:
        return Exit.BAD_INPUT
    # A missing key is told before anything else is.
    session = options.session(api_key="-") if options.emulator else options.session()
    check_gallery(options)
    check_out(options)
    work = _work(manifest, options)
    if not options.quiet:
        at = "the emulator, for nothing" if options.emulator else options.provider
        to.print(Text.assemble((counted(len(manifest), "job"), "bold"), f" from {manifest.name} at {at}"))
        tell_plan(to, work.plan)
        tell_budget(to, work)
        tell_warnings(to, manifest)
        tell_level(to, manifest.kinds, session)
    if not options.emulator:
        _tell_paid_before(to, options)
        if not agreed(to, options):
            to.print("Nothing was sent.")
            return Exit.NOTHING_DONE
    route_logs(to, debug=options.debug)
    return interruptible(lambda: _run(to, options, work))


def _work(manifest: Manifest, options: RunOptions) -> Work:
    budget = options.new_budget()
    return Work(
        name=options.batch,
        total=len(manifest),
        plan=Plan.of(manifest.kinds, options.provider),
        budget=budget,
        batch=lambda kling: kling.batch(
            manifest,
            name=options.batch,
            budget=budget,
            save_to=place(options.out),
            ordered=options.ordered,
            deadline=options.deadline,
        ),
    )


def _tell_paid_before(to: Console, options: RunOptions) -> None:
    if not options.ledger_path.exists():
        return
    paid = sum(1 for row in rows_of(options.ledger_path, batch=options.batch) if row.prediction_id)
    if paid:
        said = f"{counted(paid, 'job')} of an earlier run of this file in {options.ledger_path}: not paid for again."
        say(to, Text(said, "green"))


async def _run(to: Console, options: RunOptions, work: Work) -> Exit:
    if not options.emulator:
        return await run_batch(to, options, work, clock=SystemClock())
    if options.ledger is None:
        # The emulator of an earlier rehearsal is gone, and its predictions with it.
        (options.folder / REHEARSAL).unlink(missing_ok=True)
    from .serving import emulator_of  # noqa: PLC0415 -- a server is not wanted in every run

    async with emulator_of(level=options.level, speed=options.speed, profile=options.profile) as emulator:
        real = options.provider == "wavespeed"
        more: dict[str, Any] = {
            "base_url": emulator.base_url if real else emulator.gptproto_url,
            "api_key": emulator.api_key if real else emulator.gptproto_key,
        }
        return await run_batch(to, options, work, clock=emulator.clock, more=more)
