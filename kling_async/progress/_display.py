"""Displays of a run: live in a terminal or a notebook, one line per event elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from typing import TYPE_CHECKING, Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kling_async import events
from kling_async._core.endings import state_of
from kling_async._core.picture_names import shown_name
from kling_async._core.states import State
from kling_async._core.text import one_line
from kling_async._session.batch import Batch, scene_of
from kling_async.errors import PredictionTimeoutError

from ._board import Board, RunningJob
from ._words import format_duration, format_size, format_usd, has_cursor, plural

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from IPython.display import DisplayHandle
    from rich.console import RenderableType

    from kling_async._core.budget import Budget
    from kling_async._core.clock import Clock
    from kling_async._core.job import Job
    from kling_async._core.prediction import Outcome
    from kling_async.errors import KlingError
    from kling_async.events import Event, Observer

_REFRESH_INTERVAL_S: Final = 0.1
_MAX_REFRESH_SHARE: Final = 0.1
"""Share of the time that drawing may take: a tall display is drawn less often."""
_RESERVED_LINES: Final = 9
"""Terminal lines that are not available for running jobs."""
_MAX_KEY_COLUMNS: Final = 34
_NOTEBOOK_COLUMNS: Final = 100
_NOTEBOOK_INTERVAL_S: Final = 0.5
"""Seconds between two pictures of a display in a notebook, which keeps each until the next."""


class Display(Protocol):
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


def new_display(
    console: Console,
    clock: Clock,
    *,
    total: int | None = None,
    budget: Budget | None = None,
    quiet: bool = False,
    keep: bool = False,
) -> Display:
    """Return a display: live in a terminal or a notebook, one line per event elsewhere, or none.

    Args:
        console: The console to print to.
        clock: Clock of the session.
        total: Number of jobs; None if it is unknown.
        budget: Limit of the cost; None if there is none.
        quiet: Count without showing anything.
        keep: Leave the last picture of a live display in the terminal.
    """
    board = Board(total, budget)
    if quiet:
        return QuietProgress(board)
    if console.is_jupyter:
        return NotebookProgress(board, console, clock)
    if has_cursor(console):
        return LiveProgress(board, console, clock, keep=keep)
    return PlainProgress(board, console, clock)


async def shown(batch: Batch, total: int | None, console: Console | None) -> AsyncGenerator[Outcome, None]:
    """Yield a batch's outcomes and show its progress: `kling_async.progress.progress`."""
    scene = scene_of(batch)
    console = console or Console(markup=False, emoji=False, highlight=False)
    display = new_display(console, scene.clock, total=total or scene.total, budget=scene.budget, keep=True)
    observer = display.observer(scene.provider)

    def observe(event: Event) -> None:
        if event.batch == batch.name:
            observer(event)

    scene.observers.add(observe)
    try:
        async with display:
            async for outcome in batch:
                yield outcome
    finally:
        scene.observers.remove(observe)


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
                name = self.board.name(event)
                name += f" ({event.key})" if name != event.key else ""
                line = f"{event.at - self._start:8.1f} s  {word:<10}  {name}  {rest}"
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

    _interval = _REFRESH_INTERVAL_S

    def __init__(self, board: Board, console: Console, clock: Clock, *, keep: bool = False) -> None:
        super().__init__(board)
        self._console = console
        self._clock = clock
        self._start = clock.now()
        self._spinner = Spinner("dots", style="cyan")
        self._live = self._new_screen(keep=keep)
        self._refreshing: asyncio.Task[None] | None = None

    def _new_screen(self, *, keep: bool) -> Live | _NotebookScreen:
        return Live(console=self._console, auto_refresh=False, transient=not keep, get_renderable=self._render)

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
            await asyncio.sleep(max(self._interval, drawing * (1 / _MAX_REFRESH_SHARE - 1)))

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session of a provider."""

        def observe(event: Event) -> None:
            self.board.update(event, provider)
            if isinstance(event, events.Finished) and event.outcome.error and not self.board.is_repeat(event):
                # Printed above the display, where it stays.
                text = Text.assemble(("✗ ", "red"), (one_line(self.board.name(event)), "bold"), "  ")
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
                Text(one_line(shown_name(job.key, job.job.image)), "bold"),
                Text(model_name(job.job, job.provider)),
                Text(f"{job.job.duration} s"),
                Text(one_line(job.state), "blue" if saving else "cyan"),
                Text(format_duration(now - job.since), "dim"),
            )
        return grid


class NotebookProgress(LiveProgress):
    """The live display in the output of a notebook's cell."""

    _interval = _NOTEBOOK_INTERVAL_S

    def _new_screen(self, *, keep: bool) -> _NotebookScreen:
        del keep  # a notebook keeps its output
        return _NotebookScreen(self._render)


class _NotebookScreen:
    """One output of a cell, replaced at each refresh; the part of rich's `Live` that a display uses.

    Rich's own needs ipywidgets, which a notebook does not keep.
    """

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self._render = render
        self._handle: DisplayHandle | None = None

    def start(self, *, refresh: bool) -> None:
        from IPython.display import DisplayHandle  # noqa: PLC0415 -- only in a notebook, where it is loaded

        self._handle = DisplayHandle()  # type: ignore[no-untyped-call]  # IPython's
        if refresh:
            self._handle.display(self._picture(), raw=True)  # type: ignore[no-untyped-call]  # IPython's

    def refresh(self) -> None:
        if self._handle is not None:
            self._handle.update(self._picture(), raw=True)  # type: ignore[no-untyped-call]  # IPython's

    def stop(self) -> None:
        self.refresh()

    def _picture(self) -> dict[str, str]:
        console = Console(file=io.StringIO(), record=True, width=_NOTEBOOK_COLUMNS, force_jupyter=False)
        console.print(self._render())
        text = console.export_text(clear=False)
        style = "white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace"
        html = console.export_html(inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>')
        return {"text/plain": text, "text/html": html}


def model_name(job: Job, provider: str) -> str:
    """Return a job's model, with the provider unless it is WaveSpeed."""
    return job.row.name if provider == "wavespeed" else f"{job.row.name} at {provider}"


def format_budget(budget: Budget) -> str:
    """Format the used part of a budget: `$1.35 of $5.00 spent`."""
    held = f", {format_usd(budget.held)} in doubt" if budget.held else ""
    return f"{format_usd(budget.spent)} of {format_usd(budget.usd)} spent{held}"
