"""One batch from its first submit to its end, with progress, results and a summary: `run` and `resume` are this."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
import attrs
import typer
from rich.text import Text

from kling_async._core.budget import Budget
from kling_async._session.batch import Batch
from kling_async._session.session import KlingSession
from kling_async.errors import (
    ApiError,
    KlingError,
    PriceUnknownError,
    SkippedError,
    TransportError,
    UnsupportedError,
)
from kling_async.results import Format, export

from .audit import Audit, audit
from .choices import LevelChoice
from .export import again_command, tell_left_out
from .interrupts import Exit, drains, took_interrupt
from .output import clean, pretty, say, show_error, span, table, usd
from .places import is_store, place, plain
from .plan import Plan, compared
from .progress import counted, progress
from .results import row, status, tell_command, tell_unsaved

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Outcome
    from kling_async.gallery import Gallery
    from kling_async.results import Exported

    from .ledgers import LedgerName
    from .progress import Progress

_FAILURES_SHOWN: Final = 20
_KEYS_SHOWN: Final = 3


@attrs.frozen(kw_only=True)
class BatchOptions(ABC):
    """What the user asked for, of everything that runs a batch; see the help of the commands."""

    out: str = attrs.field(converter=plain)
    results: Path | None = None
    no_results: bool = False
    fit: bool = False
    provider: str = "wavespeed"
    level: LevelChoice = LevelChoice.BRONZE
    max_in_flight: int | None = None
    deadline: float | None = None
    budget: str | None = None
    allow_estimate: bool = False
    retry_failed: int = 0
    audit: bool = True
    gallery: bool = False
    quiet: bool = False
    as_json: bool = False
    yes: bool = False
    debug: bool = False

    @property
    @abstractmethod
    def ledger_path(self) -> LedgerName:
        """The ledger."""

    @property
    @abstractmethod
    def home(self) -> Path:
        """The folder of what stays on this computer when the videos do not."""

    @property
    def folder(self) -> Path:
        """The folder of results and gallery: that of the videos, if they have one on this computer."""
        return self.home if is_store(self.out) else Path(self.out)

    @property
    def rehearsal(self) -> bool:
        """Whether an emulator in this process makes the videos."""
        return False

    @property
    def from_ledger(self) -> bool:
        """Whether the ledger has all jobs before the first is sent."""
        return False

    def session(self, **more: Any) -> KlingSession:
        """A session as asked for."""
        return KlingSession(
            provider=self.provider,
            level=self.level,
            max_in_flight=self.max_in_flight,
            ledger=self.ledger_path.made(),
            images="upload" if self.provider == "wavespeed" else "inline",
            fit=self.fit,
            retry_failed=self.retry_failed,
            **more,
        )

    def new_budget(self) -> Budget | None:
        """What the batch may cost.

        Raises:
            ConfigurationError: It is no amount.
            UnsupportedError: The provider tells no prices.
        """
        return budget_of(self.budget, self.provider, allow_estimate=self.allow_estimate)


def budget_of(usd: str | None, provider: str, *, allow_estimate: bool) -> Budget | None:
    """A budget as the user said it, if there is to be one.

    Raises:
        ConfigurationError: It is no amount.
        UnsupportedError: The provider tells no prices.
    """
    if usd is None:
        return None
    if provider == "gptproto":
        raise UnsupportedError(
            "gptproto tells no prices, so that no budget can be kept", advice="leave out --budget to run without"
        )
    return Budget(usd, allow_estimate=allow_estimate)


@attrs.frozen(kw_only=True)
class Work:
    """A batch to run.

    Attributes:
        name: Its name.
        total: How many jobs there are.
        plan: What may have to be paid for.
        budget: What it may cost.
        batch: Makes it, with an open session.
    """

    name: str
    total: int
    plan: Plan
    budget: Budget | None
    batch: Callable[[KlingSession], Batch]


def check_out(options: BatchOptions) -> None:
    """Make sure that videos can be saved there, as far as that is known beforehand.

    Raises:
        ConfigurationError: They cannot.
        OSError: A folder cannot be made.
    """
    place(options.out)
    options.folder.mkdir(parents=True, exist_ok=True)


def check_gallery(options: BatchOptions) -> None:
    """Make sure that a page can be made, if one is wanted.

    Raises:
        ConfigurationError: A package is missing.
    """
    if options.gallery:
        from kling_async.gallery.page import prepare  # noqa: PLC0415 -- a page is not wanted in every run

        prepare()


def tell_budget(to: Console, work: Work) -> None:
    """Say that a budget will not do, if it will not."""
    if work.budget is not None and work.plan.usd > work.budget.usd:
        said = f"The budget of {usd(work.budget.usd)} is less than that: when it is used up, nothing more is sent."
        say(to, Text(said, "yellow"))


def agreed(to: Console, options: BatchOptions) -> bool:
    """Whether money may be spent."""
    if options.yes or not sys.stdin.isatty() or not to.is_terminal:
        return True
    return typer.confirm("This costs real money. Go on?", err=options.as_json)


async def run_batch(
    to: Console, options: BatchOptions, work: Work, *, clock: Clock, more: dict[str, Any] | None = None
) -> Exit:
    """Run it and tell.

    Args:
        to: Where to.
        options: What the user asked for.
        work: The batch.
        clock: The session's clock.
        more: What else the session is made with.
    """
    display = progress(to, clock, total=work.total, budget=work.budget, quiet=options.quiet)
    observers = [display.observer(options.provider)]
    page = _page(options, work, clock)
    if page is not None:
        observers.append(page.observer(options.provider))
    session = options.session(observers=observers, clock=clock, **(more or {}))
    run = _Run(to, options, work, display, clock, page=page)
    try:
        await run.all(session)
    except asyncio.CancelledError:
        took_interrupt()
        run.interrupted = True
    except (KlingError, OSError) as error:
        if options.debug:
            raise
        run.trouble = error
    await run.export()
    run.tell_end(len(session.left_running))
    return run.exit()


def _page(options: BatchOptions, work: Work, clock: Clock) -> Gallery | None:
    if not options.gallery:
        return None
    from kling_async.gallery import Gallery  # noqa: PLC0415 -- a page is not wanted in every run

    return Gallery(options.folder / "gallery", title=work.name, total=work.total, clock=clock)


class _Run:
    """One run of a batch.

    Attributes:
        interrupted: Whether it was.
        trouble: What ended it before its end.
    """

    def __init__(
        self,
        to: Console,
        options: BatchOptions,
        work: Work,
        display: Progress,
        clock: Clock,
        *,
        page: Gallery | None,
    ) -> None:
        self.interrupted = False
        self.trouble: Exception | None = None
        self._to = to
        self._options = options
        self._work = work
        self._display = display
        self._board = display.board
        self._clock = clock
        self._page = page
        self._start = clock.monotonic()
        self._took = 0.0
        self._batch: Batch | None = None
        self._audit: Audit | None = None
        self._unaudited = ""
        self._exported: list[Exported] = []
        self._unexported = ""

    async def all(self, session: KlingSession) -> None:
        """From the opening of the session to its closing."""
        began = self._clock.now()
        async with self._shown(), self._display, session as kling:
            if self._work.budget is not None and self._options.audit:
                # What was given back since the last run is free to be spent again.
                await self._compare(kling, began)
            self._batch = self._work.batch(kling)
            self._board.held = lambda: _held(kling)
            with drains(self._drain):
                async with self._batch:
                    async for outcome in self._batch:
                        self._tell_outcome(outcome)
            self._took = self._clock.monotonic() - self._start
            if self._options.audit:
                self._board.note = "reading the service's bill"
                await self._compare(kling, began)

    def _drain(self) -> None:
        """Send nothing more, and end when what runs has ended."""
        if self._batch is None:  # pragma: no cover -- it is called while there is one
            return
        self.interrupted = self._board.draining = True
        self._board.note = ""
        self._batch.drain()
        running = len(self._board.lines)
        waited = f"{counted(running, 'running video')} {'is' if running == 1 else 'are'} waited for"
        say(self._to, Text(f"Draining: {waited}, nothing more is sent. Ctrl-C again stops now.", "yellow"))

    @asynccontextmanager
    async def _shown(self) -> AsyncGenerator[None, None]:
        """Serve the page while the block runs, and say where."""
        if self._page is None:
            yield
            return
        async with self._page:
            if not self._options.quiet:
                said = Text.assemble("Gallery: ", (self._page.url or "", "bold cyan"))
                self._to.print(said, soft_wrap=True)
            yield

    async def _compare(self, kling: KlingSession, since: float) -> None:
        try:
            self._audit = await audit(kling, self._options.ledger_path, self._work.name, since=since)
        except UnsupportedError:
            pass  # nothing is missing that could be had
        except (ApiError, TransportError) as error:
            self._unaudited = f"The service's bill could not be read: {error.message}"

    def _tell_outcome(self, outcome: Outcome) -> None:
        if self._options.as_json:
            sys.stdout.write(json.dumps(row(outcome, self._options.folder), ensure_ascii=False) + "\n")
            sys.stdout.flush()

    async def export(self) -> None:
        """Write the results, if they are wanted and there is anything."""
        options = self._options
        if options.no_results or not options.ledger_path.exists():
            return
        try:
            self._exported = await anyio.to_thread.run_sync(
                lambda: export(
                    options.ledger_path.where, options.results or options.folder, account=options.ledger_path.account
                )
            )
        except (KlingError, OSError) as error:
            self._unexported = f"The results could not be written: {error}"

    def exit(self) -> Exit:
        """What the exit status says."""
        board = self._board
        if self.interrupted:
            return Exit.INTERRUPTED
        if self.trouble is not None:
            return Exit.SOME_FAILED if board.accepted else Exit.BAD_INPUT
        if board.failed and not board.accepted and not board.done and not board.uncertain:
            return Exit.NOTHING_DONE
        return Exit.SOME_FAILED if board.failed else Exit.WELL

    def tell_end(self, running: int) -> None:
        """Say how it came out.

        Args:
            running: How many predictions still run.
        """
        to, options = self._to, self._options
        self._tell_failures()
        self._tell_head()
        if not options.quiet:
            self._tell_money()
            self._tell_files()
        if self._page is not None and self._page.index.exists():
            say(to, Text.assemble("Gallery: ", (str(self._page.index), "cyan")))
        tell_unsaved(
            to,
            self._board.unsaved,
            running,
            out=options.out,
            ledger=options.ledger_path,
            provider=options.provider,
            rehearsal=options.rehearsal,
        )
        if self._board.uncertain and not options.rehearsal:
            say(to, "What is known of the uncertain ones, and how to settle them by hand:")
            tell_command(to, shlex.join(["kling-async", "ledger", *options.ledger_path.words]))
        if self.interrupted and not options.rehearsal:
            said = "The same command goes on where this one stopped, and pays for nothing twice. So does"
            unread = 0 if self._batch is None else self._work.total - self._batch.statistics().read
            if unread and not options.from_ledger:
                said += f", without the {counted(unread, 'job')} that only the manifest has"
            say(to, f"{said}:")
            tell_command(to, self._resume_command())
        if self.trouble is not None:
            show_error(self.trouble)

    def _tell_files(self) -> None:
        to, options = self._to, self._options
        if self._unexported:
            say(to, Text(clean(self._unexported), "yellow"))
        folder = options.results or options.folder
        named = [made for made in self._exported if made.rows]
        if named:
            files = ", ".join(made.path.name for made in named)
            say(to, Text(f"Results: {folder} ({files})   Ledger: {options.ledger_path}", "dim"))
        else:
            say(to, Text(f"Ledger: {options.ledger_path}", "dim"))
        stopped = self.interrupted or self.trouble is not None or (self._batch is not None and self._batch.stopped)
        for made in named:
            # What was only not sent goes on with the same command.
            if made.format is not Format.ERRORS or stopped:
                continue
            said = "1 job has" if made.rows == 1 else f"{made.rows} jobs have"
            say(to, f"{said} no video, and none is on its way. This runs them again, and pays for them:")
            tell_left_out(to, made)
            tell_command(to, again_command(made, folder, options.out, self._same()))

    def _resume_command(self) -> str:
        options = self._options
        words = ["kling-async", "resume", *options.ledger_path.words, "--name", self._work.name, "--out", options.out]
        for name, value in (
            ("--provider", options.provider if options.provider != "wavespeed" else None),
            ("--level", options.level.value if options.level is not LevelChoice.BRONZE else None),
            ("--max-in-flight", options.max_in_flight),
            ("--budget", options.budget),
            ("--retry-failed", options.retry_failed or None),
        ):
            words += [] if value is None else [name, str(value)]
        return shlex.join(words)

    def _same(self) -> list[str]:
        """What of the options a run of the errors needs too."""
        options = self._options
        words = ["--emulator"] if options.rehearsal else []
        if not options.rehearsal and (is_store(options.out) or options.ledger_path.path != options.folder / "run.db"):
            words += options.ledger_path.option
        if options.provider != "wavespeed":
            words += ["--provider", options.provider]
        if options.level is not LevelChoice.BRONZE:
            words += ["--level", options.level.value]
        return words

    def _tell_failures(self) -> None:
        batch = self._batch
        failures = [] if batch is None else list(batch.failures)
        if not self._options.as_json:
            _table_of(self._to, [outcome for outcome in failures if not _of_account(outcome)])
        unpriced = any(isinstance(outcome.error, PriceUnknownError) for outcome in failures)
        if unpriced and not self._options.allow_estimate:
            say(self._to, "--allow-estimate takes the price of the list, where the service does not tell its own.")
        if batch is not None and batch.stopped is not None:
            show_error(batch.stopped)
            refused = sum(outcome.error is not None and outcome.error.account_wide for outcome in failures)
            never = batch.statistics().skipped + refused
            said = f"{counted(never, 'job')} never submitted, since every one would meet the same."
            self._to.print(Text(said, "red"))

    def _tell_head(self) -> None:
        board = self._board
        never = board.total - board.accepted - board.refused_before_acceptance if board.total else 0
        head = Text.assemble(("Interrupted. " if self.interrupted else "", "bold yellow"))
        head.append(
            f"{board.done} of {counted(board.total or board.admitted, 'video')}", "bold green" if board.done else ""
        )
        head.append(f" in {self._options.out}")
        if board.failed:
            head.append(f", {board.failed} failed", "red")
        if self.interrupted and never:
            head.append(f", {never} never sent", "yellow")
        if board.uncertain:
            head.append(f", {len(board.uncertain)} uncertain", "red")
        head.append(f", {usd(board.spent)} spent")
        if board.unpriced:
            head.append(f" and {counted(board.unpriced, 'job')} without a known price")
        head.append(f", {span(self._took or self._clock.monotonic() - self._start)}", "dim")
        say(self._to, head)

    def _tell_money(self) -> None:
        """The estimate, what became of it, and what the service says that it was."""
        plan, board, found = self._work.plan, self._board, self._audit
        if plan.jobs > plan.unpriced:
            said = Text(f"Money: {'≈ ' if plan.inferred else ''}{usd(plan.usd)} estimated, {usd(board.spent)} spent")
            if found is not None:
                said.append(f", {usd(found.refunded)} given back")
            if found is not None and found.refundable:
                said.append(f" and {usd(found.refundable)} still due for what failed", "yellow")
            if self._work.budget is not None:
                said.append(f"; {usd(self._work.budget.left)} of {usd(self._work.budget.usd)} left")
            say(self._to, said)
        if self._unaudited:
            say(self._to, Text(clean(self._unaudited), "yellow"))
        elif found is not None and found.predictions:
            say(self._to, _billed(found))


def _held(kling: KlingSession) -> str:
    """Why waiting jobs are not sent, when it is the rate."""
    if not kling.statistics().waiting_for_rate:
        return ""
    return f"waiting for the rate: {counted(kling.level.starts, 'start')} per {kling.level.per:g} s"


def _billed(found: Audit) -> Text:
    style = "" if found.difference else "dim"
    said = Text(f"The service's bill: {usd(found.deducted)} for ", style)
    said.append(f"{found.billed} of {counted(found.predictions, 'prediction')}, {compared(found.difference)}", style)
    if found.billed < found.predictions:
        said.append(f"; {found.predictions - found.billed} not on it yet", "yellow")
    return said


def _of_account(outcome: Outcome) -> bool:
    """Whether the failure is that of every job after it: it is told once."""
    return isinstance(outcome.error, SkippedError) or (outcome.error is not None and outcome.error.account_wide)


def _table_of(to: Console, failures: list[Outcome]) -> None:
    if not failures:
        return
    # What many share is said once: in a large run that is what one wants to see.
    alike: dict[tuple[str, str], list[str]] = {}
    for outcome in failures:
        error = outcome.error
        advice = f" ({error.advice})" if error is not None and error.advice and pretty(to) else ""
        said = clean((error.message if error is not None else "") + advice)
        alike.setdefault((status(outcome), said), []).append(clean(outcome.key))
    shown = table(to, "failed job", "how", "what was said")
    most = sorted(alike.items(), key=lambda item: -len(item[1]))
    for (how, said), keys in most[:_FAILURES_SHOWN]:
        more = len(keys) - _KEYS_SHOWN
        named = ", ".join(keys[:_KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")
        shown.add_row(named, Text(how, "red"), said)
    to.print(shown)
    if len(most) > _FAILURES_SHOWN:
        left = sum(len(keys) for _, keys in most[_FAILURES_SHOWN:])
        to.print(Text(f"and {left} more", "dim"))
