"""`kling-async run`: make the videos of a manifest."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import anyio
from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._session.keys import FileDigests
from kling_async._session.seen import Found, look_up, named
from kling_async._session.session import engine_of
from kling_async.errors import ConfigurationError
from kling_async.manifest import LookedUp

from .choices import SeenChoice
from .exits import Exit
from .films import check_films
from .interrupts import interruptible
from .ledgers import REHEARSAL_FILE
from .output import format_usd, make_console, plural, print_text, route_logs
from .places import destination
from .plan import Plan, parse_budget, print_level_hint, print_plan
from .reading import batches_of, identity_of
from .redo import Redo, jobs_to_redo, print_redo, renew
from .rehearsal import remove_rehearsal
from .runner import check_destination, check_gallery, new_batch_session, run_batch
from .sources import at_this_machine, emulated, print_warnings, read_source
from .spending import Payable, confirm_spending, due_of_manifest, print_budget_warning
from .work import Due, Work

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async import KlingSession
    from kling_async._core.content import Identity
    from kling_async._session.batch import Batch
    from kling_async.manifest import Manifest

    from .options import RunOptions


def run(options: RunOptions) -> Exit:
    """Check and price the manifest, ask, run the batch and print its summary."""
    console = make_console(stderr=options.as_json)
    if options.emulator and options.ledger is not None:
        raise ConfigurationError(
            "--emulator: expected no --ledger, got one: a rehearsal keeps a ledger of its own, apart from payments. "
            "Nothing was sent",
            advice=f"leave out --ledger; the rehearsal is in {options.videos}",
        )
    if not options.emulator:
        options.ledger_name.require_real()
    manifest = read_source(options, options.provider, as_json=options.as_json, rehearsal=options.emulator)
    if manifest is None:
        return Exit.BAD_INPUT
    # Created now so that a missing key is reported before anything is printed.
    session = new_batch_session(options, api_key="-") if options.emulator else new_batch_session(options)
    check_gallery(options)
    check_films(options)
    check_destination(options)
    files = FileDigests()
    if options.emulator:
        due, found, redo = Due(Counter(manifest.kinds)), Found(options.batch), list[Redo]()
    else:
        identity = identity_of(options.ledger_name, options.batch, options.ignored_parameters)
        redo = anyio.run(jobs_to_redo, console, manifest, options, identity, files)
        due = anyio.run(_due, manifest, options, identity, {job.row.key for job in redo}, files)
        found = _look_up(manifest, options, identity, files)
    if options.seen is SeenChoice.REUSE:
        due.kinds -= found.kinds
    work = _work(manifest, options, due, files)
    if not options.quiet:
        at = f"the emulator, for nothing, in {options.videos}" if options.emulator else options.provider
        print_text(console, Text.assemble((plural(len(manifest), "job"), "bold"), f" from {manifest.name} at {at}"))
        if due.known:
            text = f"{plural(due.known, 'job')} of an earlier run of this file in {options.ledger_name}"
            print_text(console, Text(f"{text}: not paid for again.", "green"))
        if due.kinds:
            print_plan(console, work.plan)
            print_budget_warning(console, work)
        _print_seen(console, options, found)
        print_redo(console, redo)
        print_warnings(console, manifest, options.provider, local=options.emulator or at_this_machine(options.provider))
        print_level_hint(console, due.kinds, session, speed=options.speed if options.emulator else 1.0)
    if options.seen is SeenChoice.STOP and found.jobs:
        raise found.error()
    if not options.emulator and not confirm_spending(console, options, work):
        return Exit.NOTHING_DONE
    route_logs(console, debug=options.debug)
    return interruptible(lambda: _run(console, options, work, redo))


async def _due(manifest: Manifest, options: RunOptions, identity: Identity, redo: set[str], files: FileDigests) -> Due:
    payable = Payable(options.ledger_name, options.retry_failed, options.seen)
    return await due_of_manifest(manifest, options.batch, identity, payable, redo=redo, files=files)


def _work(manifest: Manifest, options: RunOptions, due: Due, files: FileDigests) -> Work:
    budget = parse_budget(options.budget, allow_estimate=options.allow_estimate)

    def batch(kling: KlingSession) -> Batch:
        engine_of(kling).contents.known = files
        return kling.batch(
            LookedUp(manifest),
            name=options.batch,
            budget=budget,
            save_to=destination(options.videos),
            ordered=options.ordered,
        )

    return Work(
        name=options.batch,
        total=len(manifest),
        due=due,
        plan=Plan.of(due.kinds, options.provider, models=manifest.models),
        budget=budget,
        invalid=manifest.invalid_rows,
        batch=batch,
    )


def _look_up(manifest: Manifest, options: RunOptions, identity: Identity, files: FileDigests) -> Found:
    """Return which jobs of the manifest other batches of the ledger have paid for.

    Raises:
        LedgerError: The ledger cannot be opened.
    """
    ledger, batch = options.ledger_name, options.batch
    # Without another batch, no image needs to be read.
    if not ledger.exists() or batches_of(ledger) <= {batch}:
        return Found(batch)

    async def look() -> Found:
        made = ledger.create()
        await made.open()
        try:
            any_key = options.seen is SeenChoice.REUSE
            return await look_up(
                made, manifest, batch, identity=identity, provider=options.provider, any_key=any_key, known=files
            )
        finally:
            await made.aclose()

    return anyio.run(look)


def _print_seen(console: Console, options: RunOptions, found: Found) -> None:
    """Print what the run does with jobs that other batches have paid for."""
    if not found.jobs or options.seen is SeenChoice.STOP:
        return
    usd = "an unknown price" if found.usd is None else format_usd(found.usd)
    batches = ", ".join(map(named, found.batches))
    text = f"{plural(found.jobs, 'job')} sent before in {batches}, by {options.ledger_name}"
    if options.seen is SeenChoice.REUSE:
        print_text(console, Text(f"{text}: reused, {usd} of this is not paid again.", "green"))
    else:
        print_text(console, Text(f"{text}: {usd} of this pays for them again.", "yellow"))


async def _run(console: Console, options: RunOptions, work: Work, redo: list[Redo]) -> Exit:
    if not options.emulator:
        await renew(console, options, redo)
        return await run_batch(console, options, work, clock=SystemClock())
    # The predictions of an earlier rehearsal ended with its emulator.
    remove_rehearsal(options.folder / REHEARSAL_FILE)
    from .serving import new_emulator  # noqa: PLC0415 -- only rehearsals need the server

    async with new_emulator(level=options.level, speed=options.speed, profile=options.profile) as emulator:
        more = emulated(emulator, options.provider)
        return await run_batch(console, options, work, clock=emulator.clock, more=more)
