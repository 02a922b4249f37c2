"""Jobs that a run is about to pay for, and the question before it does."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import attrs
from rich.text import Text

from kling_async._core.prediction import RETRYABLE_CODES
from kling_async._core.states import REUSE_ORDER
from kling_async._session.keys import Digests, KeyAssigner, read_content
from kling_async.ledger import State
from kling_async.manifest import Kind
from kling_async.results import job_of

from .asking import ask
from .choices import SeenChoice
from .ledgers import LedgerName
from .output import format_usd, plural, print_text
from .reading import rows_of
from .work import Due, Work

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from rich.console import Console

    from kling_async._core.content import Identity
    from kling_async._session.keys import FileDigests
    from kling_async.ledger import Row
    from kling_async.manifest import Manifest

    from .options import BatchOptions


@attrs.define
class Payable:
    """Decides whether running a job may pay for it now.

    Attributes:
        ledger: Ledger of the job.
        retry_failed: Times to send a job again that failed through the service's fault.
        seen: Setting of the run for what other batches have paid for.
    """

    ledger: LedgerName
    retry_failed: int
    seen: SeenChoice
    _sources: frozenset[str | None] | None = attrs.field(default=None, init=False)

    def __call__(self, row: Row) -> bool:
        """Return whether running the job of a row may pay for it."""
        if row.state is State.FAILED:
            return row.code in RETRYABLE_CODES and row.failures <= self.retry_failed
        if row.state is State.REUSED:
            # Sent by itself when the job whose video it shares has failed; with "pay", also when the video is gone.
            return self.seen is SeenChoice.PAY or row.reused not in self._made()
        return row.state.unsent or row.state.in_doubt

    def _made(self) -> frozenset[str | None]:
        """Return the ids of the predictions whose videos can be handed out."""
        if self._sources is None:
            self._sources = frozenset(row.prediction_id for row in rows_of(self.ledger, states=REUSE_ORDER))
        return self._sources


def due_of_rows(rows: Iterable[Row], payable: Payable) -> Due:
    """Return what a run of the jobs of a ledger may pay for."""
    due = Due()
    for row in rows:
        due.spent += (row.spent or 0) - (row.refunded or 0)
        due.add(_kind(row), row.state, payable=payable(row))
    return due


def _kind(row: Row) -> Kind:
    fields = job_of(row) or {}
    duration, sound = fields.get("duration"), fields.get("sound")
    seconds = duration if isinstance(duration, int) else 0
    return Kind(row.model, seconds, sound if isinstance(sound, bool) else None, str(fields.get("resolution") or ""))


async def due_of_manifest(
    manifest: Manifest,
    batch: str,
    identity: Identity,
    payable: Payable,
    *,
    redo: Container[str],
    files: FileDigests,
) -> Due:
    """Return what a run of a manifest may pay for.

    Image files are read only if the ledger has the batch, and only for rows without a key: their keys are hashes.

    Args:
        manifest: The jobs.
        batch: Name of the batch.
        identity: Identity of the batch.
        payable: Decides on each job that its ledger has; the ledger need not exist.
        redo: Keys of jobs that are paid for again on request.
        files: Digests of image files that were read before.

    Raises:
        InvalidJobError: An image file cannot be read any more.
        LedgerError: The ledger cannot be read.
        ManifestError: The manifest has changed, and is not valid any more.
    """
    due, known, ledger = Due(), dict[str, tuple[State, bool]](), payable.ledger
    for row in rows_of(ledger, batch=batch) if ledger.exists() else ():
        due.spent += (row.spent or 0) - (row.refunded or 0)
        # A job that is made again on request has another content, and is still its own row's.
        known[row.key] = row.state, payable(row) or row.key in redo
    if not known:
        due.kinds.update(manifest.kinds)
        return due
    continued = manifest.continued
    keys, digests, position = KeyAssigner(), Digests(continued), 0
    async for given, job in manifest:
        key = given or ""
        if given is None or given in continued:
            content = await read_content(job, identity=identity, known=files, digest_of=digests.of)
            key = given or keys.assign(None, content, position).key
            digests.add(key, content)
        position += 1
        state, may_pay = known.get(key, (None, True))
        due.add(job.kind, state, payable=may_pay)
    return due


def print_budget_warning(console: Console, work: Work) -> None:
    """Print a warning if the budget has less left than the jobs cost at list price."""
    if work.budget is None or work.plan.usd <= work.budget.usd - work.due.spent:
        return
    used = f", of which {format_usd(work.due.spent)} is spent," if work.due.spent else ""
    text = f"The budget of {format_usd(work.budget.usd)}{used} is less than that: once used up, nothing more is sent."
    print_text(console, Text(text, "yellow"))


def confirm_spending(console: Console, options: BatchOptions, work: Work) -> bool:
    """Return whether the jobs may be paid for; ask unless `--yes` is given or nothing is to be paid.

    Args:
        console: The console to print to.
        options: Options of the command.
        work: The batch.

    Raises:
        ConfigurationError: There is no terminal to ask.
    """
    if options.yes or not work.plan.jobs:
        return True
    cost = f"{plural(work.plan.jobs, 'job')}, {work.plan.cost}"
    if work.due.doubtful:
        cost += f", of which {work.due.doubtful} in doubt, to be paid only if not accepted before"
    if work.budget is not None:
        cost += f"; at most {format_usd(max(Decimal(0), work.budget.usd - work.due.spent))} by --budget"
    allowed = ask(
        console,
        "This costs real money. Go on?",
        summary=f"To be paid now: {cost}.",
        purpose="ask before money is spent",
        advice="add --yes to spend without asking; --budget USD limits it",
        undone="Nothing was uploaded, sent or spent",
    )
    if not allowed:
        console.print("Nothing was sent.")
    return allowed
