"""Run one batch with progress, result files and a summary: the common part of `run` and `resume`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from rich.text import Text

from kling_async._session.session import KlingSession
from kling_async.errors import ApiError, KlingError, TransportError, UnsupportedError
from kling_async.progress._display import new_display
from kling_async.results import export

from .audit import audit
from .films import Films
from .hints import record_run
from .interrupts import close_output, drains, took_interrupt
from .output import format_duration, plural, print_text
from .places import destination
from .rehearsal import clear_names
from .results import row
from .summary import Report, print_summary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from rich.console import Console

    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Outcome
    from kling_async.gallery import Gallery
    from kling_async.ledger import Ledger
    from kling_async.progress._board import Board
    from kling_async.progress._display import Display
    from kling_async.results import Exported

    from .exits import Exit
    from .options import BatchOptions, SessionOptions
    from .work import Work


def new_session(options: SessionOptions, ledger: Ledger, **more: Any) -> KlingSession:
    """Return a session with the options of a command, not open yet.

    Args:
        options: Options of the command.
        ledger: The session's ledger.
        more: Further arguments of the session.
    """
    return KlingSession(
        provider=options.provider,
        level=options.level,
        max_in_flight=options.max_in_flight,
        max_uploads=options.max_uploads,
        max_saving=options.max_saving,
        deadline=options.deadline,
        forget_after=options.forget_after,
        watch=options.polling.value,
        max_reads_per_second=options.max_reads_per_second,
        max_reply_bytes=options.max_reply_bytes,
        max_output_bytes=options.max_output_bytes,
        ledger=ledger,
        images=options.provider.images,
        fit=options.fit,
        background=options.background,
        verify=options.verify,
        retry_failed=options.retry_failed,
        seen=options.seen.value,
        **more,
    )


def new_batch_session(options: BatchOptions, **more: Any) -> KlingSession:
    """Return the session of a batch, not open yet.

    Args:
        options: Options of the command.
        more: Further arguments of the session.
    """
    return new_session(options, options.ledger_name.create(), ignored_parameters=options.ignored_parameters, **more)


def check_destination(options: BatchOptions) -> None:
    """Check, before anything is sent, that videos can be saved; create the local folder.

    Raises:
        ConfigurationError: The URL of the object store is wrong, or obstore is not installed.
        OSError: The folder cannot be created.
    """
    destination(options.videos)
    options.folder.mkdir(parents=True, exist_ok=True)


def check_gallery(options: BatchOptions) -> None:
    """Check, before anything is sent, that a requested page can be made.

    Raises:
        ConfigurationError: Jinja2 is not installed.
    """
    if options.gallery:
        from kling_async.gallery.page import prepare  # noqa: PLC0415 -- only for runs with a page

        prepare()


async def run_batch(
    console: Console, options: BatchOptions, work: Work, *, clock: Clock, more: dict[str, Any] | None = None
) -> Exit:
    """Run a batch and print its summary.

    Args:
        console: The console to print to.
        options: Options of the command.
        work: The batch.
        clock: Clock of the session.
        more: Further arguments of the session.
    """
    if not options.rehearsal:
        clear_names(console, options.folder)
    display = new_display(console, clock, total=work.total, budget=work.budget, quiet=options.quiet)
    observers = [display.observer(options.provider)]
    page = _new_page(options, work, clock)
    if page is not None:
        observers.append(page.observer(options.provider))
    session = new_batch_session(options, observers=observers, clock=clock, **(more or {}))
    films = Films(options)
    run = _Run(console, options, work, display, clock, page=page, films=films)
    report = run.report
    try:
        await run.all(session)
        if not report.interrupted:
            report.films = await films.join(work)
    except asyncio.CancelledError:
        took_interrupt()
        report.interrupted = True
    except (KlingError, OSError) as error:
        if options.debug:
            raise
        report.error = error
    await _export(options, work, report)
    report.left_running = len(session.left_running)
    report.seconds = report.seconds or run.elapsed
    if page is None:
        report.gallery = await _kept_page(options)
    elif await anyio.Path(page.index).exists():
        report.gallery = page.index
    print_summary(console, options, report)
    return report.exit_status


def _new_page(options: BatchOptions, work: Work, clock: Clock) -> Gallery | None:
    if not options.gallery:
        return None
    from kling_async.gallery import Gallery  # noqa: PLC0415 -- only for runs with a page

    ledger = options.ledger_name
    return Gallery(
        options.folder / "gallery",
        title=work.name,
        total=work.total,
        clock=clock,
        ledger=ledger.where,
        account=ledger.account,
    )


async def _kept_page(options: BatchOptions) -> Path | None:
    """Bring the page of an earlier run up to date, or remove it; return its path, or None if there is none.

    Without this it would show as running what has ended since.
    """
    index = options.folder / "gallery" / "index.html"
    ledger = options.ledger_name
    if not await anyio.Path(index).exists() or not ledger.exists():
        return None
    try:
        from kling_async.gallery import gallery_of_ledger  # noqa: PLC0415 -- only for folders with a page

        return await anyio.to_thread.run_sync(
            lambda: gallery_of_ledger(
                ledger.where, index.parent, account=ledger.account, provider=options.provider.value
            )
        )
    except (KlingError, OSError):
        with contextlib.suppress(OSError):
            await anyio.Path(index).unlink()
        return None


async def _export(options: BatchOptions, work: Work, report: Report) -> None:
    """Write the result files, unless `--no-results` is given or nothing was recorded."""
    if options.no_results or not options.ledger_name.exists():
        return
    ledger, folder = options.ledger_name, options.results_folder

    def write() -> list[Exported]:
        invalid = None if work.invalid is None else work.invalid()
        return export(ledger.where, folder, account=ledger.account, invalid=invalid)

    try:
        report.exported = await anyio.to_thread.run_sync(write)
    except (KlingError, OSError) as error:
        report.export_error = f"The results could not be written: {error}"


class _Run:
    """One run of a batch, from opening the session to closing it."""

    def __init__(
        self,
        console: Console,
        options: BatchOptions,
        work: Work,
        display: Display,
        clock: Clock,
        *,
        page: Gallery | None,
        films: Films,
    ) -> None:
        self.report = Report(name=work.name, total=work.total, plan=work.plan, budget=work.budget, board=display.board)
        self._console = console
        self._options = options
        self._work = work
        self._display = display
        self._board = display.board
        self._clock = clock
        self._page = page
        self._films = films
        self._start = clock.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, on the session's clock."""
        return self._clock.monotonic() - self._start

    async def all(self, session: KlingSession) -> None:
        """Open the session, run the batch, compare with the bill, and close the session."""
        began = self._clock.now()
        async with self._served_page(), self._display, session as kling:
            if self._work.budget is not None and self._options.audit:
                # Refunds since the last run are free to be spent again.
                await self._audit(kling, began)
            record_run(self._options, self._work.name)
            batch = self.report.batch = self._work.batch(kling)
            with explained(self._board, kling, self._options), drains(self._drain):
                async with batch:
                    async for outcome in batch:
                        self._films.add(outcome)
                        self._print_outcome(outcome)
            self.report.seconds = self.elapsed
            if self._options.audit:
                self._board.note = "reading the service's bill"
                await self._audit(kling, began)

    def _drain(self) -> None:
        """Send nothing more, and end once the running jobs have ended."""
        if self.report.batch is None:  # pragma: no cover -- only called during the batch
            return
        self.report.interrupted = self._board.draining = True
        self._board.note = ""
        self.report.batch.drain()
        running = len(self._board.running)
        awaited = f"{plural(running, 'running video')} {'is' if running == 1 else 'are'} waited for"
        text = f"Draining: {awaited}, nothing more is sent. Ctrl-C again stops now."
        print_text(self._console, Text(text, "yellow"))

    @asynccontextmanager
    async def _served_page(self) -> AsyncGenerator[None, None]:
        """Serve the page, if there is one, and print its address."""
        if self._page is None:
            yield
            return
        async with self._page:
            if not self._options.quiet:
                text = Text.assemble("Gallery: ", (self._page.url or "", "bold cyan"))
                self._console.print(text, soft_wrap=True)
            yield

    async def _audit(self, kling: KlingSession, since: float) -> None:
        try:
            self.report.audit = await audit(kling, self._options.ledger_name, self._work.name, since=since)
        except UnsupportedError:
            pass  # the provider has no bill
        except (ApiError, TransportError) as error:
            self.report.audit_error = f"The service's bill could not be read: {error.message}"

    def _print_outcome(self, outcome: Outcome) -> None:
        if not self._options.as_json:
            return
        try:
            sys.stdout.write(json.dumps(row(outcome, self._options.folder)) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            close_output(sys.stdout)


@contextmanager
def explained(board: Board, kling: KlingSession, options: SessionOptions) -> Iterator[None]:
    """Show during the block why jobs wait. The display outlives the session, whose figures end with it."""
    board.waiting_reason = lambda: waiting_note(kling, board, forget_after=options.forget_after)
    try:
        yield
    finally:
        board.waiting_reason = str


def waiting_note(kling: KlingSession, board: Board, *, forget_after: float) -> str:
    """Return why jobs wait, if the rate limit or predictions that do not end hold them back; else an empty string.

    Args:
        kling: The session, open.
        board: Counters of the run.
        forget_after: Seconds after which a prediction that has not ended frees its slot.
    """
    figures = kling.statistics()
    # Of those that no job waits for any more.
    held = figures.running - len(board.running) + board.saving
    if held > 0 and figures.waiting_for_slot and figures.running >= figures.slots:
        waiting = plural(figures.waiting_for_slot, "job waits", lambda _: "jobs wait")
        return (
            f"{waiting} for a slot: {held} of {figures.slots} are held by predictions past their deadline, each until "
            f"{format_duration(forget_after)} after its start (--forget-after)"
        )
    if figures.waiting_for_rate:
        return f"waiting for the rate limit: {plural(kling.level.starts, 'start')} per {kling.level.per:g} s"
    return ""
