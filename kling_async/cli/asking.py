"""Questions before a command does what cannot be undone. Without a terminal nothing is asked, and nothing is done."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

import typer

from kling_async.errors import ConfigurationError

from .output import print_text

if TYPE_CHECKING:
    from typing import IO

    from rich.console import Console


def ask(console: Console, question: str, *, summary: str, purpose: str, undone: str, advice: str) -> bool:
    """Ask a question and return whether the answer is yes.

    Args:
        console: The console that shows the question.
        question: The question.
        summary: Consequences of a yes, as a sentence: printed before the question, and part of the error.
        purpose: Purpose of the question, as a clause that follows "expected a terminal to".
        undone: Clause that states what was not done without an answer.
        advice: The next step without a terminal.

    Raises:
        ConfigurationError: The question cannot be shown, or the answer cannot be typed.
    """
    shown_at = "stderr" if console.stderr else "stdout"
    streams: dict[str, TextIO | IO[str] | None] = {"stdin": sys.stdin, shown_at: console.file}
    closed = [name for name, stream in streams.items() if not _is_terminal(stream)]
    if closed:
        got = f"{' and '.join(closed)} {'is' if len(closed) == 1 else 'are'} no terminal"
        raise ConfigurationError(f"expected a terminal to {purpose}, but {got}. {summary} {undone}", advice=advice)
    print_text(console, summary)
    return typer.confirm(question, err=console.stderr)


def confirmed(console: Console, summary: str, *, yes: bool, purpose: str, undone: str, advice: str) -> bool:
    """Print the consequences of a command and return whether to go on; ask unless that was said already.

    Args:
        console: The console that shows the question.
        summary: Consequences, as a sentence.
        yes: Whether the user has said so: nothing is asked.
        purpose: As in `ask`.
        undone: As in `ask`.
        advice: As in `ask`.

    Raises:
        ConfigurationError: The question cannot be shown, or the answer cannot be typed.
    """
    if yes:
        print_text(console, summary)
        return True
    if ask(console, "Go on?", summary=summary, purpose=purpose, undone=undone, advice=advice):
        return True
    console.print("Nothing was changed.")
    return False


def _is_terminal(stream: TextIO | IO[str] | None) -> bool:
    # A stream that was closed before the process began is None.
    return stream is not None and stream.isatty()
