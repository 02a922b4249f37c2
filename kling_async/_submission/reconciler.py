"""Finds out what became of submissions in doubt: reads the account's history, and lets `settle` decide."""

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

SLACK = 3600.0
"""Seconds by which the service's clock, or ours at the time, may have been behind what they say."""
REMEMBERED = 6 * 86_400.0
"""Seconds after which absence from the history shows nothing: it goes back 7 days."""
BETWEEN = 5.0
"""Seconds between two looks for the same job."""
LONGEST = 900.0
"""Seconds that a paid request may take from its intent to its doubt."""
WITNESSES = 10_000
"""Tokens that are remembered from webhooks."""
ROUNDS = 3
"""How often the history is asked for before a job is held because it cannot be read."""


class Reconciler:
    """Settles the submissions in doubt of one session, all at once: leaving one out would make the counting wrong.

    Args:
        ledger: Has the intents, and knows which ids are nobody's.
        clock: The session's clock.
        history: All predictions of the account created since a time (seconds since the epoch), and by how many seconds
            the service's clock is ahead of ours.
        bill: Ids, models and times of what was paid for since a time, as far as the service shows it.
        grace: Seconds from the moment of doubt until an absence from the history shows something.
        sole_user: Whether nothing but this ledger uses the key: only then is an orphan of unknown input necessarily one
            of ours.
        critical: Records what was settled, whether or not the caller is cancelled.
        settled: Takes over the row of a job that nobody waits for, submitted or pending.
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
        settled: Callable[[Row], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._history = history
        self._bill = bill
        self._grace = grace
        self._sole_user = sole_user
        self._critical = critical
        self._settled = settled
        self._turn = anyio.Lock()
        # Since when each doubt is known here. Our clock may be set back or forth meanwhile, or while we are not there.
        self._since: dict[tuple[str, str, float], float] = {}
        self._witnesses: dict[str, str] = {}
        self._testified = asyncio.Event()
        self._wanted: set[tuple[str, str]] = set()
        self._ends: dict[tuple[str, str], Settlement] = {}

    async def settle(self, row: Row) -> Settlement:
        """What became of one submission; its row is moved on, unless it is held."""
        name = (row.batch, row.key)
        self._ends.pop(name, None)
        end: Settlement | None = None
        self._wanted.add(name)
        ripe_at = self._seen_since(row) + self._grace
        try:
            # What a webhook says does not get truer by waiting.
            await self._until(ripe_at, unless=row.token_hash)
            async with self._turn:
                # The round of somebody else may have settled it meanwhile.
                end = self._ends.pop(name, None) or await self._by_testimony(row)
                for attempt in range(ROUNDS):
                    if end is not None and (not isinstance(end, Held) or attempt == 0):
                        break
                    await self._until(ripe_at)
                    if attempt:
                        # What was on its way during the last look has arrived by now.
                        await self._clock.sleep(BETWEEN)
                    end = await self._look(name)
        finally:
            self._wanted.discard(name)
            # Written down for somebody who has just stopped waiting.
            match self._ends.pop(name, None):
                case Adopted(prediction_id):
                    self._settled(attrs.evolve(row, state=State.SUBMITTED, prediction_id=prediction_id))
                case Unaccepted():
                    self._settled(attrs.evolve(row, state=State.PENDING))
        return end or Held(Doubt.WHETHER, ())

    async def testify(self, token_hash: str, prediction_id: str) -> None:
        """A webhook that bore a token named a prediction: the token correlates, the signature has authenticated."""
        if len(self._witnesses) >= WITNESSES:
            del self._witnesses[next(iter(self._witnesses))]
        self._witnesses[token_hash] = prediction_id
        self._testified.set()
        self._testified = asyncio.Event()
        for row in await self._ledger.rows([State.UNCERTAIN]):
            name = (row.batch, row.key)
            if row.token_hash == token_hash and name not in self._wanted:
                async with self._turn:
                    end = await self._by_testimony(row)
                    if end is not None and name in self._wanted:
                        # Somebody has begun to wait for it meanwhile.
                        self._ends[name] = end

    async def _by_testimony(self, row: Row) -> Settlement | None:
        """What a webhook that bore the submission's token shows."""
        id_ = self._witnesses.get(row.token_hash or "")
        if id_ is None or await self._ledger.known([id_]):
            return None
        await self._write_down([(row, Adopted(id_))])
        return self._ends.pop((row.batch, row.key), None)

    async def _told(self, rows: list[Row]) -> dict[tuple[str, str], str]:
        """Ids that webhooks named and no row has, by the submission whose token they bore."""
        told = {(row.batch, row.key): id_ for row in rows if (id_ := self._witnesses.get(row.token_hash or ""))}
        known = await self._ledger.known(told.values())
        return {name: id_ for name, id_ in told.items() if id_ not in known}

    def _seen_since(self, row: Row) -> float:
        """Since when a doubt is known here, by the monotonic clock."""
        return self._since.setdefault((row.batch, row.key, row.updated_at), self._clock.monotonic())

    async def _until(self, moment: float, *, unless: str | None = None) -> None:
        """Wait until a moment of the monotonic clock, or until a webhook bore this token."""
        while (left := moment - self._clock.monotonic()) > 0 and (unless is None or unless not in self._witnesses):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._interrupt, tasks.cancel_scope)
                await self._clock.sleep(left + 0.001)
                tasks.cancel_scope.cancel()

    async def _interrupt(self, scope: anyio.CancelScope) -> None:
        await self._testified.wait()
        scope.cancel()

    async def _look(self, name: tuple[str, str]) -> Settlement | None:
        try:
            await self._round()
        except UnsupportedError:
            return Held(Doubt.WHETHER, ())
        except (ApiError, TransportError) as trouble:
            log.warning("the history could not be read to settle job %s: %s", name[1], trouble.message)
            return None
        return self._ends.pop(name, None)

    async def _round(self) -> None:
        before = await self._in_doubt()
        began, began_at = self._clock.monotonic(), self._clock.now()
        oldest = min((self._sent_from(row, 0.0) for row in before), default=began_at)
        listed, ahead = await self._history(oldest)
        # The intents, and after them the ids, are asked for when the history is complete: whatever it shows of this
        # session's own is then known to be an intent or known by its id.
        rows = await self._in_doubt()
        known = await self._ledger.known([prediction.id for prediction in listed])
        orphans = _orphans(listed, known, {row.fingerprint for row in rows})
        ripe = {(row.batch, row.key) for row in rows if self._ripe(row, began, max(began_at, began_at + ahead))}
        intents = [
            Intent(
                name=(row.batch, row.key),
                model=row.model,
                fingerprint=row.fingerprint or "",
                sent_from=self._sent_from(row, ahead),
            )
            for row in rows
        ]
        ends = settle(intents, orphans, ripe=ripe, alone=self._sole_user, witnesses=await self._told(rows))
        if any(isinstance(end, Unaccepted) for end in ends.values()):
            # A second witness, before anything is sent again: the bill may show what the history does not.
            # What was paid for after the history was begun to be read is nobody's who is ripe, and may be on its way to
            # its id this moment.
            shown = {prediction.id for prediction in listed}
            billed = [
                orphan
                for orphan in await self._billed(oldest, shown)
                if orphan.created_at is None or orphan.created_at <= began_at + ahead
            ]
            # And what webhooks have told while all of that was read.
            told = await self._told(rows)
            ends = settle(intents, orphans + billed, ripe=ripe, alone=self._sole_user, witnesses=told)
            ends = {name: _doubted(end, {orphan.id for orphan in billed}) for name, end in ends.items()}
        doubtful = [(row, ends[row.batch, row.key]) for row in rows if row.state is State.UNCERTAIN]
        await self._write_down(
            [(row, end) for row, end in doubtful if (row.batch, row.key) in ripe or isinstance(end, Adopted)]
        )

    async def _write_down(self, settled: list[tuple[Row, Settlement]]) -> None:
        # Once it is known, it is written down, whoever stops waiting for it.
        await asyncio.shield(self._critical.start(lambda: self._apply(settled), name="kling-settle"))

    async def _billed(self, since: float, listed: set[str]) -> list[Orphan]:
        """What was paid for and is neither in the history nor in the ledger."""
        try:
            lines = await self._bill(since)
        except (UnsupportedError, NotFoundError, PermissionDeniedError) as trouble:
            log.debug("the bill cannot be read as a second witness: %s", trouble.message)
            return []
        billed = {
            line.prediction_id: line.created_at.timestamp() if line.created_at else None
            for line in lines
            if line.prediction_id is not None and line.kind == "deduct" and line.prediction_id not in listed
        }
        known = await self._ledger.known(billed)
        return [Orphan(id=id_, model="", created_at=at) for id_, at in billed.items() if id_ not in known]

    async def _in_doubt(self) -> list[Row]:
        rows = await self._ledger.rows(IN_DOUBT)
        for row in rows:
            if row.state is State.UNCERTAIN:
                self._seen_since(row)
        return [row for row in rows if row.intent_at is not None]

    def _ripe(self, row: Row, began: float, latest: float) -> bool:
        """Whether absence from the history shows anything.

        Args:
            row: The submission.
            began: When the reading of the history was begun, by the monotonic clock.
            latest: The same in seconds since the epoch, by the clock that is ahead: ours or the service's.
        """
        return (
            row.state is State.UNCERTAIN
            and began >= self._seen_since(row) + self._grace
            # The history forgets after 7 days.
            and latest - (row.intent_at or 0.0) < REMEMBERED
        )

    def _sent_from(self, row: Row, ahead: float) -> float:
        """Since when it may have been accepted, by the service's clock, which is `ahead` of ours.

        A clock that is said to be off, or is off without saying so, only widens what may be. A clock that was more
        than `SLACK` ahead when an earlier process wrote the time down, and is right again, cannot be found out.
        """
        sent_at = row.intent_at or 0.0
        now = self._clock.now()
        if sent_at > now + SLACK:
            # It was written down by a clock that was set back since: any time may be the right one.
            return now - REMEMBERED
        waited = self._clock.monotonic() - self._since.get((row.batch, row.key, row.updated_at), math.inf)
        return min(sent_at + min(ahead, 0.0), now + ahead - max(waited, 0.0) - LONGEST) - SLACK

    async def _apply(self, settled: list[tuple[Row, Settlement]]) -> None:
        for row, end in settled:
            name = (row.batch, row.key)
            # Much may have happened since the row was read: what was found out is of the attempt that it stood in then.
            step = Entry(
                batch=row.batch, key=row.key, state=State.UNCERTAIN, at=self._clock.now(), expected_version=row.version
            )
            match end:
                case Adopted(prediction_id):
                    step = attrs.evolve(step, state=State.SUBMITTED, prediction_id=prediction_id)
                case Unaccepted():
                    step = attrs.evolve(step, state=State.PENDING, error="shown to be unaccepted")
                case Held():
                    # The time of doubt stays what it was: what changes nothing must not delay the next look.
                    step = attrs.evolve(
                        step, at=row.updated_at, error=end.message, doubt=end.doubt, candidates=end.candidates
                    )
            try:
                moved = await self._ledger.record(step)
            except NotInHandError:
                # Another worker finds out itself.
                continue
            except LedgerError as trouble:
                # It stays in doubt; the others do not.
                log.warning("what became of job %s could not be written down: %s", row.key, trouble.message)
                continue
            if moved.state is not State.UNCERTAIN:
                self._since.pop((*name, row.updated_at), None)
            self._ends[name] = end
            if name not in self._wanted:
                self._ends.pop(name)
                if not isinstance(end, Held):
                    self._settled(moved)


def _doubted(end: Settlement, billed: set[str]) -> Settlement:
    """A bill may be that of other keys too: it keeps a job from being sent again, and shows nothing else."""
    if isinstance(end, Adopted) and end.prediction_id in billed:
        return Held(Doubt.WHETHER, (end.prediction_id,))
    return end


def _orphans(
    listed: list[Prediction], known: dict[str, tuple[str | None, str]], wanted: set[str | None]
) -> list[Orphan]:
    """The predictions that no row has, with as much of what is said of them as may be believed."""
    echoes = {prediction.id: fingerprint(prediction.input) for prediction in listed if prediction.input is not None}
    compared = [
        (without_images(sent), without_images(echoes[id_]))
        for id_, (sent, _) in known.items()
        if sent is not None and id_ in echoes
    ]
    faithful = bool(compared) and all(sent == echo for sent, echo in compared)
    # A service may call a model otherwise than it is called in a path.
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
