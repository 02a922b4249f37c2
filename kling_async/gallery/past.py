"""The page of an earlier run: from its ledger, the saved videos, and the manifest if it is still there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from kling_async.gallery.cards import LIMIT, Deck, fill
from kling_async.gallery.page import freeze, prepare
from kling_async.gallery.pictures import Pictures
from kling_async.ledger import State, read_ledger, read_steps
from kling_async.manifest import read_manifest

if TYPE_CHECKING:
    import os

    from kling_async._core.job import Image, Job
    from kling_async.ledger import Row


def gallery_of_ledger(
    ledger: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    batch: str | None = None,
    provider: str = "wavespeed",
) -> Path:
    """Write the page of an earlier run.

    Args:
        ledger: Its ledger.
        folder: Where the page goes.
        manifest: The file of its jobs. A ledger has neither prompts nor input images; they are taken from there, for
            the jobs whose content is still the same.
        batch: Only this batch's jobs.
        provider: Who made the videos.

    Returns:
        The page.

    Raises:
        LedgerError: There is no such ledger.
        ManifestError: The manifest cannot be read.
        ConfigurationError: Jinja2 is not installed.
        OSError: The page cannot be written.
    """
    prepare()
    ledger, folder = Path(ledger), Path(folder).absolute()
    rows = list(read_ledger(ledger, batch=batch))
    rows.sort(key=lambda row: (row.intent_at or row.updated_at, row.key))
    deck = Deck(batch or ledger.stem, total=len(rows), limit=max(LIMIT, len(rows)))
    asked = _asked(Path(manifest), {row.digest for row in rows}) if manifest is not None else {}
    pictures = Pictures(folder)
    ended = {
        (step.batch, step.key): step.at for step in read_steps(ledger, batch=batch) if step.state is State.COMPLETED
    }
    for row in rows:
        card = deck.card(row.batch, row.key, provider)
        if row.digest in asked:
            card.describe(asked[row.digest])
        fill(card, row, ended.get((row.batch, row.key)))
        card.video = _video(row, ledger)
        if card.video is None:
            card.elsewhere = row.path
        for picture in card.pictures:
            pictures.settle(picture)
        deck.now = max(deck.now, row.updated_at)
    return freeze(deck, deck.cards, folder)


def _asked(manifest: Path, wanted: set[str]) -> dict[str, Job]:
    """The jobs of a manifest whose content the ledger knows, by its digest."""
    found: dict[str, Job] = {}
    for _, job in read_manifest(manifest):
        digest = job.digest(_image_digest)
        if digest in wanted:
            found.setdefault(digest, job)
    return found


def _image_digest(image: Image) -> str:
    if isinstance(image, str):
        return image
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _video(row: Row, ledger: Path) -> Path | None:
    """Where the video is: where it was saved, or beside the ledger when all has been moved."""
    if row.path is None:
        return None
    saved = Path(row.path)
    for path in (saved, ledger.absolute().parent / saved.name):
        if path.is_file():
            return path.absolute()
    return None
