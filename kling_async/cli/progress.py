"""Progress of a run: counters updated by session events, and the display that shows them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
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
from kling_async._core.endings import state_of
from kling_async._core.job import Job
from kling_async._core.prediction import Status
from kling_async._core.states import State
from kling_async._core.text import one_line
from kling_async.errors import PredictionTimeoutError, SkippedError

from .output import format_duration, format_size, format_usd, has_cursor, plural

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import Console, RenderableType

    from kling_async._core.budget import Budget
    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Outcome
    from kling_async.errors import KlingError
    from kling_async.events import Event, Observer

_REFRESH_INTERVAL_S: Final = 0.1
_MAX_REFRESH_SHARE: Final = 0.1
"""Share of the time that drawing may take: a tall display is drawn less often."""
_RESERVED_LINES: Final = 9
"""Terminal lines that are not available for running jobs."""
_RATE_WINDOW_JOBS: Final = 300
_MIN_JOBS_FOR_RATE: Final = 10
_MAX_KEY_COLUMNS: Final = 34


@attrs.define(eq=False)
class RunningJob:
    """An accepted job without an outcome.

    Attributes:
        key: Key of the job.
        job: The job.
        provider: Name of the provider.
        prediction_id: Id of the paid prediction.
        since: Time of acceptance, in seconds since the epoch on the session's clock.
        state: The service's word; "saving" during the download.
    """

    key: str
    job: Job
    provider: str
    prediction_id: str
    since: float
    state: str


class Board:
    """Counters of a run, and its running jobs. Memory follows the number of running jobs.

    Args:
        total: Number of jobs; None if it is unknown.
        budget: Limit of the cost; None if there is none.

    Attributes:
        waiting_reason: Returns why waiting jobs are not sent, if no event says so; else an empty string.
        draining: Nothing more is sent.
        running: Accepted jobs without an outcome, by batch and key.
        endings: Number of jobs whose outcome is an error, by the state in which it leaves them.
        unsaved: Ids and keys of paid predictions that may have a video which is not saved.
        uncertain: Batches and keys of jobs whose acceptance is unknown.
    """

    def __init__(self, total: int | None = None, budget: Budget | None = None) -> None:
        self.total = total
        self.budget = budget
        self.admitted = self.accepted = self.done = 0
        self.endings: Counter[State] = Counter()
        self.spent = Decimal(0)
        self.unpriced = 0
        self.reused = 0
        self.note = ""
        self.waiting_reason: Callable[[], str] = str
        self.draining = False
        self.running: dict[tuple[str, str], RunningJob] = {}
        self.unsaved: dict[str, str] = {}
        self.uncertain: set[tuple[str, str]] = set()
        self._settled_unaccepted = 0
        self._shown_account_error: KlingError | None = None
        self._end_times: deque[float] = deque(maxlen=_RATE_WINDOW_JOBS)

    @property
    def waiting(self) -> int:
        """Number of jobs that were not accepted and are still to be sent, by this run or the next."""
        # Without a total, a job that could not be sent is admitted again.
        begun = self.total or self.admitted - self.endings[State.PENDING]
        return begun - self.accepted - self._settled_unaccepted

    @property
    def saving(self) -> int:
        """Number of jobs whose videos are being downloaded."""
        return sum(job.state == "saving" for job in self.running.values())

    @property
    def ended(self) -> int:
        """Number of jobs with an outcome, but for those that are still to be sent."""
        return self.done + self.endings.total() - self.endings[State.PENDING]

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session.

        Args:
            provider: Name of the session's provider, for list prices.
        """

        def observe(event: Event) -> None:
            self.update(event, provider)

        return observe

    def update(self, event: Event, provider: str) -> None:
        """Count an event."""
        name = (event.batch, event.key)
        match event:
            case events.Admitted():
                self.admitted += 1
            case events.Accepted(job=job, prediction=prediction):
                # Counted once per job: a retried job is accepted, and paid for, more than once.
                self.accepted += name not in self.running
                self.uncertain.discard(name)
                self.note = ""
                price = job.price(provider).usd
                self.spent += price or 0
                self.unpriced += price is None
                self.running[name] = RunningJob(
                    event.key, job, provider, prediction.id, event.at, prediction.raw_status
                )
                self.unsaved[prediction.id] = event.key
            case events.Refused(error=error, again=again) if again is not None:
                self.note = f"not accepted yet, next attempt in {again:.0f} s: {error.message}"
            case events.Uncertain():
                self.uncertain.add(name)
            case events.Changed(prediction=prediction):
                running = self.running.get(name)
                if running is not None:
                    running.state = "saving" if prediction.status is Status.COMPLETED else prediction.raw_status
                if prediction.status.ended and prediction.status is not Status.COMPLETED:
                    self.unsaved.pop(prediction.id, None)
            case events.Retrying(again=again):
                self.note = f"{event.key} failed at the service; sent and paid for again in {again:.0f} s"
            case events.Finished(outcome=outcome):
                self._finish(name, outcome, event.at)

    def _finish(self, name: tuple[str, str], outcome: Outcome, at: float) -> None:
        accepted = self.running.pop(name, None) is not None
        state = state_of(outcome)
        if state is State.UNCERTAIN:
            self.uncertain.add(name)
        else:
            self.uncertain.discard(name)
        if state is not State.PENDING:
            self._settled_unaccepted += not accepted
            self._end_times.append(at)
        if not outcome.ok:
            self.endings[state] += 1
            return
        self.done += 1
        self.reused += outcome.reused
        if outcome.prediction is not None:
            self.unsaved.pop(outcome.prediction.id, None)

    def rate(self, now: float) -> float | None:
        """Return how many jobs end per second, from the latest ends; None if they are too few.

        Args:
            now: Seconds since the epoch, on the session's clock.
        """
        if len(self._end_times) < _MIN_JOBS_FOR_RATE or now <= self._end_times[0]:
            return None
        return len(self._end_times) / (now - self._end_times[0])

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until all jobs have ended at the current rate; None if it is unknown.

        Args:
            now: Seconds since the epoch, on the session's clock.
        """
        rate = self.rate(now)
        return None if rate is None or not self.total else max(0, self.total - self.ended) / rate

    def is_repeat(self, event: Event) -> bool:
        """Return whether the event ends a job for a reason that was shown for another one: skipped, or account-wide."""
        if not isinstance(event, events.Finished) or event.outcome.error is None:
            return False
        error = event.outcome.error
        if not error.account_wide:
            return isinstance(error, SkippedError)
        self._shown_account_error = self._shown_account_error or error
        return self._shown_account_error is not error


class Progress(Protocol):
    """A display: entered, then updated through its observers."""

    board: Board

    async def __aenter__(self) -> Self:
        """Start the display."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the display; later output is printed below it."""
        ...

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session of a provider."""
        ...


def progress(
    console: Console, clock: Clock, *, total: int | None = None, budget: Budget | None = None, quiet: bool = False
) -> Progress:
    """Return a display: live in a terminal, one line per event elsewhere, or none.

    Args:
        console: The console to print to.
        clock: Clock of the session.
        total: Number of jobs; None if it is unknown.
        budget: Limit of the cost; None if there is none.
        quiet: Count without showing anything.
    """
    board = Board(total, budget)
    if quiet:
        return QuietProgress(board)
    return LiveProgress(board, console, clock) if has_cursor(console) else PlainProgress(board, console, clock)


class QuietProgress:
    """Counts without showing anything."""

    def __init__(self, board: Board) -> None:
        self.board = board

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session of a provider."""
        return self.board.observer(provider)


class PlainProgress(QuietProgress):
    """Prints one line per event, for pipes, files and logs."""

    def __init__(self, board: Board, console: Console, clock: Clock) -> None:
        super().__init__(board)
        self._console = console
        self._start = clock.now()

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session of a provider."""

        def observe(event: Event) -> None:
            self.board.update(event, provider)
            words = None if self.board.is_repeat(event) else _describe(event, provider)
            if words is not None:
                word, rest = words
                if isinstance(event, events.Accepted) and self.board.budget is not None:
                    rest += f", {format_budget(self.board.budget)}"
                line = f"{event.at - self._start:8.1f} s  {word:<10}  {event.key}  {rest}"
                self._console.print(one_line(line.rstrip()), markup=False, soft_wrap=True)

        return observe


def _describe(event: Event, provider: str) -> tuple[str, str] | None:
    """Return a word for an event and its details; None if it is not shown."""
    match event:
        case events.Accepted(job=job, prediction=prediction):
            price = job.price(provider)
            return (
                "accepted",
                f"{model_name(job, provider)} {job.duration} s, price {price}, prediction {prediction.id}",
            )
        case events.Refused(error=error, again=again) if again is not None:
            return "again", f"in {again:.0f} s: {error.message}"
        case events.Uncertain(error=error):
            return "uncertain", error.message
        case events.Changed(prediction=prediction):
            return prediction.raw_status, ""
        case events.Retrying(prediction=prediction, again=again):
            reason = prediction.error or "failed at the service"
            return "again", f"in {again:.0f} s, and paid for again: {reason}"
        case events.Saved(file=file):
            return "saved", f"{file} ({format_size(file.bytes)})"
        case events.Finished(outcome=outcome) if outcome.error is not None:
            state = state_of(outcome)
            return state.label.upper() if state.unsuccessful else state.label, _reason(outcome.error)
        case _:
            return None


def _reason(error: KlingError) -> str:
    """Return the message of an error; of a prediction past its deadline, that others wait for its slot."""
    slot = "; it keeps its slot until it ends" if isinstance(error, PredictionTimeoutError) else ""
    return error.message + slot


class LiveProgress(QuietProgress):
    """Shows a bar, the counters, the cost, and a line for every running job."""

    def __init__(self, board: Board, console: Console, clock: Clock) -> None:
        super().__init__(board)
        self._console = console
        self._clock = clock
        self._start = clock.now()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self._render)
        self._refreshing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._live.start(refresh=True)
        # Drawn by the event loop instead of a thread, so that the counters do not change during drawing.
        self._refreshing = asyncio.create_task(self._refresh_forever(), name="kling-display")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        self._live.stop()

    async def _refresh_forever(self) -> None:
        while True:
            begun = time.perf_counter()
            self._live.refresh()
            drawing = time.perf_counter() - begun
            await asyncio.sleep(max(_REFRESH_INTERVAL_S, drawing * (1 / _MAX_REFRESH_SHARE - 1)))

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session of a provider."""

        def observe(event: Event) -> None:
            self.board.update(event, provider)
            if isinstance(event, events.Finished) and event.outcome.error and not self.board.is_repeat(event):
                # Printed above the display, where it stays.
                text = Text.assemble(("✗ ", "red"), (one_line(event.key), "bold"), "  ")
                self._console.print(text.append(one_line(_reason(event.outcome.error)), "red"))

        return observe

    def _render(self) -> RenderableType:
        board = self.board
        parts: list[RenderableType] = [self._render_bar(), self._render_counts(), self._render_pace()]
        room = max(3, self._console.height - _RESERVED_LINES)
        jobs = list(board.running.values())
        if jobs:
            # Those nearest to their end first: downloads, then the longest running.
            jobs.sort(key=lambda job: (job.state != "saving", job.since))
            parts += [Text(), self._render_jobs(jobs[:room])]
        if len(jobs) > room:
            parts.append(Text(f"    and {len(jobs) - room} more", "dim"))
        note = board.note or board.waiting_reason()
        if note:
            parts += [Text(), Text(one_line(note), "yellow", no_wrap=True, overflow="ellipsis")]
        return Group(*parts)

    def _render_bar(self) -> Table:
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
        grid.add_row(bar, Text(count, "bold"), Text(format_duration(self._clock.now() - self._start), "dim"))
        return grid

    def _render_counts(self) -> Text:
        board = self.board
        saving, endings = board.saving, board.endings
        counts = [
            ("○", board.waiting, "not sent" if board.draining else "waiting", "dim"),
            ("●", len(board.running) - saving + endings[State.SUBMITTED], "running", "cyan"),
            ("↓", saving, "saving", "blue"),
            ("✓", board.done, "done", "green"),
            ("✗", endings[State.FAILED], "failed", "red"),
        ]
        rare = (
            ("✗", endings[State.REJECTED], State.REJECTED.label, "red"),
            ("✗", endings[State.EXPIRED], State.EXPIRED.label, "red"),
            ("-", endings[State.SKIPPED], State.SKIPPED.label, "yellow"),
            ("?", len(board.uncertain), State.UNCERTAIN.label, "yellow"),
            ("!", endings[State.COMPLETED], State.COMPLETED.label, "yellow"),
        )
        counts += [each for each in rare if each[1]]
        separator = Text("   ", no_wrap=True, overflow="ellipsis")
        return separator.join(
            Text(f"{mark} {number} {word}", style if number else "dim") for mark, number, word, style in counts
        )

    def _render_pace(self) -> Table:
        """Return the rate, the time left and the cost."""
        board, now = self.board, self._clock.now()
        rate, left = board.rate(now), board.seconds_left(now)
        pace = "" if rate is None else f"{rate * 60:.0f} a minute"
        if left:
            pace += f", about {format_duration(left)} left"
        if board.draining:
            pace = "draining, nothing more is sent"
        money = Text(
            f"{format_usd(board.spent)} spent" if board.budget is None else format_budget(board.budget), "bold"
        )
        if board.unpriced and board.budget is None:  # a budget contains the service's price of those
            money.append(f" + {plural(board.unpriced, 'job')} of unknown price", "dim")
        grid = Table.grid(expand=True, padding=(0, 2))
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_column(justify="right", no_wrap=True)
        grid.add_row(Text(pace, "dim"), money)
        return grid

    def _render_jobs(self, jobs: list[RunningJob]) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column()
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=_MAX_KEY_COLUMNS)
        for justify in ("left", "right", "left", "right"):
            grid.add_column(justify=justify, no_wrap=True)
        now = self._clock.now()
        for job in jobs:
            saving = job.state == "saving"
            grid.add_row(
                Text("↓", "blue") if saving else self._spinner,
                Text(one_line(job.key), "bold"),
                Text(model_name(job.job, job.provider)),
                Text(f"{job.job.duration} s"),
                Text(one_line(job.state), "blue" if saving else "cyan"),
                Text(format_duration(now - job.since), "dim"),
            )
        return grid


def model_name(job: Job, provider: str) -> str:
    """Return a job's model, with the provider unless it is WaveSpeed."""
    return job.row.name if provider == "wavespeed" else f"{job.row.name} at {provider}"


def format_budget(budget: Budget) -> str:
    """Format the used part of a budget: `$1.35 of $5.00 spent`."""
    held = f", {format_usd(budget.held)} in doubt" if budget.held else ""
    return f"{format_usd(budget.spent)} of {format_usd(budget.usd)} spent{held}"
