"""`kling-async enqueue`, `worker` and `status`: many workers over one ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from rich.console import Group
from rich.live import Live
from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._core.states import OPEN, State
from kling_async._session import KlingSession
from kling_async._worker import Worker, shared
from kling_async._worker import enqueue as enqueue_jobs
from kling_async.cli.choices import LevelChoice
from kling_async.cli.interrupts import Exit, interruptible, took_interrupt
from kling_async.cli.output import clean, console, pretty, route_logs, say, table, usd
from kling_async.cli.progress import counted, progress
from kling_async.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.console import Console

    from kling_async.ledger.postgres import BatchTally, PostgresLedger, WorkerTally

_LOOK_SECONDS: Final = 1.0
_WAITING: Final = frozenset({State.PENDING, State.CLAIMED})
_FAILED: Final = frozenset({State.FAILED, State.REJECTED, State.EXPIRED, State.SKIPPED})


@attrs.frozen(kw_only=True)
class SharedOptions:
    """Which ledger.

    Attributes:
        ledger: The URL of its database.
        account: What the account on the service is called in it.
        lease: Seconds after which the jobs of a worker that is not heard of are others'.
    """

    ledger: str
    account: str = "default"
    lease: float = 60.0

    def made(self) -> PostgresLedger:
        """The ledger, not open.

        Raises:
            ConfigurationError: It is none that can be shared.
        """
        ledger = shared(self.ledger)
        return type(ledger)(self.ledger, account=self.account, lease=self.lease)

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
    sole_user: bool = False
    quiet: bool = False
    debug: bool = False


@attrs.frozen(kw_only=True)
class StatusOptions(SharedOptions):
    """What the user asked for; see the help of the command."""

    name: str | None = None
    as_json: bool = False
    watch: bool = False


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
        sole_user=options.sole_user,
        images="upload" if options.provider == "wavespeed" else "inline",
        observers=[display.observer(options.provider)],
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    route_logs(to, debug=options.debug)

    async def work() -> Exit:
        made = Worker(session, save_to=options.out)
        try:
            async with display, session:
                say(to, f"A worker of account {options.account!r} at {ledger.address}. Ctrl-C or SIGTERM drains it.")
                await made.run()
        except asyncio.CancelledError:
            took_interrupt()
        left = len(session.left_running)
        said = f"{counted(made.finished, 'job')} ended, {made.failed} of them failed"
        say(to, said + (f"; {counted(left, 'running job')} handed over" if left else ""))
        return Exit.WELL

    return interruptible(work)


def status(options: StatusOptions) -> Exit:
    """Show where the jobs are: once, or in a terminal as they move, until none is open."""
    to = console()

    async def work() -> Exit:
        async with options.opened() as ledger:
            batches, workers = await ledger.tally()
            if options.as_json:
                sys.stdout.write(json.dumps(_as_json(batches, workers), indent=2) + "\n")
            elif options.watch and pretty(to):
                await _live(to, ledger)
            else:
                to.print(_picture(to, batches, workers))
        return Exit.WELL

    try:
        return interruptible(work)
    except asyncio.CancelledError:
        return Exit.INTERRUPTED


async def _live(to: Console, ledger: PostgresLedger) -> None:
    batches, workers = await ledger.tally()
    with Live(_picture(to, batches, workers), console=to, auto_refresh=False) as live:
        while any(tally.states.keys() & (OPEN | _WAITING) for tally in batches):
            await asyncio.sleep(_LOOK_SECONDS)
            batches, workers = await ledger.tally()
            live.update(_picture(to, batches, workers), refresh=True)


def _picture(to: Console, batches: list[BatchTally], workers: list[WorkerTally]) -> Group:
    if not batches:
        return Group(Text("No jobs."))
    shown = table(to, "batch", ">waiting", ">running", ">uncertain", ">completed", ">saved", ">failed", ">spent")
    for tally in batches:
        shown.add_row(
            clean(tally.batch) or "-",
            str(_count(tally, _WAITING)),
            str(_count(tally, {State.INTENT, State.SUBMITTED})),
            str(_count(tally, {State.UNCERTAIN})),
            str(_count(tally, {State.COMPLETED})),
            str(_count(tally, {State.DOWNLOADED})),
            str(_count(tally, _FAILED)),
            usd(tally.spent),
        )
    lines = [Text(f"{clean(one.name)}: {counted(one.jobs, 'job')} in hand", "dim") for one in workers]
    spent = sum((tally.spent for tally in batches), Decimal(0))
    return Group(shown, *lines, Text(f"{counted(len(workers), 'worker')}, {usd(spent)} spent", "bold"))


def _count(tally: BatchTally, states: set[State] | frozenset[State]) -> int:
    return sum(tally.states.get(state, 0) for state in states)


def _as_json(batches: list[BatchTally], workers: list[WorkerTally]) -> dict[str, object]:
    return {
        "batches": {
            tally.batch: {
                "states": {state.value: count for state, count in tally.states.items()},
                "spent": str(tally.spent),
            }
            for tally in batches
        },
        "workers": [attrs.asdict(worker) for worker in workers],
    }
