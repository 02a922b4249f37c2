"""The course of one job: claim, price, image, slot, submit, watch."""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractAsyncContextManager, nullcontext
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING

import attrs

from kling_async._budget.reservations import Reservations
from kling_async._core.answers import Kind
from kling_async._core.catalogue import Level
from kling_async._core.clock import Clock
from kling_async._core.content import file_digests
from kling_async._core.endings import stops
from kling_async._core.polling import Backoff
from kling_async._core.prediction import RETRYABLE_CODES, Prediction, Status
from kling_async._core.reconciliation import fingerprint
from kling_async._core.states import Entry, Row, State
from kling_async._core.submission import Accepted, Rejected, Uncertain, Verdict
from kling_async._core.video_frames import VideoFrame
from kling_async._http.reads import ServiceReads
from kling_async._images.uploads import Images, digest
from kling_async._log import log
from kling_async._observers import Observers
from kling_async._submission.claims import Claim, Claims
from kling_async._submission.doubts import Doubts
from kling_async._submission.pending import PendingSubmission
from kling_async._submission.refusals import Refusals
from kling_async._submission.running import RunningPredictions
from kling_async._submission.senders import Senders
from kling_async._submission.submitter import Submitter
from kling_async._submission.unknown import UnknownPredictions
from kling_async._tasks import CriticalTasks
from kling_async._watching.watcher import Watcher
from kling_async.errors import (
    AlreadyPaidError,
    InvalidJobError,
    KeyReusedError,
    KlingError,
    LineLostError,
    NotFoundError,
    OtherAccountError,
    PredictionExpiredError,
    Problem,
    SkippedError,
    Spent,
    SubmissionUncertainError,
)
from kling_async.events import Accepted as AcceptedEvent
from kling_async.events import Begun, Refused, Retrying, Uploaded
from kling_async.ledger import Ledger, SharedLedger
from kling_async.ledger._recall import RETENTION_S, check_images, prediction_of
from kling_async.limits import Gate, Slots
from kling_async.limits.doubts import MAX_BLIND_SUBMITS
from kling_async.providers import Provider
from kling_async.providers._v3 import is_local

from .keys import ContentReader, claim_job
from .seen import SeenJobs
from .videos import Frames

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kling_async._core.job import Job
    from kling_async._core.turns import Place

    from .job_run import JobRun

MIN_AHEAD = 8
"""Jobs whose pictures are uploaded before there are slots for them, at least."""
AHEAD_FACTOR = 2.0
"""Jobs that are prepared, as a multiple of those that start while one is: uploads take more or less time."""
MIN_PREDICTION_S = 20.0
"""Seconds that predictions take at least, for the starts to expect where the level sets no rate."""
_RETRY_BACKOFF = Backoff(first=10.0, cap=120.0)
"""Pauses before a job is submitted again after its prediction failed by the service's fault."""


@attrs.define(kw_only=True)
class JobRunner:
    """Runs the jobs of one session. Its methods are in the order in which a job passes them, helpers last.

    Attributes:
        provider: Builds requests and parses replies.
        ledger: Has one row per job.
        shared: The same ledger where several processes write it; None otherwise.
        senders: Tells which jobs the session's account has sent.
        unknown: Finds jobs whose predictions the account has and the ledger lacks.
        level: Limits of the account.
        clock: The session's clock.
        rng: Draws jitter.
        observe: Publishes events.
        claims: The jobs that are being submitted.
        contents: Reads the contents of jobs.
        seen: Decides on jobs that other batches of the ledger have paid for.
        images: Uploads images.
        frames: Takes frames of videos.
        money: Reserves prices.
        slots: The session's slots.
        gate: Session-wide back-off and rate limit.
        submitter: Sends paid requests.
        critical: Runs tasks that must not be cancelled.
        doubts: Settles submissions without a clear reply.
        running: Starts watching accepted predictions.
        watcher: Waits for predictions to end.
        reads: Reads single predictions.
        retry_failed: Times to submit a job again after its prediction failed by the service's fault.
        webhook_url: URL at which the service reaches a receiver of this session; None without one.
        cautioned: Warnings about jobs that were logged.
    """

    provider: Provider
    ledger: Ledger
    shared: SharedLedger | None
    senders: Senders
    unknown: UnknownPredictions
    level: Level
    clock: Clock
    rng: Random
    observe: Observers
    claims: Claims
    contents: ContentReader
    seen: SeenJobs
    images: Images
    frames: Frames
    money: Reservations
    slots: Slots
    gate: Gate
    submitter: Submitter
    critical: CriticalTasks
    doubts: Doubts
    running: RunningPredictions
    watcher: Watcher
    reads: ServiceReads
    retry_failed: int
    webhook_url: str | None
    cautioned: set[Problem] = attrs.field(factory=set, init=False)

    async def run(self, run: JobRun) -> Prediction:
        """Submit a job, wait for its end and return the prediction; retry one that failed by the service's fault.

        Args:
            run: The job. Ids and costs of accepted predictions are written into it.

        Raises:
            KlingError: It was refused, could not be sent, is in doubt, or has not ended at the deadline.
        """
        failed: Prediction | None = None
        while True:
            try:
                accepted = await self.submit(run)
            except (SkippedError, AlreadyPaidError):
                if failed is None:
                    raise
                return failed
            if accepted.status.ended:
                return accepted
            waiting = self.watcher.wait(accepted, deadline=run.deadline, job=run.job)
            # The watcher keeps the latest record; an old one takes more memory than the rest of a running job.
            del accepted
            failed = None
            ended = await waiting
            if run.reused:
                if ended.status is not Status.COMPLETED:
                    # Refunded to the other batch: the next run sends this job itself.
                    self._note(run, State.PENDING, error="the job whose video it was to reuse has failed")
                return attrs.evolve(ended, key=run.key)
            if ended.code not in RETRYABLE_CODES:
                return ended
            run.failures += 1
            if run.failures > self.retry_failed:
                return ended
            failed = ended
            try:
                await self._pause_before_retry(run, failed)
            except SkippedError:
                return failed

    async def submit(self, run: JobRun) -> Prediction:
        """Return the accepted prediction of a job: accepted now, or in the ledger already.

        Args:
            run: The job. Ids and costs of accepted predictions are written into it.

        Raises:
            KlingError: It was refused, could not be sent, or is in doubt.
        """
        job = run.job
        with self.claims.claim((run.batch, run.key), job) as claim:
            if run.content is None:
                run.content = await self.contents.read(job, run.batch)
            row = await claim_job(
                self.ledger, run.batch, run.key, content=run.content, model=job.model, at=self.clock.now()
            )
            row = await self.submitter.with_recorded_id(row)
            run.failures = max(run.failures, row.failures)
            retries = row.state is State.FAILED and await self._retries(run, row)
            known = row if row.state.accepted and not retries else None
            reused: Row | None = None
            try:
                if known is None and (row.state.sendable or row.state is State.REUSED):
                    known = reused = await self.seen.reusable(run, row)
                self.observe(
                    Begun,
                    at=self.clock.now(),
                    key=run.key,
                    batch=run.batch,
                    job=job,
                    known=None if known is None else known.prediction_id,
                    ended=known is not None and known.state is not State.SUBMITTED,
                )
                if row.state.in_doubt:
                    row = await self._resolve_doubt(run, row)
                    if row.state.sendable:
                        # It is to be sent like a new job.
                        reused = await self.seen.reusable(run, row)
                if reused is not None:
                    run.reused, run.cost = True, run.cost or Decimal(0)
                    await self._check_account(run, reused)
                    prediction = attrs.evolve(self._followed(reused), key=run.key)
                elif row.state.accepted and not retries:
                    prediction = await self._known(run, row)
                else:
                    prediction = await self._prepare_and_submit(run, row, claim, check=run.recalled and not retries)
            except KlingError as error:
                if isinstance(error, SkippedError) or stops(error):
                    error.job, error.key = job, run.key
                    # A drained batch leaves its rows as they are, so that it can be resumed.
                    if row.state.unsent and row.state is not State.SKIPPED and not run.drain.drained:
                        self._note(run, State.SKIPPED, error=error.message)
                raise
        if prediction.id != run.prediction_id:
            run.prediction_id = prediction.id
            usd = None if run.reused else job.price(self.provider.name).usd
            if usd is not None:
                run.cost = (run.cost or 0) + usd
        return prediction

    async def _known(self, run: JobRun, row: Row) -> Prediction:
        """Return the prediction of a job that was accepted before.

        Raises:
            PredictionExpiredError: The service has deleted it.
            OtherAccountError: It runs in another account.
        """
        if row.state is State.EXPIRED:
            raise _expired(run, row)
        await self._check_account(run, row)
        known = prediction_of(row)
        if row.state.unsaved and self.clock.now() - (row.submitted_at or row.updated_at) > RETENTION_S:
            # Our clock may be wrong, so the service decides whether it is gone.
            try:
                known = attrs.evolve(
                    await self.reads.prediction(known.id, Kind.STATUS, within=run.deadline), key=row.key
                )
            except NotFoundError as error:
                self._note(run, State.EXPIRED)
                raise _expired(run, row) from error
        return self._followed(row, known)

    async def _check_account(self, run: JobRun, row: Row) -> None:
        """Check that the session's account can read the prediction of a row, if it is running.

        Raises:
            OtherAccountError: It runs in another account.
        """
        await self.senders.learn(row)
        if row.state is State.SUBMITTED and self.senders.exclude(row):
            raise OtherAccountError(
                f"prediction {row.prediction_id} was submitted {self.senders.describe(row)}, and only that account can "
                "read it; it was not sent again",
                prediction_id=row.prediction_id,
                job=run.job,
                key=run.key,
            )

    def _followed(self, row: Row, known: Prediction | None = None) -> Prediction:
        """Return the prediction of a row, watched if it is running.

        Args:
            row: The row.
            known: Its prediction, if the service was asked for it.
        """
        if row.state is State.SUBMITTED:
            self.running.follow(row)
        return self.watcher.seen(row.prediction_id or "") or known or prediction_of(row)

    async def _resolve_doubt(self, run: JobRun, row: Row) -> Row:
        """Settle a job that an earlier submission left in doubt, and return its row. Needs no image and no slot.

        Raises:
            SubmissionUncertainError: It stays in doubt.
        """
        name = (run.batch, run.key)
        await self.money.resume(name, run.job, run.budget)
        row = await self.doubts.resolve(run.job, row)
        if row.state.accepted:
            self._publish_accepted(run, prediction_of(row))
        if not row.state.in_doubt:
            # The money goes back: a job that was not accepted reserves its price again, like any other.
            self.money.release(name)
        return row

    async def _prepare_and_submit(self, run: JobRun, row: Row, claim: Claim, *, check: bool) -> Prediction:
        """Reserve money, upload images, take a slot, submit, and return the accepted prediction.

        Args:
            run: The job.
            row: Its row in the ledger.
            claim: The claim on it.
            check: Whether to compare its image files with the ledger first.

        Raises:
            KlingError: It was refused, could not be sent, or is in doubt.
        """
        if row.state is State.ABANDONED:
            raise SubmissionUncertainError(
                row.error or "",
                sent_at=row.intent_at,
                candidates=row.candidates or (),
                given_up=True,
                job=run.job,
                key=run.key,
            )
        name, job = (run.batch, run.key), run.job
        try:
            with run.drain:
                run.drain.check(covered=run.covered)
                if check and run.content is not None:
                    await check_images(job, run.content, run.key, digest)
                self._warn(run)
                reserved = await self.money.reserve(name, job, run.budget)
                local = {place: file for place, file in job.sources.items() if not isinstance(file, str)}
                place = run.place
                if run.is_call:
                    # A batch waits in its input instead.
                    self.slots.check_queue(place.caller, job=job, key=run.key)
                async with self._preparation(local, place):
                    sent_job, image, end_image = await self._upload(run, local)
                    webhook, token_hash = self._new_webhook()
                    request = self.provider.submit(sent_job, image, end_image, webhook=webhook)
                    sent = fingerprint(sent_job.inputs(image, end_image))
                    if run.seen != "pay" and not row.attempt:
                        await self.unknown.check(sent, run.key)
                    price = job.price(self.provider.name).usd
                    slot = await self.slots.acquire(place)
            pending = PendingSubmission(
                job=job,
                key=run.key,
                batch=run.batch,
                request=request,
                fingerprint=sent,
                price=price,
                slot=slot,
                claim=claim,
                token_hash=token_hash,
                reserved=reserved,
            )
            try:
                if row.state.in_doubt:
                    found = await self.ledger.find(*name)
                    row = row if found is None else found[0]
                    if row.state.accepted:
                        # Settled meanwhile together with another job, or by a webhook.
                        self._publish_accepted(run, prediction_of(row))
                        slot.release()
                        return await self._known(run, row)
                run.drain.check(covered=run.covered)
            except BaseException:
                slot.release()
                raise
        except KlingError as error:
            raise _not_sent(error, run, row)  # noqa: B904 -- the same error, or one that has it as its cause
        try:
            return await self._submit_until_accepted(run, row, pending)
        except BaseException:
            if not pending.caller_gone:
                slot.release()
            raise

    def _warn(self, run: JobRun) -> None:
        """Log what may not be as the job expects, once per session."""
        # What a service may show otherwise is logged where an image is sent, with the name of the file.
        for caution in run.job.cautions(self.provider.name, fit=True, local=is_local(self.provider.base_url)):
            if caution not in self.cautioned:
                self.cautioned.add(caution)
                log.warning("job %s: %s", run.key, caution)

    def _preparation(
        self, local: Mapping[str, Path | bytes | VideoFrame], place: Place
    ) -> AbstractAsyncContextManager[None]:
        """Return what to wait for before a job's files are uploaded: that it is among the next to start."""
        if not local:
            return nullcontext()
        # By Little's law, this is how many jobs start during an upload and a submit.
        seconds = (self.images.turns.limit.seconds or 1.0) + self.slots.unanswered.seconds
        starts = min(self.level.starts / self.level.per, self.slots.total / MIN_PREDICTION_S) * seconds
        return self.slots.preparation(max(MIN_AHEAD, math.ceil(AHEAD_FACTOR * starts)), place)

    async def _upload(self, run: JobRun, local: Mapping[str, Path | bytes | VideoFrame]) -> tuple[Job, str, str | None]:
        """Upload a job's files, and return the job with their URLs, its first frame, or "", and its last one.

        Args:
            run: The job.
            local: Its files that have to be uploaded, and frames to be taken, by their places.
        """
        job, since = run.job, self.clock.now()
        # Reading them out of the content costs time, and URLs have none.
        digests = {} if not local or run.content is None else file_digests(run.content)
        if len(local) > 1:
            # Before the first is uploaded.
            for place, file in local.items():
                if not isinstance(file, VideoFrame):
                    await self.images.check(file, field=place)
        urls: dict[str, str] = {}
        for place, file in local.items():
            if isinstance(file, VideoFrame):
                # The digest at its place is that of the video.
                urls[place] = await self.images.url(await self.frames.take(run, place, file), field=place)
            else:
                urls[place] = await self.images.url(file, field=place, sha256=digests.get(place))
        sent = job.with_files(urls)
        self.observe(Uploaded, at=self.clock.now(), key=run.key, batch=run.batch, since=since)
        image, end_image = sent.image, sent.end_image
        return sent, image if isinstance(image, str) else "", end_image if isinstance(end_image, str) else None

    async def _submit_until_accepted(self, run: JobRun, row: Row, pending: PendingSubmission) -> Prediction:
        """Send the paid request until it is accepted, and return the prediction, which is being watched.

        Raises:
            SubmissionUncertainError: It was sent, and may have been accepted.
            SkippedError: Its batch was drained before it was sent.
            KlingError: It was refused, or could not be sent.
        """
        if row.state.in_doubt:
            await self.doubts.free_for_resubmit(pending, row)
        spent = Spent.UNKNOWN if row.state.in_doubt else Spent.NO
        refusals = Refusals(self.gate, self.clock, self.rng, spent)
        attempt = row.attempt
        while True:
            with run.drain:
                await self._admit(pending)
                await self.submitter.acquire_turn()
                try:
                    run.drain.check(covered=run.covered)
                except SkippedError:
                    self.submitter.release_turn()
                    raise
            attempt += 1
            match await self._attempt(pending, attempt):
                case Accepted(prediction):
                    return prediction
                case Rejected(error, again):
                    delay = await refusals.delay(pending, error) if again else None
                    self.observe(
                        Refused,
                        at=self.clock.now(),
                        key=run.key,
                        batch=run.batch,
                        job=run.job,
                        error=error,
                        again=delay,
                    )
                    if delay is None:
                        error.spent = refusals.spent
                        raise error
                    with run.drain:
                        await self.clock.sleep(delay)
                        await pending.slot.turn()
                case Uncertain(error):
                    try:
                        resolved = await self.doubts.resolve_sent(pending, error)
                    except SubmissionUncertainError as doubt:
                        if not self.slots.doubts.exhausted:
                            raise
                        raise _line_lost(doubt) from doubt.__cause__
                    if resolved.row.prediction_id is not None:
                        return self._accepted_in_doubt(run, pending, resolved.row.prediction_id, resolved.adopted)
                    refusals.count_lost_reply(pending, error, unaccepted=resolved.unaccepted)

    async def _admit(self, pending: PendingSubmission) -> None:
        """Wait until all sessions of a shared ledger together have room and money for the job."""
        if self.shared is not None:
            caps = self.money.caps(pending.batch, pending.reserved)
            await self.shared.admit(pending.batch, pending.key, self.level, pending.cost, caps)

    async def _attempt(self, pending: PendingSubmission, attempt: int) -> Verdict:
        """Send one request, and record and watch its result even if the caller is cancelled."""
        pending.claim.hold()

        def ended() -> None:
            self.submitter.release_turn()
            pending.claim.release()

        def orphaned(task: asyncio.Task[Verdict]) -> None:
            if task.cancelled() or task.exception() is not None or not isinstance(task.result(), Accepted):
                pending.slot.release()

        name = f"kling-submit-{pending.key}"
        try:
            return await self.critical.run(
                lambda: self._send_and_watch(pending, attempt), name=name, ended=ended, orphaned=orphaned
            )
        except asyncio.CancelledError as cancelled:
            pending.caller_gone = True
            cancelled.add_note(
                f"kling_async: job {pending.key} was being submitted; if the service accepts it, its id is recorded"
            )
            raise

    async def _send_and_watch(self, pending: PendingSubmission, attempt: int) -> Verdict:
        """Send one request, and watch the prediction if it is accepted. Must not be cancelled."""
        verdict = await self.submitter.attempt(pending, attempt)
        if isinstance(verdict, Accepted):
            self.running.start(verdict.prediction, pending)
            self._publish_accepted(pending, verdict.prediction)
        return verdict

    def _accepted_in_doubt(
        self,
        run: JobRun,
        pending: PendingSubmission,
        prediction_id: str,
        adopted: bool,  # noqa: FBT001 -- of `Resolved`
    ) -> Prediction:
        """Return the prediction that a submission in doubt turned out to be, watched."""
        prediction = Prediction(id=prediction_id, model=run.job.model, key=run.key)
        if adopted:
            self.running.start(prediction, pending)
        else:
            # It is watched already, in another slot.
            pending.slot.release()
        self._publish_accepted(run, prediction)
        return prediction

    async def _retries(self, run: JobRun, row: Row) -> bool:
        """Return whether to submit a failed job again: the fault was the service's, and its images are unchanged."""
        if row.code not in RETRYABLE_CODES or run.content is None or run.failures > self.retry_failed:
            return False
        try:
            await check_images(run.job, run.content, run.key, digest)
        except (InvalidJobError, KeyReusedError):
            return False
        return True

    async def _pause_before_retry(self, run: JobRun, failed: Prediction) -> None:
        delay = _RETRY_BACKOFF.delay(run.failures, self.rng.random())
        with run.drain:
            self.observe(
                Retrying,
                at=self.clock.now(),
                key=run.key,
                batch=run.batch,
                job=run.job,
                prediction=failed,
                again=delay,
            )
            await self.clock.sleep(delay)

    def _new_webhook(self) -> tuple[str | None, str | None]:
        """Return the webhook URL of one job, and the digest of the token in it."""
        if self.webhook_url is None:
            return None, None
        from kling_async.webhooks import new_token, token_hash, url_with  # noqa: PLC0415 -- most sessions have none

        token = new_token()
        return url_with(self.webhook_url, token), token_hash(token)

    def _note(self, run: JobRun, state: State, error: str | None = None) -> None:
        self.ledger.note(Entry(batch=run.batch, key=run.key, state=state, at=self.clock.now(), error=error))

    def _publish_accepted(self, run: JobRun | PendingSubmission, prediction: Prediction) -> None:
        self.observe(
            AcceptedEvent, at=self.clock.now(), key=run.key, batch=run.batch, job=run.job, prediction=prediction
        )


def _not_sent(error: KlingError, run: JobRun, row: Row) -> KlingError:
    """Return the error of a job that was not sent now: as given, or, if it was sent before, that it is in doubt."""
    if not row.state.in_doubt or isinstance(error, SubmissionUncertainError):
        return error
    doubt = SubmissionUncertainError(
        f"it was sent before, and it could not be determined whether it was accepted: {error.message}",
        sent_at=row.intent_at,
        job=run.job,
        key=run.key,
    )
    doubt.__cause__ = error
    return doubt


def _line_lost(doubt: SubmissionUncertainError) -> LineLostError:
    """Return the error of a job in doubt that ends its batch."""
    return LineLostError(
        f"{doubt.message}; the replies to {MAX_BLIND_SUBMITS} jobs in a row were lost",
        sent_at=doubt.sent_at,
        candidates=doubt.candidates,
        spent=doubt.spent,
        job=doubt.job,
        key=doubt.key,
        request_id=doubt.request_id,
    )


def _expired(run: JobRun, row: Row) -> PredictionExpiredError:
    return PredictionExpiredError(
        "its prediction expired before its video was saved: the service keeps predictions for 7 days",
        prediction_id=row.prediction_id,
        job=run.job,
        key=run.key,
    )
