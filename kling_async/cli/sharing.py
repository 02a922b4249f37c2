"""`kling-async enqueue` and `worker`: many workers on one ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._worker.enqueue import enqueue as enqueue_jobs
from kling_async._worker.enqueue import shared_ledger
from kling_async._worker.worker import Worker
from kling_async.errors import KlingError
from kling_async.progress._display import new_display

from .exits import Exit
from .interrupts import interruptible, took_interrupt
from .output import make_console, plural, print_error, print_text, route_logs
from .plan import Plan, parse_budget, print_plan
from .runner import explained, new_session
from .sources import at_this_machine, print_warnings, read_source

if TYPE_CHECKING:
    from kling_async.ledger.postgres import PostgresLedger

    from .options import EnqueueOptions, SharedOptions, WorkerOptions


def _shared_ledger(options: SharedOptions, *, lease: float = 60.0) -> PostgresLedger:
    """Return the ledger, not open yet.

    Args:
        options: Options that name it.
        lease: Seconds after which the jobs of a silent worker are released.

    Raises:
        ConfigurationError: It is a file, which cannot be shared.
    """
    name = options.ledger_name
    ledger = shared_ledger(name.create())
    return type(ledger)(str(name.where), account=name.account, lease=lease)


def enqueue(options: EnqueueOptions) -> Exit:
    """Check and price the jobs, and add them to the ledger."""
    console = make_console(stderr=options.as_json)
    manifest = read_source(options, options.provider, as_json=options.as_json)
    if manifest is None:
        return Exit.BAD_INPUT
    if not options.quiet:
        jobs = plural(len(manifest), "job")
        print_text(console, Text.assemble((jobs, "bold"), f" from {manifest.name}, for workers at {options.provider}"))
        print_plan(console, Plan.of(manifest.kinds, options.provider, models=manifest.models))
        print_warnings(console, manifest, options.provider, local=at_this_machine(options.provider))

    async def work() -> Exit:
        async with aclosing(_shared_ledger(options)) as ledger:
            await ledger.open()
            new = await enqueue_jobs(
                ledger,
                manifest,
                batch=options.batch,
                seen=options.seen.value,
                ignored_parameters=options.ignored_parameters,
            )
        known = len(manifest) - new
        if options.as_json:
            sys.stdout.write(json.dumps({"batch": options.batch, "new": new, "known": known}) + "\n")
        text = f"{plural(new, 'new job')} in the batch {options.batch!r}"
        print_text(console, Text(text + (f"; {plural(known, 'job')} already there" if known else "")))
        return Exit.WELL

    return interruptible(work)


def worker(options: WorkerOptions) -> Exit:
    """Run jobs of the ledger until a signal ends the worker."""
    console = make_console(stderr=True)
    clock = SystemClock()
    display = new_display(console, clock, total=None, quiet=options.quiet)
    ledger = _shared_ledger(options, lease=options.lease)
    session = new_session(
        options,
        ledger,
        budget=parse_budget(options.budget, allow_estimate=options.allow_estimate),
        sole_user=options.sole_user,
        observers=[display.observer(options.provider)],
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    route_logs(console, debug=options.debug)

    async def work() -> Exit:
        made, status = Worker(session, save_to=options.out, deadline=options.deadline), Exit.WELL
        try:
            async with display, session:
                text = f"Worker of account {ledger.account!r} at {ledger.address}. Ctrl-C or SIGTERM drains it."
                print_text(console, text)
                with explained(display.board, session, options):
                    await made.run()
        except asyncio.CancelledError:
            took_interrupt()
        except KlingError as error:
            print_error(error)
            status = Exit.SOME_FAILED if made.finished > made.failed else Exit.NOTHING_DONE
        running = len(session.left_running)
        text = f"{plural(made.finished, 'job')} ended, {made.failed} of them failed"
        print_text(console, text + (f"; {plural(running, 'running job')} handed over" if running else ""))
        return status

    return interruptible(work)
