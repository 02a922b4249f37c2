"""Jobs that another batch of the same ledger has paid for: refuse them, hand out what was made, or pay again."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio.to_thread
import attrs

from kling_async._core.clock import Clock
from kling_async._core.content import possible_digests
from kling_async._core.job_key import is_derived
from kling_async._core.prices import Kind
from kling_async._core.states import REUSE_ORDER, Entry, Row, State
from kling_async._http.reads import ServiceReads
from kling_async.errors import AlreadyPaidError, InDoubtElsewhereError, InvalidJobError, NotFoundError
from kling_async.ledger import Ledger
from kling_async.ledger._recall import RETENTION_S, saved_file

from .keys import Digests, KeyAssigner, read_content

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from kling_async._core.content import Content, Identity
    from kling_async._core.job import Job

    from .job_run import JobRun
    from .keys import FileDigests

POLL_S = 2.0
"""Seconds between two looks at a job that another batch is sending."""


async def paid_elsewhere(ledger: Ledger, batch: str, key: str, content: Content, *, any_key: bool = False) -> list[Row]:
    """Return the jobs of other batches that a paid request for a job would pay for again.

    A job whose key was derived from its content has no name of its own, by which it could be another video of the
    same content: its content alone decides.

    Args:
        ledger: The ledger.
        batch: Name of the job's batch.
        key: Key of the job.
        content: Content of the job.
        any_key: Return jobs with the same content and any key, whatever its own.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    digests = possible_digests(content, await ledger.ignored_parameters())
    return await ledger.paid_elsewhere(batch, key, digests=digests, any_key=any_key or is_derived(key, content.digest))


@attrs.frozen
class Found:
    """Jobs of a batch that other batches have paid for.

    Attributes:
        batch: Name of the batch.
        jobs: Number of its jobs that others have paid for.
        batches: How many of them each other batch has.
        kinds: How many of them there are of each kind.
        usd: USD to pay for them again, by the price list; None if a price is unknown.
    """

    batch: str
    jobs: int = 0
    batches: Counter[str] = attrs.field(factory=Counter)
    kinds: Counter[Kind] = attrs.field(factory=Counter)
    usd: Decimal | None = Decimal(0)

    def with_job(self, job: Job, batch: str, provider: str = "wavespeed") -> Found:
        """Return the same with one more job, which another batch has paid for."""
        usd = job.price(provider).usd
        return attrs.evolve(
            self,
            jobs=self.jobs + 1,
            batches=self.batches + Counter([batch]),
            kinds=self.kinds + Counter([job.kind]),
            usd=None if self.usd is None or usd is None else self.usd + usd,
        )

    def error(self) -> AlreadyPaidError:
        """Return the error of a batch that is not to pay for them again."""
        ((other, _),) = self.batches.most_common(1)
        jobs, were, them = ("1 job", "was", "it") if self.jobs == 1 else (f"{self.jobs} jobs", "were", "them")
        price = "an unknown price" if self.usd is None else f"${self.usd:.2f} by the price list"
        where = " and others" if len(self.batches) > 1 else ""
        return AlreadyPaidError(
            f"{jobs} of {named(self.batch)} {were} sent in {named(other)}{where} already; "
            f"to send {them} again costs {price}",
            batch=other,
            jobs=self.jobs,
            cost=self.usd,
        )


def named(batch: str) -> str:
    """Return the name of a batch for a sentence."""
    return f"batch {batch!r}" if batch else "the batch without a name"


async def look_up(
    ledger: Ledger,
    items: AsyncIterable[tuple[str | None, Job]],
    batch: str,
    *,
    identity: Identity,
    provider: str,
    any_key: bool = False,
    known: FileDigests | None = None,
) -> Found:
    """Return which jobs of an input other batches have paid for. Nothing is sent or written.

    Jobs that their own batch has sent already are not among them, also if they failed there. Image files are read for
    their digests; a job whose image cannot be read is left to the batch, which refuses it.

    Args:
        ledger: The ledger, open.
        items: The input: keys, None where there is none, and jobs.
        batch: Name of the batch.
        identity: Identity of the batch.
        provider: Name of the provider, for the prices.
        any_key: As in `paid_elsewhere`.
        known: Digests of files that were read before; None to read all.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    keys, digests = KeyAssigner(), Digests(getattr(items, "continued", None))
    found, position = Found(batch), 0
    async for given, job in items:
        try:
            content = await read_content(job, identity=identity, known=known, digest_of=digests.of)
        except InvalidJobError:
            continue
        finally:
            position += 1
        key = keys.assign(given, content, position - 1).key
        digests.add(key, content)
        rows = await paid_elsewhere(ledger, batch, key, content, any_key=any_key)
        if rows:
            own = await ledger.find(batch, key)
            if own is None or own[0].state.unsent:
                found = found.with_job(job, rows[0].batch, provider)
    return found


@attrs.define(kw_only=True)
class SeenJobs:
    """Decides, for the jobs of a session that are about to be sent, what other batches of its ledger mean for them.

    Attributes:
        ledger: Has the jobs of all batches.
        clock: The session's clock.
        reads: Reads single predictions.
        provider: Name of the provider, for prices.
    """

    ledger: Ledger
    clock: Clock
    reads: ServiceReads
    provider: str

    async def reusable(self, run: JobRun, row: Row) -> Row | None:
        """Return the row whose video is handed out for a job; None if the job is to be sent.

        Args:
            run: The job.
            row: Its row: claimed, and neither accepted nor in doubt.

        Raises:
            AlreadyPaidError: Another batch has paid for it, and it is neither to be paid for again nor can what was
                made be handed out.
            SkippedError: Its batch was drained meanwhile.
            LedgerError: The ledger cannot be used.
        """
        if row.state is State.REUSED:
            other = await self._reused_before(run, row)
            if other is not None:
                return other
        if run.seen == "pay":
            return None
        while True:
            rows = await paid_elsewhere(self.ledger, run.batch, run.key, run.content_read, any_key=run.seen == "reuse")
            if not rows:
                return None
            if run.seen == "stop":
                raise Found(run.batch).with_job(run.job, rows[0].batch, self.provider).error()
            # Of several videos of one content, each job gets that of its own key, if there is one.
            useful = sorted(
                (row for row in rows if row.state in REUSE_ORDER),
                key=lambda row: (row.key != run.key, REUSE_ORDER.index(row.state)),
            )
            if useful:
                other = await self._available(useful)
                if other is None:
                    raise self._gone(run, useful[0])
                await self._record(row, State.REUSED, other)
                return other
            for doubtful in rows:
                if doubtful.state is not State.INTENT and not doubtful.state.sendable:
                    raise InDoubtElsewhereError(
                        f"the job {doubtful.key!r} of {named(doubtful.batch)} has the same content and is in doubt",
                        batch=doubtful.batch,
                        jobs=1,
                        cost=run.job.price(self.provider).usd,
                    )
            # Another batch is sending it now.
            with run.drain:
                await self.clock.sleep(POLL_S)

    async def _reused_before(self, run: JobRun, row: Row) -> Row | None:
        """Return the row whose video an earlier run has handed out; None if the job is new again.

        Raises:
            AlreadyPaidError: The video is gone, and the job is not to be paid for.
            LedgerError: The ledger cannot be used.
        """
        found = await self.ledger.owner(row.reused or "")
        if found is not None and found.state in REUSE_ORDER:
            other = await self._available([found])
            if other is not None:
                return other
            if run.seen != "pay":
                raise self._gone(run, found)
        await self._record(row, State.PENDING)
        # A shared ledger lets only claimed jobs be sent, and reused ones have ended.
        await self.ledger.claim(row.batch, row.key, content=run.content_read, model=row.model, at=self.clock.now())
        return None

    def _gone(self, run: JobRun, row: Row) -> AlreadyPaidError:
        """Return the error of a job that is not to be paid for, and whose video is gone."""
        return AlreadyPaidError(
            f"the video of the job {row.key!r} of {named(row.batch)}, which has the same content, is neither saved nor "
            "at the service any more, so it cannot be reused",
            batch=row.batch,
            jobs=1,
            cost=run.job.price(self.provider).usd,
            advice='to generate, and pay for, it again, run it with seen="pay" (--seen pay)',
        )

    async def _available(self, rows: list[Row]) -> Row | None:
        """Return the first of the rows whose video is there, or will be; None if all of them are gone."""
        for row in rows:
            if await anyio.to_thread.run_sync(saved_file, row) is not None:
                return row
            if self.clock.now() - (row.submitted_at or row.updated_at) <= RETENTION_S:
                return row
            # Our clock may be wrong, so the service decides whether it is gone.
            try:
                read = await self.reads.prediction(row.prediction_id or "")
            except NotFoundError:
                continue
            return attrs.evolve(row, output=read.output)
        return None

    async def _record(self, row: Row, state: State, other: Row | None = None) -> None:
        step = Entry(batch=row.batch, key=row.key, state=state, at=self.clock.now())
        if other is not None:
            step = attrs.evolve(
                step,
                reused=other.prediction_id,
                output=other.output,
                path=other.path,
                bytes=other.bytes,
                sha256=other.sha256,
            )
        await self.ledger.record(step)
