"""`run --redo KEY`: pay again for jobs whose rows have new content."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
from rich.text import Text

from kling_async._core.content import Content, content_in, same_but_for_signatures
from kling_async._core.renewal import is_kept
from kling_async._session.keys import Digests, read_content
from kling_async.errors import ConfigurationError
from kling_async.ledger import EditableLedger, Row

from .output import format_usd, print_text
from .reading import rows_of

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async._core.content import Identity
    from kling_async._session.keys import FileDigests
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
        continues: Key of the job that is made again, and that it continues; None if it was named itself.
    """

    row: Row
    content: Content
    model: str
    continues: str | None = None


async def jobs_to_redo(
    console: Console, manifest: Manifest, options: RunOptions, identity: Identity, files: FileDigests
) -> list[Redo]:
    """Return the jobs that `--redo` names and whose rows have new content, with the jobs that continue them.

    Those that continue one begin with a frame of a video that is made again, so they are other videos, too. Print which
    of the named ones have no new content.

    Args:
        console: The console to print to.
        manifest: The jobs.
        options: Options of the command.
        identity: Identity of the batch.
        files: Digests of files that were read before.

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
    again: set[str] = set()
    continued = manifest.continued
    digests = Digests(continued)
    async for key, job in manifest:
        # What a job continues comes before it.
        parent = next((each for each in job.parents if each in again), None)
        if key is None or not (key in wanted or key in continued or parent is not None):
            continue
        content = await read_content(job, identity=identity, known=files, digest_of=digests.of)
        digests.add(key, content)
        row, named = rows.get(key), key in wanted
        wanted.discard(key)
        if not named and parent is None:
            continue
        if row is None or row.digest == content.digest or _is_same(row, content, identity):
            if not named:
                continue
            sent = row is not None and row.attempt
            known = "has the same content as when it was sent" if sent else "was not sent yet"
            print_text(console, Text(f"--redo {key}: the job {known}, so there is nothing to redo.", "yellow"))
            continue
        is_kept(row)  # raises if it cannot be made again now
        again.add(key)
        found.append(Redo(row, content, job.model, parent))
    if wanted:
        raise ConfigurationError(
            f"--redo: expected keys of rows of {manifest.name}, got {', '.join(sorted(wanted))}; nothing was sent",
            advice="a row needs a key of its own for this",
        )
    return found


def _is_same(row: Row, content: Content, identity: Identity) -> bool:
    return same_but_for_signatures(content_in(row), content, identity)


def print_redo(console: Console, jobs: list[Redo]) -> None:
    """Print which jobs are made again, and what was paid for them before."""
    for job in jobs[:_MAX_SHOWN]:
        row = job.row
        before = f"prediction {row.prediction_id}, {format_usd(row.cost)}" if row.prediction_id else "without a video"
        stays = ", which stays in the ledger" if is_kept(row) else ""
        why = "" if job.continues is None else f", as it continues {job.continues}"
        print_text(
            console, Text(f"{row.key} is made again{why}; before: {row.state.label}, {before}{stays}.", "yellow")
        )
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
