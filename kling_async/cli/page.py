"""`kling-async gallery`: the page of an earlier run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from kling_async.gallery import gallery_of_ledger

from .exits import Exit
from .output import make_console, print_text

if TYPE_CHECKING:
    from .options import GalleryOptions


def page(options: GalleryOptions) -> Exit:
    """Write the page and print its path."""
    ledger = options.ledger_name
    out = options.out or options.ledger_name.folder / "gallery"
    made = gallery_of_ledger(ledger.where, out, account=ledger.account, batch=options.name, provider=options.provider)
    print_text(make_console(), Text.assemble("Gallery: ", (str(made), "bold cyan")))
    return Exit.WELL
