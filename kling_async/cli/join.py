"""`kling-async join`: clips become one film."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from kling_async._core.text import one_line
from kling_async.errors import StorageError
from kling_async.films import join as join_clips

from .exits import Exit
from .interrupts import interruptible, took_interrupt
from .output import format_size, has_cursor, make_console, plural, print_error, print_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kling_async.films import Film

    from .options import JoinOptions


def join(options: JoinOptions) -> Exit:
    """Join the clips and print where the film is."""
    return interruptible(lambda: _join(options))


async def _join(options: JoinOptions) -> Exit:
    console = make_console()
    try:
        with joining(f"joining {plural(len(options.clips), 'clip')}") as progress:
            film = await join_clips(
                options.clips,
                options.out,
                crossfade=options.crossfade,
                fit=options.fit,
                replace=options.replace,
                progress=progress,
            )
    except asyncio.CancelledError:
        took_interrupt()
        print_text(make_console(stderr=True), f"Interrupted: {one_line(str(options.out))} was not written.")
        return Exit.INTERRUPTED
    except StorageError as error:
        print_error(error)
        return Exit.NOTHING_DONE
    if options.as_json:
        sys.stdout.write(json.dumps(as_json(film), indent=2) + "\n")
        return Exit.WELL
    how = "encoded anew" if film.is_encoded else "copied without a new encoding"
    size = f"{film.seconds:.2f} seconds, {format_size(film.bytes)}"
    print_text(console, Text(f"{film.path}: {plural(film.clips, 'clip')}, {size}, {how}"))
    if film.path != options.out:
        print_text(console, Text(f"{options.out} has another content and was kept; --replace replaces it", "yellow"))
    return Exit.WELL


@contextlib.contextmanager
def joining(text: str) -> Iterator[Callable[[float], object] | None]:
    """Show a bar on stderr, if that is a terminal; yield what moves it.

    Args:
        text: Text before the bar.
    """
    console = make_console(stderr=True)
    if not has_cursor(console):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def as_json(film: Film) -> dict[str, object]:
    """Return a film as `--json` shows it."""
    return {
        "path": str(film.path),
        "clips": film.clips,
        "seconds": round(film.seconds, 6),
        "bytes": film.bytes,
        "sha256": film.sha256,
        "encoded": film.is_encoded,
    }
