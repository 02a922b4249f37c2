"""The display of a run. It is fed by the events of sessions, and told what holds a session back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Protocol, Self

import attrs
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kling_async import events
from kling_async._core.job import Job
from kling_async._core.prediction import Status
from kling_async.errors import SkippedError

from .output import clean, pretty, size, span, usd

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import Console, RenderableType

    from kling_async._core.budget import Budget
    from kling_async._core.clock import Clock
    from kling_async.errors import KlingError
    from kling_async.events import Event, Observer

_REFRESH_SECONDS: Final = 0.1
_SPARE_LINES: Final = 9
_RECENT: Final = 300
_ENOUGH: Final = 10
_KEY_WIDTH: Final = 34


@attrs.define(eq=False)
class Line:
    """A job that is accepted and has no outcome yet.

    Attributes:
        key: Its name.
        job: What is made.
        provider: Who makes it.
        prediction_id: The paid id.
        since: When it was accepted, on the session's clock.
        state: The service's word; "saving" when the video is being downloaded.
    """

    key: str
    job: Job
    provider: str
    prediction_id: str
    since: float
    state: str


class Board:
    """What events have told: how many jobs are where, what was spent, and which paid jobs have no video yet.

    It holds the jobs that run, and no others.

    Args:
        total: How many jobs there will be, if that is known.
        budget: What they may cost, if that is limited.

    Attributes:
        held: Says what holds the waiting jobs back, if that is no event; empty when nothing does.
        draining: Whether nothing more is sent: what is let go then has not been begun.
        lines: The accepted jobs without an outcome, by batch and key.
        unsaved: The paid predictions whose outcome is no video on the disk though there may be one: id to key.
        uncertain: Keys of jobs of which it is not known whether they were accepted.
    """

    def __init__(self, total: int | None = None, budget: Budget | None = None) -> None:
        self.total = total
        self.budget = budget
        self.admitted = self.accepted = self.done = self.failed = 0
        self.refused_before_acceptance = 0
        self.spent = Decimal(0)
        self.unpriced = 0
        self.note = ""
        self.held: Callable[[], str] = str
        self.draining = False
        self.lines: dict[tuple[str, str], Line] = {}
        self.unsaved: dict[str, str] = {}
        self.uncertain: list[str] = []
        self._told: KlingError | None = None
        self._ends: deque[float] = deque(maxlen=_RECENT)

    @property
    def waiting(self) -> int:
        """Jobs that were taken from the input and not accepted yet."""
        return self.admitted - self.accepted - self.refused_before_acceptance

    @property
    def saving(self) -> int:
        """Jobs whose videos are being downloaded."""
        return sum(line.state == "saving" for line in self.lines.values())

    @property
    def ended(self) -> int:
        """Jobs that have an outcome."""
        return self.done + self.failed

    def observer(self, provider: str) -> Observer:
        """What to give to a session as an observer.

        Args:
            provider: Name of the session's provider, for its prices.
        """

        def observe(event: Event) -> None:
            self.take(event, provider)

        return observe

    def take(self, event: Event, provider: str) -> None:
        """Learn from an event."""
        name = (event.batch, event.key)
        match event:
            case events.Admitted():
                self.admitted += 1
            case events.Accepted(job=job, prediction=prediction):
                # Once per job: one that failed may be accepted, and paid for, again.
                self.accepted += name not in self.lines
                self.note = ""
                price = job.price(provider).usd
                self.spent += price or 0
                self.unpriced += price is None
                self.lines[name] = Line(event.key, job, provider, prediction.id, event.at, prediction.raw_status)
                self.unsaved[prediction.id] = event.key
            case events.Refused(error=error, again=again) if again is not None:
                self.note = f"not accepted yet, again in {again:.0f} s: {error.message}"
            case events.Uncertain():
                self.uncertain.append(event.key)
            case events.Changed(prediction=prediction):
                line = self.lines.get(name)
                if line is not None:
                    line.state = "saving" if prediction.status is Status.COMPLETED else prediction.raw_status
                if prediction.status.ended and prediction.status is not Status.COMPLETED:
                    self.unsaved.pop(prediction.id, None)
            case events.Retrying(again=again):
                self.note = f"{event.key} failed at the service, paid for again in {again:.0f} s"
            case events.Finished(outcome=outcome) if self.draining and isinstance(outcome.error, SkippedError):
                self.admitted -= 1
            case events.Finished(outcome=outcome):
                self.refused_before_acceptance += self.lines.pop(name, None) is None
                self.done += outcome.ok
                self.failed += not outcome.ok
                self._ends.append(event.at)
                if outcome.ok and outcome.prediction is not None:
                    self.unsaved.pop(outcome.prediction.id, None)

    def rate(self, now: float) -> float | None:
        """Jobs that end per second, by the latest of them; None as long as they are too few to tell.

        Args:
            now: Seconds since the epoch, on the session's clock.
        """
        if len(self._ends) < _ENOUGH or now <= self._ends[0]:
            return None
        return len(self._ends) / (now - self._ends[0])

    def left(self, now: float) -> float | None:
        """Seconds until all have ended if they go on like that; None when that cannot be told.

        Args:
            now: Seconds since the epoch, on the session's clock.
        """
        rate = self.rate(now)
        return None if rate is None or not self.total else max(0, self.total - self.ended) / rate

    def repeats(self, event: Event) -> bool:
        """Whether the event says of one more job what concerns the whole account and was said of another."""
        if not isinstance(event, events.Finished) or event.outcome.error is None:
            return False
        error = event.outcome.error
        if not error.account_wide:
            return isinstance(error, SkippedError)
        self._told = self._told or error
        return self._told is not error


class Progress(Protocol):
    """A display: entered, then fed through the observers that it hands out."""

    board: Board

    async def __aenter__(self) -> Self:
        """Begin."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End; what is printed from now on comes after the display."""
        ...

    def observer(self, provider: str) -> Observer:
        """What to give to a session of that provider as an observer."""
        ...


def progress(
    to: Console, clock: Clock, *, total: int | None = None, budget: Budget | None = None, quiet: bool = False
) -> Progress:
    """The display that fits: live in a terminal, one line per event elsewhere, or none.

    Args:
        to: Where to.
        clock: The session's clock: times are those of the service.
        total: How many jobs there will be.
        budget: What they may cost.
        quiet: Whether only to keep count.
    """
    board = Board(total, budget)
    if quiet:
        return QuietProgress(board)
    return LiveProgress(board, to, clock) if pretty(to) else PlainProgress(board, to, clock)


class QuietProgress:
    """Keeps count and shows nothing."""

    def __init__(self, board: Board) -> None:
        self.board = board

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def observer(self, provider: str) -> Observer:
        """What to give to a session of that provider as an observer."""
        return self.board.observer(provider)


class PlainProgress(QuietProgress):
    """One line per event, for pipes, files and logs."""

    def __init__(self, board: Board, to: Console, clock: Clock) -> None:
        super().__init__(board)
        self._to = to
        self._start = clock.now()

    def observer(self, provider: str) -> Observer:
        """What to give to a session of that provider as an observer."""

        def observe(event: Event) -> None:
            self.board.take(event, provider)
            told = None if self.board.repeats(event) else _told(event, provider)
            if told is not None:
                word, rest = told
                if isinstance(event, events.Accepted) and self.board.budget is not None:
                    rest += f", {against(self.board.budget)}"
                line = f"{event.at - self._start:8.1f} s  {word:<10}  {clean(event.key)}  {clean(rest)}"
                self._to.print(line.rstrip(), markup=False, soft_wrap=True)

        return observe


def _told(event: Event, provider: str) -> tuple[str, str] | None:
    """An event in a word, and what there is to say of it."""
    match event:
        case events.Accepted(job=job, prediction=prediction):
            price = job.price(provider)
            return "accepted", f"{model_at(job, provider)} {job.duration} s, price {price}, prediction {prediction.id}"
        case events.Refused(error=error, again=again) if again is not None:
            return "again", f"in {again:.0f} s: {error.message}"
        case events.Uncertain(error=error):
            return "uncertain", error.message
        case events.Changed(prediction=prediction):
            return prediction.raw_status, ""
        case events.Retrying(prediction=prediction, again=again):
            return "again", f"in {again:.0f} s, and paid for again: {prediction.error or 'failed at the service'}"
        case events.Saved(file=file):
            return "saved", f"{file} ({size(file.bytes)})"
        case events.Finished(outcome=outcome) if outcome.error is not None:
            return "FAILED", outcome.error.message
        case _:
            return None


class LiveProgress(QuietProgress):
    """A bar, the counts, what was spent, and a line for every job that runs."""

    def __init__(self, board: Board, to: Console, clock: Clock) -> None:
        super().__init__(board)
        self._to = to
        self._clock = clock
        self._start = clock.now()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=to, auto_refresh=False, transient=True, get_renderable=self._picture)
        self._ticking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._live.start(refresh=True)
        # Drawn by the loop and not by a thread: what it shows changes only between two steps of the loop.
        self._ticking = asyncio.create_task(self._tick(), name="kling-display")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
        self._live.stop()

    async def _tick(self) -> None:
        while True:
            begun = time.perf_counter()
            self._live.refresh()
            # A tall picture is drawn less often: the display takes a tenth of the time at most.
            await asyncio.sleep(max(_REFRESH_SECONDS, 9 * (time.perf_counter() - begun)))

    def observer(self, provider: str) -> Observer:
        """What to give to a session of that provider as an observer."""

        def observe(event: Event) -> None:
            self.board.take(event, provider)
            if isinstance(event, events.Finished) and event.outcome.error and not self.board.repeats(event):
                # Above the display, where it stays.
                said = Text.assemble(("✗ ", "red"), (clean(event.key), "bold"), "  ")
                self._to.print(said.append(clean(event.outcome.error.message), "red"))

        return observe

    def _picture(self) -> RenderableType:
        board = self.board
        parts: list[RenderableType] = [self._bar(), self._counts(), self._pace()]
        room = max(3, self._to.height - _SPARE_LINES)
        lines = list(board.lines.values())
        if lines:
            # Those that are nearest to their end come first: they ran longest.
            lines.sort(key=lambda line: (line.state != "saving", line.since))
            parts += [Text(), self._running(lines[:room])]
        if len(lines) > room:
            parts.append(Text(f"    and {len(lines) - room} more", "dim"))
        note = board.note or board.held()
        if note:
            parts += [Text(), Text(clean(note), "yellow", no_wrap=True, overflow="ellipsis")]
        return Group(*parts)

    def _bar(self) -> Table:
        board = self.board
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        total = board.total or 0
        bar = ProgressBar(
            total=max(total, 1),
            completed=board.ended,
            pulse=not total,
            complete_style="cyan",
            finished_style="green",
        )
        count = f"{board.ended}/{total}" if total else f"{board.ended}"
        grid.add_row(bar, Text(count, "bold"), Text(span(self._clock.now() - self._start), "dim"))
        return grid

    def _counts(self) -> Text:
        board = self.board
        saving = board.saving
        waiting = max(board.waiting, (board.total or 0) - board.accepted - board.refused_before_acceptance)
        counts = (
            ("○", waiting, "not sent" if board.draining else "waiting", "dim"),
            ("●", len(board.lines) - saving, "running", "cyan"),
            ("↓", saving, "saving", "blue"),
            ("✓", board.done, "done", "green"),
            ("✗", board.failed, "failed", "red"),
        )
        said = Text("   ", no_wrap=True, overflow="ellipsis")
        return said.join(
            Text(f"{mark} {number} {word}", style if number else "dim") for mark, number, word, style in counts
        )

    def _pace(self) -> Table:
        """How fast it goes, how long it goes on like that, and what was spent."""
        board, now = self.board, self._clock.now()
        rate, left = board.rate(now), board.left(now)
        pace = "" if rate is None else f"{rate * 60:.0f} a minute"
        if left:
            pace += f", about {span(left)} left"
        if board.draining:
            pace = "draining, nothing more is sent"
        money = Text(f"{usd(board.spent)} spent" if board.budget is None else against(board.budget), "bold")
        if board.unpriced and board.budget is None:  # a budget has asked the service for those
            money.append(f" + {counted(board.unpriced, 'job')} of unknown price", "dim")
        grid = Table.grid(expand=True, padding=(0, 2))
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_column(justify="right", no_wrap=True)
        grid.add_row(Text(pace, "dim"), money)
        return grid

    def _running(self, lines: list[Line]) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column()
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=_KEY_WIDTH)
        for justify in ("left", "right", "left", "right"):
            grid.add_column(justify=justify, no_wrap=True)
        now = self._clock.now()
        for line in lines:
            saving = line.state == "saving"
            grid.add_row(
                Text("↓", "blue") if saving else self._spinner,
                Text(clean(line.key), "bold"),
                Text(model_at(line.job, line.provider)),
                Text(f"{line.job.duration} s"),
                Text(clean(line.state), "blue" if saving else "cyan"),
                Text(span(now - line.since), "dim"),
            )
        return grid


def model_at(job: Job, provider: str) -> str:
    """A job's model, and who runs it if that is not the usual one."""
    return job.row.name if provider == "wavespeed" else f"{job.row.name} at {provider}"


def against(budget: Budget) -> str:
    """What of a budget is gone: `$1.35 of $5.00 spent`."""
    held = f", {usd(budget.held)} in doubt" if budget.held else ""
    return f"{usd(budget.spent)} of {usd(budget.usd)} spent{held}"


def counted(number: int, word: str, many: Callable[[str], str] = lambda word: word + "s") -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {word if number == 1 else many(word)}"
