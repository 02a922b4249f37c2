"""Settle submissions in doubt by the account's history, its bill, and webhooks. `settle` decides."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async._core.reconciliation import (
    Adopted,
    Doubt,
    Held,
    Intent,
    Orphan,
    Settlement,
    Unaccepted,
    echoed_fingerprints,
    fingerprint,
    settle,
    without_images,
)
from kling_async._core.states import MAYBE_ACCEPTED, Entry, State
from kling_async._log import log
from kling_async.errors import (
    ApiError,
    LedgerError,
    NotFoundError,
    NotInHandError,
    PermissionDeniedError,
    TransportError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kling_async._core.account import Billing
    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Prediction
    from kling_async._core.states import Known, Row
    from kling_async._tasks import CriticalTasks
    from kling_async.ledger import Ledger

    from .senders import Senders
    from .service_time import ServiceTime

HISTORY_RETENTION_S = 6 * 86_400.0
"""Seconds for which absence from the history counts: less than the 7 days that the service keeps it."""
LOOKS_S = (5.0, 30.0)
"""Seconds after the moment of doubt at which the history is read before the grace is over: evidence of content needs
none."""
HISTORY_READ_INTERVAL_S = 5.0
"""Seconds until a history that could not be read is read again."""
BILL_WINDOW_S = 14 * 86_400.0
"""Seconds before the newest known time for which the bill is read: twice what the history keeps."""
MAX_REPLY_WAIT_S = 120.0
"""Seconds to wait for the replies to the requests that were in flight when the history was read."""
MAX_EVIDENCE = 10_000
"""Webhook tokens kept in memory."""
MAX_HISTORY_READS = 3
"""Attempts to read the history for one job after its grace, after which it is held."""


class Reconciler:
    """Settles the submissions in doubt of one session. One round covers all of them: counting needs every intent.

    Args:
        ledger: Has the intents and the known prediction ids.
        clock: The session's clock.
        senders: Tells which jobs the session's account has sent: its history says nothing about others.
        times: Tells the service's time of the session's own submissions.
        history: Returns all predictions of the account created since a time (seconds since the epoch by the service's
            clock, None for all), and the seconds by which the service's clock is ahead of ours.
        bill: Returns the account's deductions since a time (likewise).
        grace: Seconds after the moment of doubt from which absence from the history counts.
        sole_user: True if only this ledger uses the API key: an orphan of unknown input then belongs to this ledger.
        critical: Records settlements even if the caller is cancelled.
        on_settled: Called with the row of a job that was settled (submitted or pending) without a caller waiting.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        senders: Senders,
        times: ServiceTime,
        history: Callable[[float | None], Awaitable[tuple[list[Prediction], float]]],
        bill: Callable[[float], Awaitable[list[Billing]]],
        grace: float,
        sole_user: bool,
        critical: CriticalTasks,
        on_settled: Callable[[Row], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._senders = senders
        self._times = times
        self._history = history
        self._bill = bill
        self._grace = grace
        self._sole_user = sole_user
        self._critical = critical
        self._on_settled = on_settled
        self._lock = anyio.Lock()
        # Monotonic time at which each doubt was first seen here, because the system's clock may be set meanwhile.
        self._doubt_times: dict[tuple[str, str, float], float] = {}
        # Prediction id by the hash of the webhook token that came with it.
        self._evidence: dict[str, str] = {}
        self._evidence_added = asyncio.Event()
        # Monotonic time at which the last complete read of the history began.
        self._read_at = -math.inf
        self._waiting: set[tuple[str, str]] = set()
        self._results: dict[tuple[str, str], Settlement] = {}

    async def settle(self, row: Row) -> Settlement:
        """Settle one submission, record the result unless it is held, and return it.

        Args:
            row: Its row, in doubt.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        name = (row.batch, row.key)
        self._results.pop(name, None)
        self._waiting.add(name)
        since = self._in_doubt_since(row)
        try:
            if self._senders.exclude(row):
                # The history may show that its key is of this account, and that needs no grace.
                async with self._lock:
                    await self._try_round(row)
                if self._senders.exclude(row):
                    return Held(Doubt.WHETHER, ())
            for moment in (*(since + seconds for seconds in LOOKS_S if seconds < self._grace), since + self._grace):
                # The evidence of a webhook needs no grace.
                await self._wait_until(moment, unless=row.token_hash)
                async with self._lock:
                    end = await self._look(row, moment)
                if end is not None:
                    return end
            for _ in range(MAX_HISTORY_READS - 1):
                # It could not be read.
                await self._clock.sleep(HISTORY_READ_INTERVAL_S)
                async with self._lock:
                    end = await self._look(row, since + self._grace)
                if end is not None:
                    return end
        finally:
            self._waiting.discard(name)
            # Settled, and the caller was cancelled before it received the result.
            match self._results.pop(name, None):
                case Adopted(prediction_id):
                    self._on_settled(attrs.evolve(row, state=State.SUBMITTED, prediction_id=prediction_id))
                case Unaccepted():
                    self._on_settled(attrs.evolve(row, state=State.PENDING))
        return Held(Doubt.WHETHER, ())

    async def add_evidence(self, token_hash: str, prediction_id: str) -> None:
        """Settle the submission whose webhook token named a prediction.

        The token only correlates; the signature of the webhook was verified before.

        Args:
            token_hash: Digest of the token in the URL of the webhook.
            prediction_id: Id of the prediction in its body.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        if len(self._evidence) >= MAX_EVIDENCE:
            del self._evidence[next(iter(self._evidence))]
        self._evidence[token_hash] = prediction_id
        self._evidence_added.set()
        self._evidence_added = asyncio.Event()
        for row in await self._ledger.rows([State.UNCERTAIN]):
            name = (row.batch, row.key)
            if row.token_hash == token_hash and name not in self._waiting:
                async with self._lock:
                    end = await self._settle_by_webhook(row)
                    if end is not None and name in self._waiting:
                        # A caller has started to wait for it meanwhile.
                        self._results[name] = end

    async def _settle_by_webhook(self, row: Row) -> Settlement | None:
        """Settle a submission by the webhook that came with its token; return None without one."""
        id_ = self._evidence.get(row.token_hash or "")
        if id_ is None or await self._ledger.known([id_]):
            return None
        await self._record([(row, Adopted(id_))])
        return self._results.pop((row.batch, row.key), None)

    async def _webhook_evidence(self, rows: list[Row]) -> dict[tuple[str, str], str]:
        """Return the prediction ids that came with the tokens of submissions, by batch and key, without known ids."""
        found = {(row.batch, row.key): id_ for row in rows if (id_ := self._evidence.get(row.token_hash or ""))}
        known = await self._ledger.known(found.values())
        return {name: id_ for name, id_ in found.items() if id_ not in known}

    def _in_doubt_since(self, row: Row) -> float:
        """Return the monotonic time at which a doubt was first seen here."""
        return self._doubt_times.setdefault((row.batch, row.key, row.updated_at), self._clock.monotonic())

    async def _wait_until(self, moment: float, *, unless: str | None = None) -> None:
        """Wait until a monotonic time, or until a webhook comes with the token whose digest is `unless`."""
        while (remaining := moment - self._clock.monotonic()) > 0 and (unless is None or unless not in self._evidence):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cancel_on_evidence, tasks.cancel_scope)
                await self._clock.sleep(remaining + 0.001)
                tasks.cancel_scope.cancel()

    async def _cancel_on_evidence(self, scope: anyio.CancelScope) -> None:
        await self._evidence_added.wait()
        scope.cancel()

    async def _look(self, row: Row, moment: float) -> Settlement | None:
        """Look for one submission in what was read at a moment or later, and read the history if nothing was.

        Args:
            row: Its row, in doubt.
            moment: Monotonic time. Absence counts from the end of the grace on.

        Returns:
            The settlement; None if it is too early for one, or the history could not be read.
        """
        name = (row.batch, row.key)
        # A round for another job may have settled it meanwhile.
        end = self._results.pop(name, None) or await self._settle_by_webhook(row)
        if end is not None:
            return end
        await self._wait_until(moment)
        early = moment < self._in_doubt_since(row) + self._grace
        if (self._read_at < moment or not early) and not await self._try_round(row):
            return None
        end = self._results.pop(name, None)
        return end if end is not None or early else Held(Doubt.WHETHER, ())

    async def _try_round(self, row: Row) -> bool:
        """Settle all submissions in doubt as far as evidence goes; return whether the history could be read."""
        started = self._clock.monotonic()
        try:
            await self._settle_all()
        except UnsupportedError:
            return True
        except (ApiError, TransportError) as trouble:
            log.warning("the account's history could not be read to settle job %s: %s", row.key, trouble.message)
            return False
        self._read_at = started
        return True

    async def _settle_all(self) -> None:
        """Read the history, settle all submissions in doubt, and record the results.

        Raises:
            UnsupportedError: The provider has no history.
            ApiError: It does not arrive complete.
            TransportError: There was no reply.
        """
        before = await self._in_doubt()
        started, started_at = self._clock.monotonic(), self._clock.now()
        covered = {(row.batch, row.key) for row in before if not self._senders.exclude(row)}
        doubts = [row for row in before if row.state is State.UNCERTAIN and (row.batch, row.key) in covered]
        sent_from = min(map(self._sent_from, doubts), default=-math.inf)
        since = sent_from if math.isfinite(sent_from) else None
        listed, ahead = await self._history(since)
        self._times.compare(ahead)
        rows, known = await self._explained([prediction.id for prediction in listed])
        await self._senders.add({job.sender for job in known.values() if job.sender})
        rows = [row for row in rows if not self._senders.exclude(row)]
        latest = max(started_at, started_at + ahead)
        ripe = {(row.batch, row.key) for row in rows if self._ripe(row, started, latest)} & covered
        orphans = _orphans(listed, known, {row.fingerprint for row in rows})
        intents = [self._intent(row) for row in rows]
        ends = settle(intents, orphans, ripe=ripe, alone=self._sole_user, witnesses=await self._webhook_evidence(rows))
        if any(isinstance(end, Unaccepted) for end in ends.values()):
            # Before anything is sent again, the bill is checked too: it may have what the history lacks.
            newest = max((item.created_at.timestamp() for item in listed if item.created_at), default=latest)
            bill_from = min(newest, started_at) - BILL_WINDOW_S
            billed, rows = await self._billed(bill_from, {prediction.id for prediction in listed}, since, rows)
            # Webhooks may have come during the reads.
            evidence = await self._webhook_evidence(rows)
            ends = settle(intents, orphans + billed, ripe=ripe, alone=self._sole_user, witnesses=evidence)
            ends = {name: _without_billed(end, {orphan.id for orphan in billed}) for name, end in ends.items()}
        doubtful = [(row, ends[row.batch, row.key]) for row in rows if row.state is State.UNCERTAIN]
        await self._record(
            [(row, end) for row, end in doubtful if (row.batch, row.key) in ripe or isinstance(end, Adopted)]
        )

    async def _explained(self, ids: list[str]) -> tuple[list[Row], dict[str, Known]]:
        """Return the submissions in doubt, and what the ledger knows of ids that were read from the service just now.

        An unknown id may belong to a request in flight, so the replies to those are waited for.
        """
        rows = await self._in_doubt()
        known = await self._ledger.known(ids)
        in_flight = {(row.batch, row.key, row.attempt) for row in rows if row.state is State.INTENT}
        until = self._clock.monotonic() + MAX_REPLY_WAIT_S
        while len(known) < len(set(ids)) and in_flight and self._clock.monotonic() < until:
            await self._clock.sleep(1.0)
            in_flight &= {(row.batch, row.key, row.attempt) for row in await self._ledger.rows([State.INTENT])}
        # Intents first, then ids: every prediction of this ledger is then an intent or a known id. What was sent after
        # the read is neither.
        sent = {(row.batch, row.key, row.attempt) for row in rows}
        rows = [row for row in await self._in_doubt() if (row.batch, row.key, row.attempt) in sent]
        return rows, await self._ledger.known(ids)

    async def _record(self, settled: list[tuple[Row, Settlement]]) -> None:
        """Record settlements, even if the caller is cancelled."""
        await asyncio.shield(self._critical.start(lambda: self._record_in_task(settled), name="kling-settle"))

    async def _billed(
        self, since: float, listed: set[str], history_from: float | None, rows: list[Row]
    ) -> tuple[list[Orphan], list[Row]]:
        """Return the predictions of the bill that are neither in the history nor in the ledger, and the doubts left.

        Args:
            since: Start of the bill, in seconds since the epoch by the service's clock.
            listed: Ids of the history.
            history_from: Start of the history, likewise; None for all of it.
            rows: The submissions in doubt.
        """
        try:
            lines = await self._bill(since)
        except (UnsupportedError, NotFoundError, PermissionDeniedError) as trouble:
            log.debug("the bill cannot be read to confirm the history: %s", trouble.message)
            return [], rows
        billed = {
            line.prediction_id: line.created_at.timestamp() if line.created_at else None
            for line in lines
            if line.prediction_id is not None and line.kind == "deduct" and line.prediction_id not in listed
        }
        still, known = await self._explained([*billed])
        if len(known) < len(billed):
            # What the history shows by now was created after the first read of it, by others or by later jobs.
            again, _ = await self._history(history_from)
            listed = listed | {prediction.id for prediction in again}
        # A row that was sent again meanwhile is another doubt.
        sent = {(row.batch, row.key, row.attempt) for row in rows}
        rows = [row for row in still if (row.batch, row.key, row.attempt) in sent]
        unknown = {id_: at for id_, at in billed.items() if id_ not in known and id_ not in listed}
        return [Orphan(id=id_, model="", created_at=at) for id_, at in unknown.items()], rows

    async def _in_doubt(self) -> list[Row]:
        """Return the rows that are in doubt, being submitted, or given up: each may own an unknown prediction."""
        rows = await self._ledger.rows(MAYBE_ACCEPTED)
        for row in rows:
            if row.state is State.UNCERTAIN:
                self._in_doubt_since(row)
        return [row for row in rows if row.intent_at is not None]

    def _intent(self, row: Row) -> Intent:
        return Intent(
            name=(row.batch, row.key),
            model=row.model,
            fingerprint=row.fingerprint or "",
            sent_from=self._sent_from(row),
        )

    def _ripe(self, row: Row, started: float, latest: float) -> bool:
        """Return whether absence of a submission from the history counts.

        Args:
            row: The submission.
            started: Monotonic time at which the read of the history started.
            latest: The same in seconds since the epoch, by the later of our clock and the service's.
        """
        return (
            row.state is State.UNCERTAIN
            and self._senders.include(row)
            and started >= self._in_doubt_since(row) + self._grace
            # The service keeps its history for 7 days.
            and latest - (row.intent_at or 0.0) < HISTORY_RETENTION_S
        )

    def _sent_from(self, row: Row) -> float:
        """Return the earliest time, by the service's clock, at which a submission may have been accepted."""
        if row.state is not State.UNCERTAIN:
            return -math.inf
        earliest = self._times.earliest(row.batch, row.key, row.attempt, self._in_doubt_since(row))
        return -math.inf if earliest is None else earliest

    async def _record_in_task(self, settled: list[tuple[Row, Settlement]]) -> None:
        """Record settlements. Must not be cancelled."""
        for row, end in settled:
            name = (row.batch, row.key)
            # The settlement is about the version of the row that was read: a later one must not be overwritten.
            step = Entry(
                batch=row.batch, key=row.key, state=State.UNCERTAIN, at=self._clock.now(), expected_version=row.version
            )
            match end:
                case Adopted(prediction_id):
                    step = attrs.evolve(step, state=State.SUBMITTED, prediction_id=prediction_id)
                case Unaccepted():
                    step = attrs.evolve(step, state=State.PENDING, error="shown to be unaccepted")
                case Held():
                    # The time of the doubt stays, so that the next read is not delayed.
                    step = attrs.evolve(
                        step, at=row.updated_at, error=end.message, doubt=end.doubt, candidates=end.candidates
                    )
            try:
                moved = await self._ledger.record(step)
            except NotInHandError:
                # Another worker owns the row and settles it.
                continue
            except LedgerError as trouble:
                # This one stays in doubt; the others are still recorded.
                log.warning(
                    "the settlement of job %s could not be recorded, it stays in doubt: %s", row.key, trouble.message
                )
                continue
            if moved.state is not State.UNCERTAIN:
                self._doubt_times.pop((*name, row.updated_at), None)
                self._times.settled(*name, row.attempt)
            self._results[name] = end
            if name not in self._waiting:
                self._results.pop(name)
                if not isinstance(end, Held):
                    self._on_settled(moved)


def _without_billed(end: Settlement, billed: set[str]) -> Settlement:
    """Return a settlement; one by a prediction of the bill alone is held, because a bill may cover other API keys."""
    if isinstance(end, Adopted) and end.prediction_id in billed:
        return Held(Doubt.WHETHER, (end.prediction_id,))
    return end


_NONE: frozenset[str] = frozenset()


def _orphans(listed: list[Prediction], known: dict[str, Known], wanted: set[str | None]) -> list[Orphan]:
    """Return the predictions that no row has, with those of their reported fields that are reliable.

    Args:
        listed: The account's history.
        known: What the ledger knows of its own, by prediction id.
        wanted: Fingerprints of the submissions in doubt.
    """
    inputs = {prediction.id: prediction.input for prediction in listed if prediction.input is not None}
    echoes = {id_: fingerprint(echo) for id_, echo in inputs.items()}
    # Only those of orphans are compared in every form.
    others = {id_: echoed_fingerprints(echo) for id_, echo in inputs.items() if id_ not in known}
    compared = [
        (without_images(sent), without_images(echoes[id_]))
        for id_, job in known.items()
        if (sent := job.fingerprint) is not None and id_ in echoes
    ]
    faithful = bool(compared) and all(sent == echo for sent, echo in compared)
    # A service may report models under other names than it takes.
    spelled = {
        prediction.model
        for prediction in listed
        if prediction.id in known and known[prediction.id].model == prediction.model
    }
    return [
        Orphan(
            id=prediction.id,
            model=prediction.model if prediction.model in spelled else "",
            created_at=prediction.created_at.timestamp() if prediction.created_at else None,
            fingerprint=echoes.get(prediction.id) if faithful or others.get(prediction.id, _NONE) & wanted else None,
            others=others.get(prediction.id, _NONE),
        )
        for prediction in listed
        if prediction.id not in known
    ]
