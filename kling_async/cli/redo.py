"""`run --redo KEY`: pay again for jobs whose rows have new content."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
from rich.text import Text

from kling_async._core.content import Content, content_in, same_but_for_signatures
from kling_async._core.renewal import is_kept
from kling_async._session.keys import read_content
from kling_async.errors import ConfigurationError
from kling_async.ledger import EditableLedger, Row

from .output import format_usd, print_text
from .reading import rows_of

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async._core.content import Identity
    from kling_async.manifest import Manifest

    from .options import RunOptions

_MAX_SHOWN = 10


@attrs.frozen
class Redo:
    """A job to be made again.

    Attributes:
        row: Its row, as it is.
        content: Its new content.
        model: Id of its new model.
    """

    row: Row
    content: Content
    model: str


async def jobs_to_redo(console: Console, manifest: Manifest, options: RunOptions, identity: Identity) -> list[Redo]:
    """Return the jobs that `--redo` names and whose rows have new content; print which of them have none.

    Args:
        console: The console to print to.
        manifest: The jobs.
        options: Options of the command.
        identity: Identity of the batch.

    Raises:
        ConfigurationError: The manifest has no such key.
        LedgerError: A job is being sent, runs, or is in doubt.
    """
    wanted = set(options.redo or ())
    if not wanted or options.emulator:
        return []
    ledger = options.ledger_name
    rows = {row.key: row for row in rows_of(ledger, batch=options.batch)} if ledger.exists() else {}
    found: list[Redo] = []
    async for key, job in manifest:
        if key not in wanted:
            continue
        wanted.discard(key)
        row, content = rows.get(key), await read_content(job, identity=identity)
        if row is None or row.digest == content.digest or _is_same(row, content):
            known = "was not sent yet" if row is None else "has the same content as when it was sent"
            print_text(console, Text(f"--redo {key}: the job {known}, so there is nothing to redo.", "yellow"))
            continue
        is_kept(row)  # raises if it cannot be made again now
        found.append(Redo(row, content, job.model))
    if wanted:
        raise ConfigurationError(
            f"--redo: expected keys of rows of {manifest.name}, got {', '.join(sorted(wanted))}; nothing was sent",
            advice="a row needs a key of its own for this",
        )
    return found


def _is_same(row: Row, content: Content) -> bool:
    return same_but_for_signatures(content_in(row), content)


def print_redo(console: Console, jobs: list[Redo]) -> None:
    """Print which jobs are made again, and what was paid for them before."""
    for job in jobs[:_MAX_SHOWN]:
        row = job.row
        before = f"prediction {row.prediction_id}, {format_usd(row.cost)}" if row.prediction_id else "without a video"
        stays = ", which stays in the ledger" if row.prediction_id else ""
        print_text(console, Text(f"{row.key} is made again; before: {row.state.label}, {before}{stays}.", "yellow"))
    if len(jobs) > _MAX_SHOWN:
        print_text(console, Text(f"and {len(jobs) - _MAX_SHOWN} more", "yellow"))


async def renew(console: Console, options: RunOptions, jobs: list[Redo]) -> None:
    """Give the jobs their new content in the ledger.

    Raises:
        LedgerError: A job has changed meanwhile, or the ledger cannot be written.
    """
    ledger = options.ledger_name.create()
    if not jobs or not isinstance(ledger, EditableLedger):
        return
    await ledger.open()
    try:
        for job in jobs:
            row = job.row
            kept = await ledger.renew(row.batch, row.key, content=job.content, model=job.model, at=time.time())
            if kept is not None:
                text = f"{row.key}: what was made before is {kept.key} now, prediction {kept.prediction_id}."
                print_text(console, Text(text, "dim"))
    finally:
        await ledger.aclose()
