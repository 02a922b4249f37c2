"""Jobs of one batch that continue others: those that wait for their parents, and the videos of those that ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from kling_async._core.chains import broken_chains, films
from kling_async._core.content import same_but_for_signatures
from kling_async._core.job import Job
from kling_async._core.job_key import Key, checked_key
from kling_async._core.states import Entry, State
from kling_async.errors import InvalidJobError, KeyReusedError, KlingError, Problem, SkippedError

from .keys import claim_job
from .link import Link, Video
from .videos import require_decoder, video_of, video_of_row

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kling_async._core.content import Content
    from kling_async._core.prediction import Outcome, Prediction, SavedFile
    from kling_async._submission.drain import Drain

    from .engine import SessionEngine
    from .job_run import JobRun
    from .keys import KeyAssigner

MAX_ENDED_IN_MEMORY = 1_000
"""Jobs that have ended last, and that jobs of a lazy input may still continue, in a batch without a ledger on disk."""
WAITING_PER_WINDOW = 64
"""Jobs of a batch that wait for their parents at most, as a multiple of its window: chains are long."""

T = TypeVar("T")
Pairs: TypeAlias = list[tuple[str, Job]]


def in_order(jobs: Mapping[Key, Job]) -> Pairs | None:
    """Return the jobs of a mapping film after film, parents first; None if none of them continues another.

    Raises:
        InvalidJobError: A job continues itself, or a job that is not there; all such jobs are named.
    """
    parents = {key: job.parents for key, job in jobs.items() if isinstance(cast("object", job), Job) and job.parents}
    if not parents:
        return None
    named = {checked_key(key): job for key, job in jobs.items()}
    following = {checked_key(key): of for key, of in parents.items()}
    wrong = broken_chains(following, named)
    if wrong:
        raise InvalidJobError([Problem(key, said) for key, said in wrong.items()])
    found = films(following, named)
    order = (each for key in named if key not in following for each in found.get(key, (key,)))
    return [(key, named[key]) for key in order]


_Ended: TypeAlias = "tuple[Content | None, Prediction | None, SavedFile | None, str | None]"


class Chains:
    """The jobs of one batch that continue others.

    Args:
        engine: The session's engine.
        batch: Name of the batch.
        keys: Keys that were read.
        runs: Jobs that were read and have not ended, by key.
        drain: Drain of the batch.
        parents: Keys of all jobs that others continue; None if they are not known before the input is read.
        most: Number of jobs that may wait for their parents.
    """

    def __init__(
        self,
        engine: SessionEngine,
        batch: str,
        *,
        keys: KeyAssigner,
        runs: Mapping[str, JobRun],
        drain: Drain,
        parents: Collection[str] | None,
        most: int,
    ) -> None:
        self._engine = engine
        self._batch = batch
        self._keys = keys
        self._runs = runs
        self._drain = drain
        self._parents = parents
        # The jobs that wait for each job, and what the reader of the input waits for while they are too many.
        self._followers: dict[JobRun, list[JobRun]] = {}
        self._waiting = 0
        self._most = most
        self._fewer = asyncio.Event()
        # Of jobs that have ended: content, prediction, where the output was saved, and the error. Not the outcome,
        # which has the job with its pictures. A ledger on disk has all of this.
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._remembers = parents is None and not engine.ledger.durable

    async def digest_of(self, key: str) -> str | None:
        """Return the digest of the content of a job that was read before; None if none with this key was.

        Raises:
            LedgerError: The ledger cannot be read.
            SkippedError: It was read, and cannot be sent.
        """
        run = self._runs.get(key)
        if run is not None and run.content is not None:
            return run.content.digest
        ended = self._ended.get(key)
        if ended is not None:
            if ended[0] is None:
                raise skipped(key, None)
            return ended[0].digest
        if key not in self._keys:
            return None
        found = await self._engine.ledger.find(self._batch, key)
        return None if found is None else found[0].digest

    def refuse(self, key: str) -> None:
        """Record that a job cannot be sent, nor what continues it, unless its key is that of an earlier job."""
        if key not in self._keys:
            self._ended.setdefault(key, (None, None, None, None))

    async def join(self, run: JobRun) -> KlingError | None:
        """Give a job the videos of its parents that have ended, and let it wait for the others (`Link.waits`).

        Nothing is awaited after it waits, so that the caller can record it before any parent ends.

        Returns:
            The error of a job that cannot be sent; None without one.
        """
        try:
            error = await self._join(run)
        except BaseException as caught:
            self._engine.money.release((run.batch, run.key))
            if not isinstance(caught, KlingError):
                raise
            error = caught
        if error is not None:
            self._ended[run.key] = run.content, None, None, error.message
        return error

    async def _join(self, run: JobRun) -> KlingError | None:
        require_decoder()
        parents = run.content_read.parents
        if not await self._is_to_be_sent(run):
            return None
        if self._engine.money.counts(run.budget, run.job.caller) and any(key in self._runs for key in parents):
            await self._reserve(run, parents)
        while self._waiting >= self._most:
            self._fewer.clear()
            with self._drain:
                await self._fewer.wait()
        return await self._wait(run, parents)

    async def _reserve(self, run: JobRun, parents: tuple[str, ...]) -> None:
        """Reserve the price of a job that waits: a film that begins later cannot use up what this one costs.

        Raises:
            BudgetExceededError: The budget does not cover it.
            PriceUnknownError: Neither the catalogue nor the service has a price.
            SkippedError: The batch was drained.
        """
        money = self._engine.money
        with self._drain:
            for key in parents:
                parent = self._runs.get(key)
                if parent is None or parent.prediction_id is not None:
                    continue
                if money.counts(parent.budget, parent.job.caller):
                    # First what it continues: that would wait for this job's money, and this job waits for it.
                    await money.until_reserved((parent.batch, key))
            await money.reserve((run.batch, run.key), run.job, run.budget)
        run.covered = True

    async def _wait(self, run: JobRun, parents: tuple[str, ...]) -> KlingError | None:
        videos: dict[str, Video] = {}
        while True:
            under_way = {key: parent for key in parents if (parent := self._runs.get(key)) is not None}
            ended = [key for key in parents if key not in under_way and key not in videos]
            if not ended:
                break
            # Others may end meanwhile.
            for key in ended:
                video = await self._video(key)
                if not isinstance(video, Video):
                    self._note_skipped(run, error := skipped(key, KlingError(video)))
                    return error
                videos[key] = video
        films = [parent.index if parent.link is None else parent.link.rank for parent in under_way.values()]
        run.link = Link(rank=min(films, default=run.index), waits=len(under_way), videos=videos)
        for parent in under_way.values():
            self._followers.setdefault(parent, []).append(run)
        self._waiting += bool(under_way)
        return None

    async def _is_to_be_sent(self, run: JobRun) -> bool:
        """Return whether a job needs its parents' videos, and record a new one, so that a resume finds it.

        Raises:
            LedgerError: The ledger cannot be used.
            KeyReusedError: The key names a job with other content.
        """
        ledger = self._engine.ledger
        if not ledger.durable:
            return True
        found = await ledger.find(run.batch, run.key)
        if found is not None:
            identity = await self._engine.contents.identity(run.batch)
            if not same_but_for_signatures(found[1], run.content_read, identity):
                raise KeyReusedError(
                    run.key,
                    advice="what it continues may have other content now, which makes another video of this one, too: "
                    "kling-async run --redo KEY of the clip that was edited makes, and pays for, all of them again",
                )
            return found[0].state.sendable
        now = self._engine.clock.now()
        await claim_job(ledger, run.batch, run.key, content=run.content_read, model=run.job.model, at=now)
        ledger.unclaim(run.batch, run.key)
        return True

    async def _video(self, key: str) -> Video | str:
        """Return the video of a job that has ended, or why it has none."""
        video: Video | None = None
        why = "it was not sent"
        if key in self._ended:
            _, prediction, saved, error = self._ended[key]
            video, why = None if prediction is None else video_of(key, prediction, saved), error or why
        elif (found := await self._engine.ledger.find(self._batch, key)) is not None:
            video, why = await video_of_row(self._engine.ledger, found[0]), f"it is {found[0].state.label}"
        return video or why

    def end(self, run: JobRun, outcome: Outcome) -> Sequence[tuple[JobRun, KlingError | None]]:
        """Record the end of a job; return those that need not wait any longer, with the error of those that it ends."""
        key, error = run.key, outcome.error
        why = None if error is None else error.message
        if self._remembers:
            self._ended[key] = run.content, outcome.prediction, outcome.saved, why
            if len(self._ended) > MAX_ENDED_IN_MEMORY:
                self._ended.popitem(last=False)
        elif self._parents and key in self._parents:
            self._ended[key] = run.content, outcome.prediction, outcome.saved, why
        return self._released(run, outcome) if run in self._followers else ()

    def _released(self, run: JobRun, outcome: Outcome) -> Sequence[tuple[JobRun, KlingError | None]]:
        """Return the jobs that waited for one that has ended alone, or that it ends."""
        waiting = [(each, each.link) for each in self._followers.pop(run) if each.link is not None]
        # Those that another parent has ended do not wait any more.
        waiting = [(each, link) for each, link in waiting if link.waits]
        prediction = outcome.prediction
        video = None if prediction is None else video_of(run.key, prediction, outcome.saved, users=len(waiting))
        released: list[tuple[JobRun, KlingError | None]] = []
        for follower, link in waiting:
            error: KlingError | None = None
            if video is None:
                link.waits = 0
                error = skipped(run.key, outcome.error)
                self._note_skipped(follower, error)
            else:
                link.waits -= 1
                link.videos = {**link.videos, run.key: video}
            if not link.waits:
                released.append((follower, error))
        self._waiting -= len(released)
        self._fewer.set()
        return released

    def _note_skipped(self, run: JobRun, error: KlingError) -> None:
        """Record that a job was not sent: the next run sends it if its parent has a video then."""
        self._engine.money.release((run.batch, run.key))
        if self._engine.ledger.durable and not run.drain.drained:
            at = self._engine.clock.now()
            self._engine.ledger.note(
                Entry(batch=run.batch, key=run.key, state=State.SKIPPED, at=at, error=error.message)
            )

    async def close(self) -> None:
        """Release the money and the videos of the jobs that were not begun: their batch was left."""
        self._followers.clear()
        for run in self._runs.values():
            if run.link is not None:
                self._engine.money.release((run.batch, run.key))
                await run.link.release()


def skipped(parent: str, cause: KlingError | None) -> SkippedError:
    """Return the error of a job that was not sent because the job that it continues has no video."""
    why = "" if cause is None else f": {cause.message}"
    error = SkippedError(
        f"never submitted: it continues the job {parent!r}, which has no video{why}",
        advice="run the batch again once that job has a video: what was paid for is not paid for again",
    )
    error.__cause__ = cause or KlingError(f"the job {parent!r} has no video")
    return error


def pairs_of(jobs: T) -> tuple[T | Pairs, Collection[str] | None]:
    """Return an input in the order in which it is run, and the keys that others continue; None if they are unknown.

    Raises:
        InvalidJobError: A job continues itself, or a job that is not there.
    """
    if isinstance(jobs, Mapping):
        pairs = in_order(cast("Mapping[Key, Job]", jobs))
        if pairs is None:
            return jobs, ()
        # What is no job is refused when it is its turn.
        chained = (job for _, job in pairs if isinstance(cast("object", job), Job))
        return pairs, {parent for job in chained for parent in job.parents}
    continued: object = getattr(jobs, "continued", None)
    if isinstance(continued, frozenset):
        # A manifest, which has parents first.
        return jobs, cast("frozenset[str]", continued)
    return jobs, None
