"""`kling-async gallery`: the page of an earlier run, and marks of its videos."""

from __future__ import annotations

import asyncio
import errno
import shlex
from typing import TYPE_CHECKING

from rich.text import Text

from kling_async.gallery import gallery_of_ledger, serve_gallery

from .exits import Exit
from .interrupts import interruptible, took_interrupt
from .output import make_console, print_text
from .ports import port_in_use
from .results import print_command

if TYPE_CHECKING:
    from pathlib import Path

    from .options import GalleryOptions


def page(options: GalleryOptions) -> Exit:
    """Write the page and print its path; with `--serve`, serve it until interrupted first."""
    out = options.out or options.ledger_name.folder / "gallery"
    if options.serve:
        return interruptible(lambda: _serve(options, out))
    ledger = options.ledger_name
    made = gallery_of_ledger(ledger.where, out, account=ledger.account, batch=options.name, provider=options.provider)
    print_text(make_console(), Text.assemble("Gallery: ", (str(made), "bold cyan")))
    return Exit.WELL


async def _serve(options: GalleryOptions, out: Path) -> Exit:
    console, ledger = make_console(), options.ledger_name
    try:
        async with serve_gallery(
            ledger.where,
            out,
            account=ledger.account,
            batch=options.name,
            provider=options.provider,
            port=options.port,
        ) as url:
            console.print(Text.assemble("Gallery: ", (url, "bold cyan")), soft_wrap=True)
            print_text(console, "Mark videos with the keys G (good), B (bad) and A (again). Ctrl-C ends it.")
            console.file.flush()
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        took_interrupt()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise port_in_use("127.0.0.1", options.port, option="--port") from None
    print_text(console, Text(f"The marks are in {ledger}, and the page is {out / 'index.html'}.", "dim"))
    print_text(console, "This writes what to make again as a manifest, with prompts to edit:")
    words = ["kling-async", "export", *ledger.as_argument, "--format", "again"]
    words += ["--name", options.name] if options.name else []
    print_command(console, shlex.join(words))
    return Exit.WELL
