"""The page of an earlier run, from its ledger, saved videos and input images."""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from kling_async._clock import SystemClock
from kling_async._core.content import content_in, recalled
from kling_async.ledger import EditableLedger, State, is_url, open_ledger, read_ledger, read_marks, read_steps

from .cards import MAX_CARDS, Deck, fill
from .live import Live
from .page import freeze, prepare
from .pictures import Pictures

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

    from kling_async._core.marks import Mark
    from kling_async.ledger import Row

    from .cards import Card


def gallery_of_ledger(
    ledger: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    account: str = "default",
    batch: str | None = None,
    provider: str = "wavespeed",
) -> Path:
    """Write the page of an earlier run and return its path. It shows the marks of the videos.

    Args:
        ledger: File of the ledger, or URL of its database.
        folder: Folder for the page.
        account: Name of the account in a database.
        batch: Name of the only batch to show; None is all.
        provider: Provider of the videos, for the page.

    Raises:
        LedgerError: There is no such ledger.
        ConfigurationError: Jinja2 is not installed, or the URL cannot be parsed.
        OSError: The page cannot be written.
    """
    prepare()
    folder = Path(folder).absolute()
    deck = _deck(ledger, folder, account=account, batch=batch, provider=provider)
    return freeze(deck, deck.cards, folder)


@asynccontextmanager
async def serve_gallery(
    ledger: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    account: str = "default",
    batch: str | None = None,
    provider: str = "wavespeed",
    port: int = 0,
) -> AsyncGenerator[str]:
    """Serve the page of an earlier run on this computer, to mark its videos; the block gets its address.

    Marks are kept in the ledger, each at once. The page is written when the block ends.

    Args:
        ledger: File of the ledger, or URL of its database.
        folder: Folder for the page.
        account: Name of the account in a database.
        batch: Name of the only batch to show; None is all.
        provider: Provider of the videos, for the page.
        port: Port on loopback; 0 takes a free one.

    Raises:
        LedgerError: There is no such ledger.
        ConfigurationError: Jinja2 is not installed, or the URL cannot be parsed.
        OSError: The port is in use, or the page cannot be written.
    """
    folder = Path(await anyio.Path(folder).absolute())
    read = partial(_deck, ledger, folder, account=account, batch=batch, provider=provider)
    deck = await anyio.to_thread.run_sync(read)
    one_at_a_time = anyio.Lock()

    async def keep(card: Card, mark: Mark | None) -> None:
        # Open for a moment only, so that a run may go on beside the page.
        async with one_at_a_time:
            made = open_ledger(ledger, account=account)
            if not isinstance(made, EditableLedger):  # pragma: no cover -- files and databases can be edited
                raise TypeError(made)
            await made.open()
            try:
                await made.put_mark(card.prediction_id or "", mark, SystemClock().now())
            finally:
                await made.aclose()

    live = Live(deck, SystemClock(), keep=keep)
    async with live.serve(port):
        try:
            yield live.url
        finally:
            with anyio.CancelScope(shield=True):
                live.end(str(await anyio.to_thread.run_sync(freeze, deck, deck.cards, folder)))


def _deck(ledger: str | os.PathLike[str], folder: Path, *, account: str, batch: str | None, provider: str) -> Deck:
    """Return the cards of an earlier run, and make the files of their pictures."""
    rows = list(read_ledger(ledger, account=account, batch=batch))
    rows.sort(key=lambda row: (row.intent_at or row.updated_at, row.key))
    if is_url(ledger):
        title, videos = "Kling", folder.parent
    else:
        title, videos = Path(ledger).stem, Path(ledger).absolute().parent
    batches = {row.batch for row in rows}
    title = (batches.pop() if len(batches) == 1 else batch) or title
    deck = Deck(title, total=len(rows), limit=max(MAX_CARDS, len(rows)), past=True)
    pictures = Pictures(folder)
    steps = read_steps(ledger, account=account, batch=batch)
    ended = {(step.batch, step.key): step.at for step in steps if step.state is State.COMPLETED}
    marks = read_marks(ledger, account=account)
    for row in rows:
        card = deck.card(row.batch, row.key, provider)
        if row.job is not None:
            deck.describe(card, recalled(content_in(row), {}))
        fill(card, row, ended.get((row.batch, row.key)))
        card.video = _video(row, videos)
        if card.video is None:
            card.elsewhere = row.path
        if card.prediction_id in marks:
            card.mark = marks[card.prediction_id].mark
        for picture in card.pictures:
            pictures.make_files(picture)
        deck.touch(card)
        deck.now = max(deck.now, row.updated_at)
    return deck


def _video(row: Row, folder: Path) -> Path | None:
    """Return the file of the video: where it was saved, or after a move of all files in this folder."""
    if row.path is None:
        return None
    saved = Path(row.path)
    for path in (saved, folder / saved.name):
        with contextlib.suppress(OSError, ValueError):
            if path.is_file():
                return path.absolute()
    return None
