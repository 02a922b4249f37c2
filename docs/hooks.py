"""Names the search for screen readers; fails the build when part of the site would be fetched from another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LOADED = {"audio", "embed", "iframe", "img", "input", "link", "object", "script", "source", "track", "video"}
"""Elements whose addresses a browser fetches without a click."""
ADDRESSES = {"src", "href", "data", "poster", "srcset"}
FOREIGN = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
FOREIGN_IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?\s*(?:https?:)?//[^"')]+""", re.IGNORECASE)
DIAGRAM = "mermaid"
"""The theme fetches the program that draws such blocks from another host."""


class _Page(HTMLParser):
    """Collects what a browser would fetch from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if DIAGRAM in (given.get("class") or "").split():
            self.found.append(f'<{tag} class="{DIAGRAM}">')
        if tag == "link" and given.get("rel") == "canonical":
            return
        if tag in LOADED:
            self.found += [
                f"<{tag} {name}={value!r}>" for name, value in attrs if name in ADDRESSES and FOREIGN.match(value or "")
            ]


def foreign(page: str) -> list[str]:
    """Return what a browser would fetch from another host to show this page."""
    reader = _Page()
    reader.feed(page)
    return reader.found + FOREIGN_IN_STYLE.findall(page)


def on_post_page(output: str, **_: Any) -> str:
    """Name the dialog of the search, to which the theme gives no name."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def on_post_build(config: Any) -> None:
    """Read the site that was built.

    Raises:
        RuntimeError: It would be fetched from other hosts in part.
    """
    site = Path(config["site_dir"])
    found = [f"{path.relative_to(site)}: {what}" for path in site.rglob("*.html") for what in foreign(path.read_text())]
    found += [
        f"{path.relative_to(site)}: {what}"
        for path in site.rglob("*.css")
        for what in FOREIGN_IN_STYLE.findall(path.read_text())
    ]
    if found:
        raise RuntimeError("the site would be fetched from other hosts in part:\n" + "\n".join(sorted(found)))
