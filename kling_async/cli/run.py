"""`kling-async run`: make the videos of a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from kling_async._clock import SystemClock
from kling_async.errors import ConfigurationError

from .interrupts import Exit, interruptible
from .ledgers import REHEARSAL_FILE
from .output import make_console, plural, print_text, route_logs
from .places import destination
from .plan import Plan, parse_budget, print_level_hint, print_plan
from .reading import rows_of
from .runner import (
    Work,
    check_destination,
    check_gallery,
    confirm_spending,
    new_session,
    print_budget_warning,
    run_batch,
)
from .sources import print_warnings, read_source

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async.manifest import Manifest

    from .options import RunOptions


def run(options: RunOptions) -> Exit:
    """Check and price the manifest, ask, run the batch and print its summary."""
    console = make_console(stderr=options.as_json)
    if options.emulator and options.ledger_name.path is None:
        raise ConfigurationError(
            "--emulator: expected a ledger file, got a shared database", advice="leave out --ledger, or name a file"
        )
    manifest = read_source(options, options.provider, as_json=options.as_json)
    if manifest is None:
        return Exit.BAD_INPUT
    # Created now so that a missing key is reported before anything is printed.
    session = new_session(options, api_key="-") if options.emulator else new_session(options)
    check_gallery(options)
    check_destination(options)
    work = _work(manifest, options)
    if not options.quiet:
        at = "the emulator, for nothing" if options.emulator else options.provider
        console.print(Text.assemble((plural(len(manifest), "job"), "bold"), f" from {manifest.name} at {at}"))
        print_plan(console, work.plan)
        print_budget_warning(console, work)
        print_warnings(console, manifest)
        print_level_hint(console, manifest.kinds, session)
    if not options.emulator:
        _print_paid_before(console, options)
        if not confirm_spending(console, options):
            console.print("Nothing was sent.")
            return Exit.NOTHING_DONE
    route_logs(console, debug=options.debug)
    return interruptible(lambda: _run(console, options, work))


def _work(manifest: Manifest, options: RunOptions) -> Work:
    budget = parse_budget(options.budget, options.provider, allow_estimate=options.allow_estimate)
    return Work(
        name=options.batch,
        total=len(manifest),
        plan=Plan.of(manifest.kinds, options.provider),
        budget=budget,
        batch=lambda kling: kling.batch(
            manifest,
            name=options.batch,
            budget=budget,
            save_to=destination(options.out),
            ordered=options.ordered,
            deadline=options.deadline,
        ),
    )


def _print_paid_before(console: Console, options: RunOptions) -> None:
    """Print the number of jobs that an earlier run of the manifest has paid for."""
    ledger = options.ledger_name
    if not ledger.exists():
        return
    paid = sum(1 for row in rows_of(ledger, batch=options.batch) if row.prediction_id)
    if paid:
        text = f"{plural(paid, 'job')} of an earlier run of this file in {ledger}: not paid for again."
        print_text(console, Text(text, "green"))


async def _run(console: Console, options: RunOptions, work: Work) -> Exit:
    if not options.emulator:
        return await run_batch(console, options, work, clock=SystemClock())
    if options.ledger is None:
        # The predictions of an earlier rehearsal ended with its emulator.
        (options.folder / REHEARSAL_FILE).unlink(missing_ok=True)
    from .serving import new_emulator  # noqa: PLC0415 -- only rehearsals need the server

    async with new_emulator(level=options.level, speed=options.speed, profile=options.profile) as emulator:
        real = options.provider == "wavespeed"
        more: dict[str, Any] = {
            "base_url": emulator.base_url if real else emulator.gptproto_url,
            "api_key": emulator.api_key if real else emulator.gptproto_key,
        }
        return await run_batch(console, options, work, clock=emulator.clock, more=more)
