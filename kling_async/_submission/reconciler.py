"""Settle submissions in doubt by the account's history, its bill, and webhooks. `settle` decides."""

from __future__ import annotations

import asyncio
import logging
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
    fingerprint,
    settle,
    without_images,
)
from kling_async._core.states import IN_DOUBT, Entry, State
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
    from kling_async._core.states import Row
    from kling_async._tasks import CriticalTasks
    from kling_async.ledger import Ledger

log = logging.getLogger("kling_async")

CLOCK_SLACK_S = 3600.0
"""Seconds by which the service's clock, or ours at the time of the intent, may have been wrong unnoticed."""
HISTORY_RETENTION_S = 6 * 86_400.0
"""Seconds for which absence from the history counts: less than the 7 days that the service keeps it."""
HISTORY_READ_INTERVAL_S = 5.0
"""Seconds between two reads of the history for the same job."""
MAX_SUBMIT_S = 900.0
"""Greatest number of seconds from the intent of a paid request to its doubt."""
MAX_EVIDENCE = 10_000
"""Webhook tokens kept in memory."""
MAX_HISTORY_READS = 3
"""Reads of the history for one job, after which it is held."""


class Reconciler:
    """Settles the submissions in doubt of one session. One round covers all of them: counting needs every intent.

    Args:
        ledger: Has the intents and the known prediction ids.
        clock: The session's clock.
        history: Returns all predictions of the account created since a time (seconds since the epoch), and the seconds
            by which the service's clock is ahead of ours.
        bill: Returns the account's deductions since a time (seconds since the epoch).
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
        history: Callable[[float], Awaitable[tuple[list[Prediction], float]]],
        bill: Callable[[float], Awaitable[list[Billing]]],
        grace: float,
        sole_user: bool,
        critical: CriticalTasks,
        on_settled: Callable[[Row], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
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
        end: Settlement | None = None
        self._waiting.add(name)
        ripe_at = self._in_doubt_since(row) + self._grace
        try:
            # The evidence of a webhook needs no grace.
            await self._wait_until(ripe_at, unless=row.token_hash)
            async with self._lock:
                # A round for another job may have settled it meanwhile.
                end = self._results.pop(name, None) or await self._settle_by_webhook(row)
                for attempt in range(MAX_HISTORY_READS):
                    if end is not None and (not isinstance(end, Held) or attempt == 0):
                        break
                    await self._wait_until(ripe_at)
                    if attempt:
                        # A request in flight during the last read has arrived by now.
                        await self._clock.sleep(HISTORY_READ_INTERVAL_S)
                    end = await self._try_round(name)
        finally:
            self._waiting.discard(name)
            # Settled, and the caller was cancelled before it received the result.
            match self._results.pop(name, None):
                case Adopted(prediction_id):
                    self._on_settled(attrs.evolve(row, state=State.SUBMITTED, prediction_id=prediction_id))
                case Unaccepted():
                    self._on_settled(attrs.evolve(row, state=State.PENDING))
        return end or Held(Doubt.WHETHER, ())

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

    async def _try_round(self, name: tuple[str, str]) -> Settlement | None:
        """Settle all submissions in doubt, and return the result of one; None if it was not settled."""
        try:
            await self._settle_all()
        except UnsupportedError:
            return Held(Doubt.WHETHER, ())
        except (ApiError, TransportError) as trouble:
            log.warning("the account's history could not be read to settle job %s: %s", name[1], trouble.message)
            return None
        return self._results.pop(name, None)

    async def _settle_all(self) -> None:
        """Read the history, settle all submissions in doubt, and record the results.

        Raises:
            UnsupportedError: The provider has no history.
            ApiError: It does not arrive complete.
            TransportError: There was no reply.
        """
        before = await self._in_doubt()
        started, started_at = self._clock.monotonic(), self._clock.now()
        oldest = min((self._sent_from(row, 0.0) for row in before), default=started_at)
        listed, ahead = await self._history(oldest)
        # Intents first, then ids, and both after the history: every prediction of this session in the history is then
        # an intent or a known id.
        rows = await self._in_doubt()
        known = await self._ledger.known([prediction.id for prediction in listed])
        orphans = _orphans(listed, known, {row.fingerprint for row in rows})
        ripe = {(row.batch, row.key) for row in rows if self._ripe(row, started, max(started_at, started_at + ahead))}
        intents = [
            Intent(
                name=(row.batch, row.key),
                model=row.model,
                fingerprint=row.fingerprint or "",
                sent_from=self._sent_from(row, ahead),
            )
            for row in rows
        ]
        ends = settle(intents, orphans, ripe=ripe, alone=self._sole_user, witnesses=await self._webhook_evidence(rows))
        if any(isinstance(end, Unaccepted) for end in ends.values()):
            # Before anything is sent again, the bill is checked too: it may have what the history lacks. Deductions
            # after the start of the read belong to no ripe intent, and their replies may be in flight.
            shown = {prediction.id for prediction in listed}
            billed = [
                orphan
                for orphan in await self._billed(oldest, shown)
                if orphan.created_at is None or orphan.created_at <= started_at + ahead
            ]
            # Webhooks may have come during the reads.
            evidence = await self._webhook_evidence(rows)
            ends = settle(intents, orphans + billed, ripe=ripe, alone=self._sole_user, witnesses=evidence)
            ends = {name: _without_billed(end, {orphan.id for orphan in billed}) for name, end in ends.items()}
        doubtful = [(row, ends[row.batch, row.key]) for row in rows if row.state is State.UNCERTAIN]
        await self._record(
            [(row, end) for row, end in doubtful if (row.batch, row.key) in ripe or isinstance(end, Adopted)]
        )

    async def _record(self, settled: list[tuple[Row, Settlement]]) -> None:
        """Record settlements, even if the caller is cancelled."""
        await asyncio.shield(self._critical.start(lambda: self._record_in_task(settled), name="kling-settle"))

    async def _billed(self, since: float, listed: set[str]) -> list[Orphan]:
        """Return the predictions of the bill that are neither in the history nor in the ledger."""
        try:
            lines = await self._bill(since)
        except (UnsupportedError, NotFoundError, PermissionDeniedError) as trouble:
            log.debug("the bill cannot be read to confirm the history: %s", trouble.message)
            return []
        billed = {
            line.prediction_id: line.created_at.timestamp() if line.created_at else None
            for line in lines
            if line.prediction_id is not None and line.kind == "deduct" and line.prediction_id not in listed
        }
        known = await self._ledger.known(billed)
        return [Orphan(id=id_, model="", created_at=at) for id_, at in billed.items() if id_ not in known]

    async def _in_doubt(self) -> list[Row]:
        """Return the rows that are in doubt or being submitted."""
        rows = await self._ledger.rows(IN_DOUBT)
        for row in rows:
            if row.state is State.UNCERTAIN:
                self._in_doubt_since(row)
        return [row for row in rows if row.intent_at is not None]

    def _ripe(self, row: Row, started: float, latest: float) -> bool:
        """Return whether absence of a submission from the history counts.

        Args:
            row: The submission.
            started: Monotonic time at which the read of the history started.
            latest: The same in seconds since the epoch, by the later of our clock and the service's.
        """
        return (
            row.state is State.UNCERTAIN
            and started >= self._in_doubt_since(row) + self._grace
            # The service keeps its history for 7 days.
            and latest - (row.intent_at or 0.0) < HISTORY_RETENTION_S
        )

    def _sent_from(self, row: Row, ahead: float) -> float:
        """Return the earliest time, by the service's clock, at which a submission may have been accepted.

        Known or possible clock errors only make it earlier. Not detected: a clock that was more than `CLOCK_SLACK_S`
        ahead when an earlier process recorded the intent, and is correct now.

        Args:
            row: The submission.
            ahead: Seconds by which the service's clock is ahead of ours.
        """
        sent_at = row.intent_at or 0.0
        now = self._clock.now()
        if sent_at > now + CLOCK_SLACK_S:
            # Recorded by a clock that was set back since: the intent may have any age.
            return now - HISTORY_RETENTION_S
        waited = self._clock.monotonic() - self._doubt_times.get((row.batch, row.key, row.updated_at), math.inf)
        return min(sent_at + min(ahead, 0.0), now + ahead - max(waited, 0.0) - MAX_SUBMIT_S) - CLOCK_SLACK_S

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


def _orphans(
    listed: list[Prediction], known: dict[str, tuple[str | None, str]], wanted: set[str | None]
) -> list[Orphan]:
    """Return the predictions that no row has, with those of their reported fields that are reliable.

    Args:
        listed: The account's history.
        known: Fingerprint and model of ledger rows, by prediction id.
        wanted: Fingerprints of the submissions in doubt.
    """
    echoes = {prediction.id: fingerprint(prediction.input) for prediction in listed if prediction.input is not None}
    compared = [
        (without_images(sent), without_images(echoes[id_]))
        for id_, (sent, _) in known.items()
        if sent is not None and id_ in echoes
    ]
    faithful = bool(compared) and all(sent == echo for sent, echo in compared)
    # A service may report models under other names than it takes.
    spelled = {prediction.model for prediction in listed if known.get(prediction.id, (None, ""))[1] == prediction.model}
    return [
        Orphan(
            id=prediction.id,
            model=prediction.model if prediction.model in spelled else "",
            created_at=prediction.created_at.timestamp() if prediction.created_at else None,
            fingerprint=echo if (echo := echoes.get(prediction.id)) in wanted or faithful else None,
        )
        for prediction in listed
        if prediction.id not in known
    ]
