"""The page of an earlier run, from its ledger, saved videos and input images."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from kling_async._core.content import Content, recalled
from kling_async.ledger import State, is_url, read_ledger, read_steps

from .cards import MAX_CARDS, Deck, fill
from .page import freeze, prepare
from .pictures import Pictures

if TYPE_CHECKING:
    import os

    from kling_async.ledger import Row


def gallery_of_ledger(
    ledger: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    account: str = "default",
    batch: str | None = None,
    provider: str = "wavespeed",
) -> Path:
    """Write the page of an earlier run and return its path.

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
    rows = list(read_ledger(ledger, account=account, batch=batch))
    rows.sort(key=lambda row: (row.intent_at or row.updated_at, row.key))
    if is_url(ledger):
        title, videos = "Kling", folder.parent
    else:
        title, videos = Path(ledger).stem, Path(ledger).absolute().parent
    batches = {row.batch for row in rows}
    deck = Deck(
        (batches.pop() if len(batches) == 1 else batch) or title, total=len(rows), limit=max(MAX_CARDS, len(rows))
    )
    pictures = Pictures(folder)
    steps = read_steps(ledger, account=account, batch=batch)
    ended = {(step.batch, step.key): step.at for step in steps if step.state is State.COMPLETED}
    for row in rows:
        card = deck.card(row.batch, row.key, provider)
        if row.job is not None:
            card.describe(recalled(Content(row.job, row.files), {}))
        fill(card, row, ended.get((row.batch, row.key)))
        card.video = _video(row, videos)
        if card.video is None:
            card.elsewhere = row.path
        for picture in card.pictures:
            pictures.make_files(picture)
        deck.now = max(deck.now, row.updated_at)
    return freeze(deck, deck.cards, folder)


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
