"""The page of an earlier run: from its ledger, the saved videos, and the images where they still lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kling_async._core.content import Content, recalled
from kling_async.ledger import State, is_url, read_ledger, read_steps

from .cards import LIMIT, Deck, fill
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
    """Write the page of an earlier run.

    Args:
        ledger: Its ledger: the file, or the URL of the database.
        folder: Where the page goes.
        account: Of a database: the account whose jobs are wanted.
        batch: Only this batch's jobs.
        provider: Who made the videos.

    Returns:
        The page.

    Raises:
        LedgerError: There is no such ledger.
        ConfigurationError: Jinja2 is not installed, or the URL cannot be read.
        OSError: The page cannot be written.
    """
    prepare()
    folder = Path(folder).absolute()
    rows = list(read_ledger(ledger, account=account, batch=batch))
    rows.sort(key=lambda row: (row.intent_at or row.updated_at, row.key))
    if is_url(ledger):
        title, beside = "Kling", folder.parent
    else:
        title, beside = Path(ledger).stem, Path(ledger).absolute().parent
    batches = {row.batch for row in rows}
    deck = Deck((batches.pop() if len(batches) == 1 else batch) or title, total=len(rows), limit=max(LIMIT, len(rows)))
    pictures = Pictures(folder)
    steps = read_steps(ledger, account=account, batch=batch)
    ended = {(step.batch, step.key): step.at for step in steps if step.state is State.COMPLETED}
    for row in rows:
        card = deck.card(row.batch, row.key, provider)
        if row.job is not None:
            card.describe(recalled(Content(row.job, row.files), {}))
        fill(card, row, ended.get((row.batch, row.key)))
        card.video = _video(row, beside)
        if card.video is None:
            card.elsewhere = row.path
        for picture in card.pictures:
            pictures.settle(picture)
        deck.now = max(deck.now, row.updated_at)
    return freeze(deck, deck.cards, folder)


def _video(row: Row, beside: Path) -> Path | None:
    """Where the video is: where it was saved, or in the folder beside, when all has been moved."""
    if row.path is None:
        return None
    saved = Path(row.path)
    for path in (saved, beside / saved.name):
        if path.is_file():
            return path.absolute()
    return None
