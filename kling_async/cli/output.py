"""What all commands print with: consoles, tables, errors."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final, Literal

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kling_async.errors import InvalidJobError, KlingError, ManifestError, RowProblem, Spent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from rich.console import RenderableType

Justify = Literal["left", "right"]

_PIPE_WIDTH: Final = 200
_SHOWN_PROBLEMS: Final = 1000


def console(*, stderr: bool = False) -> Console:
    """Where to print: as wide as the terminal, or wide enough that nothing of a table is cut in a pipe or a file."""
    made = Console(stderr=stderr, highlight=False)
    return made if pretty(made) else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH, no_color=True)


def pretty(to: Console) -> bool:
    """Whether it is a terminal that can move its cursor."""
    return to.is_terminal and not to.is_dumb_terminal


def clean(text: str) -> str:
    """Text from a service or a file, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def usd(amount: Decimal | None) -> str:
    """An amount, or that it is not known."""
    return "unknown" if amount is None else f"${amount:.2f}"


def span(seconds: float) -> str:
    """A length of time: `0:07`, `12:30`, `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: int) -> str:
    """A number of bytes: `812 KB`, `3.4 MB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} KB"  # noqa: PLR2004 -- a million


def say(to: Console, text: Text | str) -> None:
    """A sentence: wrapped between words in a terminal, on one line in a pipe."""
    to.print(text, soft_wrap=not pretty(to), markup=False)


def table(to: Console, *columns: str) -> Table:
    """An empty table: ruled in a terminal, bare columns in a pipe.

    Args:
        to: Where it will be printed.
        columns: Names of the columns; a `>` before one aligns it to the right.
    """
    made = Table(
        box=box.SIMPLE_HEAD if pretty(to) else None,
        header_style="bold",
        pad_edge=pretty(to),
        padding=(0, 1, 0, 0) if pretty(to) else (0, 1),
        expand=False,
    )
    for column in columns:
        justify: Justify = "right" if column.startswith(">") else "left"
        made.add_column(column.removeprefix(">"), justify=justify, no_wrap=not pretty(to), overflow="fold")
    return made


def block(to: Console, title: str, lines: Iterable[RenderableType], style: str = "cyan") -> None:
    """Some lines that belong together: framed in a terminal, as they are in a pipe."""
    body = Group(*lines)
    if pretty(to):
        heading = Text(title, f"bold {style}")
        to.print(Panel(body, title=heading, title_align="left", border_style=style, padding=(0, 1)))
    else:
        # Apart from what came before, as a frame would be.
        to.print(f"\n{title}", markup=False)
        for line in body.renderables:
            to.print(line, soft_wrap=True)


def show_error(error: Exception) -> None:
    """Tell an error: what happened, whether it cost anything, what to do."""
    to = console(stderr=True)
    if isinstance(error, ManifestError):
        _show_problems(to, error.problems)
    elif isinstance(error, KlingError):
        about = [(name, value) for name, value in (("job", error.key), ("prediction", error.prediction_id)) if value]
        problems = error.problems if isinstance(error, InvalidJobError) else (error.message,)
        lines = [Text(clean(_bare(str(problem)))) for problem in problems]
        lines += [Text(f"{name} {clean(value)}", "dim") for name, value in about]
        # That nothing was spent goes without saying where nothing was sent.
        if error.spent is not Spent.NO or error.account_wide:
            lines.append(Text(_bare(error.spent.value), "yellow"))
        if error.advice:
            lines.append(Text(clean(_bare(error.advice)), "green"))
        block(to, f"error: {_words(type(error).__name__)}", lines, "red")
    elif not isinstance(error, (OSError, ImportError)):
        lines = [Text(clean(f"{type(error).__name__}: {_bare(str(error))}"))]
        lines.append(Text("this is a mistake in the program: kling-async --debug ... shows where", "green"))
        block(to, "error: unexpected", lines, "red")
    else:
        reason = getattr(error, "strerror", None)
        named = getattr(error, "filename", None)
        said = f"{named}: {reason}" if reason and named else str(error) or type(error).__name__
        block(to, "error", [Text(clean(_bare(said)))], "red")


def _show_problems(to: Console, problems: tuple[RowProblem, ...]) -> None:
    """One line each, as compilers print them, so that editors can jump to them."""
    for problem in problems[:_SHOWN_PROBLEMS]:
        line = Text(clean(str(problem)))
        where = f"{problem.file}:{problem.line}" if problem.line else problem.file
        line.stylize("cyan", 0, len(where))
        line.stylize("bold", len(where), len(where) + len(problem.path) + 1)
        to.print(line, soft_wrap=True)
    more = len(problems) - _SHOWN_PROBLEMS
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    shown = f" ({more} more are not shown)" if more > 0 else ""
    say(to, Text(f"{count} in the manifest{shown}; nothing was sent.", "red"))


def _bare(text: str) -> str:
    return text.strip().rstrip(".")


def _words(name: str) -> str:
    words = "".join(f" {char.lower()}" if char.isupper() else char for char in name.removesuffix("Error"))
    return words.strip()


class _ThroughConsole(logging.Handler):
    """Log records above a live display instead of through it."""

    def __init__(self, to: Console) -> None:
        super().__init__()
        self._to = to

    def emit(self, record: logging.LogRecord) -> None:
        self._to.print(Text(clean(f"{record.levelname.lower()}: {record.getMessage()}"), "red"), soft_wrap=True)


def route_logs(to: Console, *, debug: bool) -> None:
    """The SDK's log: errors above the display, and everything on stderr with `--debug`.

    What is logged below an error is an event too, and shown by the display.
    """
    log = logging.getLogger("kling_async")
    log.handlers[:] = [logging.StreamHandler(sys.stderr) if debug else _ThroughConsole(to)]
    log.setLevel(logging.DEBUG if debug else logging.ERROR)
    log.propagate = False


def reach_loopback_directly() -> None:
    """Keep a proxy of the environment out of the way to an emulator in this process."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
