"""HTML by which results show themselves in a notebook. Every text is escaped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_EMBEDDED_BYTES: Final = 8_000_000
"""Greatest size of a video that becomes part of the notebook; base64 makes it a third longer."""
_WIDTH: Final = 320


def escape(text: str) -> str:
    """Return a text without the meaning that HTML gives to some of its characters."""
    import html  # noqa: PLC0415 -- takes a fortieth of the time of all imports, and only notebooks need it

    return html.escape(text)


def table(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values."""
    cells = (
        f'<tr><th style="text-align:left">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def video(location: Path | str, size: int) -> str:
    """Return a player of a saved video.

    A file below the current folder, which is a notebook's own, is played from there; a small one elsewhere becomes part
    of the page. Others are named: larger ones, those in an object store, and those that are gone.

    Args:
        location: The file, or its URL in an object store.
        size: Its length in bytes.
    """
    source = _source(location, size)
    name = f"<code>{escape(str(location))}</code>"
    if source is None:
        return f"<div>{name}</div>"
    player = f'<video controls loop muted playsinline preload="metadata" width="{_WIDTH}" src="{source}"></video>'
    return f'<div style="display:inline-block;margin:0 8px 8px 0">{player}<br>{name}</div>'


def _source(location: Path | str, size: int) -> str | None:
    """Return the URL from which a notebook plays a file; None without one."""
    if not isinstance(location, Path) or not location.is_file():
        return None
    here, file = Path.cwd().resolve(), location.resolve()
    if file.is_relative_to(here):
        return quote(file.relative_to(here).as_posix())
    if size > MAX_EMBEDDED_BYTES:
        return None
    return f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}"


def note(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """Return a line in bold."""
    return f"<div><b>{escape(text)}</b></div>"


def bar(done: int, total: int) -> str:
    """Return a progress bar, or the number alone where the total is unknown."""
    if not total:
        return note(f"{done} ended")
    return f'<div><progress value="{done}" max="{total}" style="width:{_WIDTH}px"></progress> {done} of {total}</div>'
