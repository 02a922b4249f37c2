"""Consoles, tables, formatted values and errors, shared by all commands."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, Literal

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kling_async._core.text import one_line, safe_lines
from kling_async._log import log
from kling_async.errors import InvalidJobError, KlingError, ManifestError, Spent, group_problems
from kling_async.progress._words import format_duration, format_size, format_usd, has_cursor, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import ConsoleOptions, RenderableType

    from kling_async.errors import ProblemGroup

__all__ = [
    "bypass_proxy_for_loopback",
    "format_duration",
    "format_size",
    "format_usd",
    "has_cursor",
    "make_console",
    "new_table",
    "plural",
    "print_error",
    "print_panel",
    "print_text",
    "print_traceback",
    "problem_line",
    "route_logs",
]

Justify = Literal["left", "right"]

_PIPE_WIDTH: Final = 200
"""Columns assumed for a pipe or a file, so that no table cell is cut."""
_MAX_GROUPS_SHOWN: Final = 50


class _Console(Console):
    """Prints text as it is, without markup and emoji codes, and no control characters but its own and line feeds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render an object into segments, whose texts are safe."""
        for segment in super().render(renderable, options):
            safe = segment.control or segment.text.isprintable()
            yield segment if safe else Segment(safe_lines(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Interrupt the command whose output nobody reads; rich ends the process at once, in whatever task it is."""
        from .interrupts import close_output  # noqa: PLC0415 -- it loads asyncio, and `--help` does not need it

        self.quiet = True
        if not close_output(self.file):
            super().on_broken_pipe()


def make_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal; without a terminal, a wide one without colours."""
    made = _Console(stderr=stderr)
    return made if has_cursor(made) else _Console(stderr=stderr, width=_PIPE_WIDTH, no_color=True)


def print_text(console: Console, text: Text | str) -> None:
    """Print a sentence: wrapped between words in a terminal, on one line in a pipe. Names in it have no line breaks."""
    text = Text(text) if isinstance(text, str) else text
    text.plain = one_line(text.plain)
    console.print(text, soft_wrap=not has_cursor(console))


def new_table(console: Console, *columns: str) -> Table:
    """Return an empty table: ruled in a terminal, bare columns in a pipe.

    Args:
        console: The console that will print it.
        columns: Names of the columns; a leading `>` aligns the column to the right.
    """
    terminal = has_cursor(console)
    made = Table(
        box=box.SIMPLE_HEAD if terminal else None,
        header_style="bold",
        pad_edge=terminal,
        padding=(0, 1, 0, 0) if terminal else (0, 1),
        expand=False,
    )
    for column in columns:
        justify: Justify = "right" if column.startswith(">") else "left"
        made.add_column(column.removeprefix(">"), justify=justify, no_wrap=not terminal, overflow="fold")
    return made


def print_panel(console: Console, title: str, lines: Iterable[RenderableType], style: str = "cyan") -> None:
    """Print lines that belong together: framed in a terminal, below a title in a pipe."""
    body = Group(*lines)
    if has_cursor(console):
        heading = Text(title, f"bold {style}")
        console.print(Panel(body, title=heading, title_align="left", border_style=style, padding=(0, 1)))
    else:
        console.print(f"\n{title}")
        for line in body.renderables:
            console.print(line, soft_wrap=True)


def print_error(error: Exception) -> None:
    """Print an error on stderr: what happened, whether money was spent, what to do next."""
    console = make_console(stderr=True)
    if isinstance(error, ManifestError):
        _print_problems(console, error)
    elif isinstance(error, KlingError):
        print_panel(console, f"error: {_title(error)}", _error_lines(error), "red")
    elif isinstance(error, (OSError, ImportError)):
        reason, file = getattr(error, "strerror", None), getattr(error, "filename", None)
        text = f"{file}: {reason}" if reason and file else str(error) or type(error).__name__
        print_panel(console, "error", [Text(one_line(_without_period(text)))], "red")
    else:
        lines = [Text(one_line(f"{type(error).__name__}: {_without_period(str(error))}"))]
        lines.append(Text("this is a bug in kling-async; kling-async --debug ... prints the traceback", "green"))
        print_panel(console, "error: unexpected", lines, "red")


def _error_lines(error: KlingError) -> list[Text]:
    subjects = [(name, value) for name, value in (("job", error.key), ("prediction", error.prediction_id)) if value]
    problems = error.problems if isinstance(error, InvalidJobError) else (error.message,)
    lines = [Text(one_line(_without_period(str(problem)))) for problem in problems]
    lines += [Text(f"{name} {one_line(value)}", "dim") for name, value in subjects]
    # Where no request was sent it is obvious that nothing was spent.
    if error.spent is not Spent.NO or error.account_wide:
        lines.append(Text(_without_period(error.spent.value), "yellow"))
    if error.advice:
        lines.append(Text(one_line(_without_period(error.advice)), "green"))
    return lines


def _print_problems(console: Console, error: ManifestError) -> None:
    """Print one line per group of problems; a single one as `file:line field: message`, which editors can jump to."""
    problems = error.problems
    groups = group_problems(problems)
    for group in groups[:_MAX_GROUPS_SHOWN]:
        console.print(problem_line(group), soft_wrap=True)
    shown = "" if len(groups) <= _MAX_GROUPS_SHOWN else f", the first {_MAX_GROUPS_SHOWN} kinds shown"
    print_text(console, Text(f"{plural(len(problems), 'problem')} in the list{shown}; nothing was sent.", "red"))
    every = "; run and estimate list every problem with --json" if len(groups) < len(problems) else ""
    print_text(console, Text(one_line(error.advice + every), "green"))


def problem_line(group: ProblemGroup) -> Text:
    """Return a group of problems on one line, with the file and the field set off."""
    first = group.problems[0]
    line = Text(one_line(str(group)))
    where = f"{first.file}:{first.line}" if first.line and len(group.problems) == 1 else first.file
    if line.plain.startswith(where):
        line.stylize("cyan", 0, len(where))
        line.stylize("bold", len(where), len(where) + len(first.path) + 1)
    return line


def _without_period(text: str) -> str:
    return text.strip().rstrip(".")


def _title(error: KlingError) -> str:
    """Return the class name in words: `BudgetExceededError` is `budget exceeded`."""
    name = type(error).__name__.removesuffix("Error")
    return "".join(f" {char.lower()}" if char.isupper() else char for char in name).strip()


def print_traceback(error: BaseException) -> None:
    """Print the traceback of an error on stderr, without control characters of what its messages quote."""
    sys.stderr.write(safe_lines("".join(traceback.format_exception(error))))


class _SafeFormatter(logging.Formatter):
    """Formats records without control characters; only the traceback of an exception has lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return safe_lines(super().format(record))


class _ConsoleHandler(logging.Handler):
    """Prints log records above a live display, which would otherwise overwrite them."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = Text(one_line(f"{record.levelname.lower()}: {record.getMessage()}"), "red")
        self._console.print(text, soft_wrap=True)


def route_logs(console: Console, *, debug: bool) -> None:
    """Send the SDK's log to the console: errors only, or with `debug` every record to stderr.

    Records below the level of an error are omitted because the display shows the same facts as events.
    """
    handler = logging.StreamHandler(sys.stderr) if debug else _ConsoleHandler(console)
    handler.setFormatter(_SafeFormatter())
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if debug else logging.ERROR)
    log.propagate = False


def bypass_proxy_for_loopback() -> None:
    """Exempt loopback from the environment's proxy, so that an emulator in this process can be reached."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
