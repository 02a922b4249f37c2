"""`kling-async enqueue` and `worker`: many workers on one ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._session.session import KlingSession
from kling_async._worker.enqueue import enqueue as enqueue_jobs
from kling_async._worker.enqueue import shared_ledger
from kling_async._worker.worker import Worker
from kling_async.errors import KlingError
from kling_async.manifest import batch_name, read_manifest

from .exits import Exit
from .interrupts import interruptible, took_interrupt
from .output import make_console, plural, print_error, print_text, route_logs
from .plan import parse_budget
from .progress import progress

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
    """Check a manifest and add its jobs to the ledger."""
    manifest = read_manifest(options.manifest)
    batch = options.batch or batch_name(options.manifest)

    async def work() -> Exit:
        async with aclosing(_shared_ledger(options)) as ledger:
            await ledger.open()
            new = await enqueue_jobs(
                ledger, manifest, batch=batch, seen=options.seen.value, ignored_parameters=options.ignored_parameters
            )
        known = len(manifest) - new
        text = f"{plural(new, 'new job')} in the batch {batch!r}"
        print_text(make_console(), Text(text + (f"; {plural(known, 'job')} already there" if known else "")))
        return Exit.WELL

    return interruptible(work)


def worker(options: WorkerOptions) -> Exit:
    """Run jobs of the ledger until a signal ends the worker."""
    console = make_console(stderr=True)
    clock = SystemClock()
    display = progress(console, clock, total=None, quiet=options.quiet)
    ledger = _shared_ledger(options, lease=options.lease)
    session = KlingSession(
        provider=options.provider,
        level=options.level,
        max_in_flight=options.max_in_flight,
        max_uploads=options.max_uploads,
        max_saving=options.max_saving,
        watch=options.polling.value,
        max_reads_per_second=options.max_reads_per_second,
        max_reply_bytes=options.max_reply_bytes,
        max_output_bytes=options.max_output_bytes,
        ledger=ledger,
        budget=parse_budget(options.budget, allow_estimate=options.allow_estimate),
        retry_failed=options.retry_failed,
        seen=options.seen.value,
        sole_user=options.sole_user,
        images=options.provider.images,
        observers=[display.observer(options.provider)],
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    route_logs(console, debug=options.debug)

    async def work() -> Exit:
        made, status = Worker(session, save_to=options.out), Exit.WELL
        try:
            async with display, session:
                text = f"Worker of account {ledger.account!r} at {ledger.address}. Ctrl-C or SIGTERM drains it."
                print_text(console, text)
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
