"""`kling-async enqueue` and `worker`: many workers over one ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kling_async._clock import SystemClock
from kling_async._session.session import KlingSession
from kling_async._worker.enqueue import enqueue as enqueue_jobs
from kling_async._worker.enqueue import shared_ledger
from kling_async._worker.worker import Worker
from kling_async.errors import KlingError
from kling_async.manifest import read_manifest

from .choices import LevelChoice
from .interrupts import Exit, interruptible, took_interrupt
from .ledgers import LedgerName
from .output import console, route_logs, say, show_error
from .progress import counted, progress
from .runner import budget_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kling_async.ledger.postgres import PostgresLedger


@attrs.frozen(kw_only=True)
class SharedOptions:
    """Which ledger.

    Attributes:
        ledger: Its name.
        lease: Seconds after which the jobs of a worker that is not heard of are others'.
    """

    ledger: LedgerName
    lease: float = 60.0

    def made(self) -> PostgresLedger:
        """The ledger, not open.

        Raises:
            ConfigurationError: It is none that can be shared.
        """
        ledger = shared_ledger(self.ledger.made())
        return type(ledger)(str(self.ledger.where), account=self.ledger.account, lease=self.lease)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PostgresLedger]:
        """The ledger, open."""
        ledger = self.made()
        await ledger.open()
        try:
            yield ledger
        finally:
            await ledger.aclose()


@attrs.frozen(kw_only=True)
class EnqueueOptions(SharedOptions):
    """What the user asked for; see the help of the command."""

    manifest: Path
    batch: str | None = None


@attrs.frozen(kw_only=True)
class WorkerOptions(SharedOptions):
    """What the user asked for; see the help of the command."""

    out: Path | None = None
    provider: str = "wavespeed"
    level: LevelChoice = LevelChoice.BRONZE
    max_in_flight: int | None = None
    budget: str | None = None
    allow_estimate: bool = False
    retry_failed: int = 0
    sole_user: bool = False
    quiet: bool = False
    debug: bool = False


def enqueue(options: EnqueueOptions) -> Exit:
    """Check a manifest and write its jobs down for workers."""
    manifest = read_manifest(options.manifest)
    batch = options.batch or Path(manifest.name).stem

    async def work() -> Exit:
        async with options.opened() as ledger:
            new = await enqueue_jobs(ledger, manifest, batch=batch)
        known = len(manifest) - new
        said = f"{counted(new, 'new job')} in the batch {batch!r}"
        say(console(), said + (f"; {counted(known, 'job')} known already" if known else ""))
        return Exit.WELL

    return interruptible(work)


def worker(options: WorkerOptions) -> Exit:
    """Make the jobs of a ledger, until a signal ends it."""
    to = console(stderr=True)
    clock = SystemClock()
    display = progress(to, clock, total=None, quiet=options.quiet)
    ledger = options.made()
    session = KlingSession(
        provider=options.provider,
        level=options.level,
        max_in_flight=options.max_in_flight,
        ledger=ledger,
        budget=budget_of(options.budget, options.provider, allow_estimate=options.allow_estimate),
        retry_failed=options.retry_failed,
        sole_user=options.sole_user,
        images="upload" if options.provider == "wavespeed" else "inline",
        observers=[display.observer(options.provider)],
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    route_logs(to, debug=options.debug)

    async def work() -> Exit:
        made, end = Worker(session, save_to=options.out), Exit.WELL
        try:
            async with display, session:
                say(to, f"A worker of account {ledger.account!r} at {ledger.address}. Ctrl-C or SIGTERM drains it.")
                await made.run()
        except asyncio.CancelledError:
            took_interrupt()
        except KlingError as error:
            show_error(error)
            end = Exit.SOME_FAILED if made.finished > made.failed else Exit.NOTHING_DONE
        left = len(session.left_running)
        said = f"{counted(made.finished, 'job')} ended, {made.failed} of them failed"
        say(to, said + (f"; {counted(left, 'running job')} handed over" if left else ""))
        return end

    return interruptible(work)
