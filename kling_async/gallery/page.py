"""The page as one HTML file with its style and script, live or frozen."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

import attrs

from kling_async._files import FOR_ALL, make_part
from kling_async.errors import ConfigurationError

if TYPE_CHECKING:
    import jinja2

    from .cards import Card, Deck, Picture

Link: TypeAlias = Callable[[Path], str]
"""Returns the URL of a file for the page."""

INDEX: Final = "index.html"
_PARTS: Final = Path(__file__).parent / "parts"
_SCRIPTS: Final = ("words.js", "store.js", "grid.js", "films.js", "detail.js", "charts.js", "main.js")


def relative_to(folder: Path) -> Link:
    """Return a function that makes links from a page in `folder` to files on the same disk."""

    def link(path: Path) -> str:
        try:
            relative = os.path.relpath(path, folder)
        except ValueError:  # another drive on Windows
            return path.absolute().as_uri()
        # Encoded first, since a file name need not be valid text. The colon is quoted too, for `javascript:x`.
        return quote(os.fsencode(relative.replace(os.sep, "/")), safe="/")

    return link


def as_data(card: Card, link: Link) -> dict[str, Any]:
    """Return a card as the page's script reads it."""
    # In pairs, since objects of JavaScript put names that are numbers first.
    labels = {"labels": list(card.labels.items())} if card.labels else {}
    return labels | {
        "n": card.number,
        "v": card.version,
        "key": card.key,
        "name": card.name,
        "batch": card.batch,
        "state": card.stage.value,
        "label": card.label,
        "finished": card.finished,
        "model": card.model,
        "provider": card.provider,
        "prompt": card.prompt,
        "seconds": card.seconds,
        "settings": card.settings,
        "image": _picture(card.image, link),
        "end": _picture(card.end_image, link),
        "follows": None if card.clip is None else card.clip.follows,
        "video": None if card.video is None else link(card.video),
        "file": card.elsewhere if card.video is None else card.video.name,
        "bytes": card.bytes,
        "cost": None if card.cost is None else float(card.cost),
        "id": card.prediction_id,
        "mark": card.mark,
        "attempts": card.attempts,
        "times": [card.begun, card.accepted, card.ended, card.saved],
        "note": card.note,
        "trouble": None if card.trouble is None else attrs.asdict(card.trouble),
    }


def _picture(picture: Picture | None, link: Link) -> dict[str, str | None] | None:
    if picture is None:
        return None
    return {
        "label": picture.label,
        "full": None if picture.path is None else link(picture.path),
        "poster": None if picture.poster is None else link(picture.poster),
    }


def about(deck: Deck, *, marks: bool = False) -> dict[str, Any]:
    """Return the data of the whole run.

    Args:
        deck: The run.
        marks: Whether videos can be marked on the page.
    """
    shown = {"title": deck.title, "total": deck.total, "dropped": deck.dropped, "now": deck.now}
    films = [{"name": film.name, "clips": film.numbers} for film in deck.films]
    return {**shown, "past": deck.past, "marks": marks, "films": films}


@cache
def _assets() -> tuple[str, str, str, str]:
    """Return style and script, and their digests for the policy."""
    style = (_PARTS / "style.css").read_text("utf-8")
    script = "\n".join((_PARTS / name).read_text("utf-8") for name in _SCRIPTS)
    return style, script, _digest(style), _digest(script)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(*, live: bool) -> str:
    """Return the Content-Security-Policy: only this style and script, and no other origin."""
    _, _, style, script = _assets()
    files, server = ("'self'", "'self'") if live else ("'self' file:", "'none'")
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src {files} data:; media-src {files}; "
        f"connect-src {server}; base-uri 'none'; form-action 'none'"
    )


def render(deck: Deck, cards: Iterable[Card] = (), *, link: Link | None = None, marks: bool = False) -> str:
    """Return the page as HTML.

    Args:
        deck: The run.
        cards: Cards of a frozen page; a live page receives them as events.
        link: Makes the links of a frozen page; None for a live page.
        marks: Whether videos can be marked on the page.

    Raises:
        ConfigurationError: Jinja2 is not installed.
    """
    style, script, _, _ = _assets()
    live = link is None
    frozen = [] if link is None else [as_data(card, link) for card in cards]
    data = about(deck, marks=marks) | {"live": live, "cards": frozen}
    return _template().render(
        title=deck.title, style=style, script=script, policy=None if live else policy(live=False), data=data
    )


def prepare() -> None:
    """Load the parts of the page from the disk.

    Raises:
        ConfigurationError: Jinja2 is not installed.
    """
    _template()
    _assets()


@cache
def _template() -> jinja2.Template:
    try:
        import jinja2  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError:
        raise ConfigurationError("the gallery needs Jinja2", advice="pip install 'kling-async[gallery]'") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("page.html")


def freeze(deck: Deck, cards: Iterable[Card], folder: Path) -> Path:
    """Write the page atomically to a folder and return its path.

    Args:
        deck: The run.
        cards: Cards of the page.
        folder: Folder of the page; created if necessary.

    Raises:
        OSError: The page cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / INDEX
    part = folder / f".{INDEX}.part"
    make_part(part, mode=FOR_ALL)
    # A title may come from a file name, which need not be valid text.
    part.write_text(render(deck, cards, link=relative_to(folder)), "utf-8", "replace")
    part.replace(page)
    return page
