"""`kling-async gallery`: the page of an earlier run."""

from __future__ import annotations

from pathlib import Path

import attrs
from rich.text import Text

from kling_async.gallery import gallery_of_ledger

from .interrupts import Exit
from .ledgers import LedgerName
from .output import console, say


@attrs.frozen(kw_only=True)
class PageOptions:
    """What the user asked for; see the help of the command."""

    ledger: LedgerName
    out: Path
    batch: str | None = None
    provider: str = "wavespeed"


def page(options: PageOptions) -> Exit:
    """Write the page and say where it is."""
    ledger = options.ledger
    made = gallery_of_ledger(
        ledger.where, options.out, account=ledger.account, batch=options.batch, provider=options.provider
    )
    say(console(), Text.assemble("Gallery: ", (str(made), "bold cyan")))
    return Exit.WELL
