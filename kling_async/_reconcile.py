"""Finds out what became of submissions in doubt: reads the account's history, and lets `settle` decide."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async._core.errors import ApiError, LedgerError, NotInHandError, TransportError, UnsupportedError
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
from kling_async._core.states import Entry, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Prediction
    from kling_async._core.states import Row
    from kling_async._custody import Custody
    from kling_async.ledger import Ledger

log = logging.getLogger("kling_async")

SLACK = 3600.0
"""Seconds by which the service's clock, or ours at the time, may have been behind what they say."""
REMEMBERED = 6 * 86_400.0
"""Seconds after which absence from the history shows nothing: it goes back 7 days."""
BETWEEN = 5.0
"""Seconds between two looks for the same job."""
ROUNDS = 3
"""How often the history is asked for before a job is held because it cannot be read."""


class Reconciler:
    """Settles the submissions in doubt of one session, all at once: leaving one out would make the counting wrong.

    Args:
        ledger: Has the intents, and knows which ids are nobody's.
        clock: The session's clock.
        history: All predictions of the account created since a time (seconds since the epoch), and by how many seconds
            the service's clock is ahead of ours.
        grace: Seconds from the moment of doubt until an absence from the history shows something.
        sole_user: Whether nothing but this ledger uses the key: only then is an orphan of unknown input necessarily one
            of ours.
        custody: Writes down what was found out.
        adopted: Takes over what was adopted for a job that nobody waits for.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        history: Callable[[float], Awaitable[tuple[list[Prediction], float]]],
        grace: float,
        sole_user: bool,
        custody: Custody,
        adopted: Callable[[Row], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._history = history
        self._grace = grace
        self._sole_user = sole_user
        self._custody = custody
        self._adopted = adopted
        self._turn = anyio.Lock()
        self._wanted: set[tuple[str, str]] = set()
        self._ends: dict[tuple[str, str], Settlement] = {}

    async def settle(self, row: Row) -> Settlement:
        """What became of one submission; its row is moved on, unless it is held."""
        name = (row.batch, row.key)
        self._ends.pop(name, None)
        end: Settlement | None = None
        self._wanted.add(name)
        try:
            async with self._turn:
                # The round of somebody else may have settled it meanwhile.
                end = self._ends.pop(name, None)
                for attempt in range(ROUNDS):
                    if end is not None and (not isinstance(end, Held) or attempt == 0):
                        break
                    await self._until(row.updated_at + self._grace)
                    if attempt:
                        # What was on its way during the last look has arrived by now.
                        await self._clock.sleep(BETWEEN)
                    end = await self._look(name)
        finally:
            self._wanted.discard(name)
            left = self._ends.pop(name, None)
            if isinstance(left, Adopted):
                # Written down for somebody who has just stopped waiting.
                self._adopted(attrs.evolve(row, state=State.SUBMITTED, prediction_id=left.prediction_id))
        return end or Held(Doubt.WHETHER, ())

    async def _until(self, moment: float) -> None:
        left = moment - self._clock.now()
        if left > 0:
            await self._clock.sleep(left + 0.001)

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
        began = self._clock.now()
        oldest = min((row.intent_at or 0.0 for row in before), default=began)
        listed, ahead = await self._history(oldest - SLACK)
        # The intents, and after them the ids, are asked for when the history is complete: whatever it shows of this
        # session's own is then known to be an intent or known by its id.
        rows = await self._in_doubt()
        known = await self._ledger.known([prediction.id for prediction in listed])
        ends = settle(
            [self._intent(row, ahead) for row in rows],
            _orphans(listed, known, {row.fingerprint for row in rows}),
            ripe={(row.batch, row.key) for row in rows if self._ripe(row, began)},
            alone=self._sole_user,
        )
        doubtful = [(row, ends[row.batch, row.key]) for row in rows if row.state is State.UNCERTAIN]
        settled = [(row, end) for row, end in doubtful if self._ripe(row, began) or isinstance(end, Adopted)]
        # Once it is known, it is written down, whoever stops waiting for it.
        await asyncio.shield(self._custody.start(lambda: self._apply(settled), name="kling-settle"))

    async def _in_doubt(self) -> list[Row]:
        rows = await self._ledger.rows([State.INTENT, State.UNCERTAIN])
        return [row for row in rows if row.intent_at is not None]

    def _ripe(self, row: Row, began: float) -> bool:
        """Whether absence from a history that was begun to be read then shows anything."""
        return (
            row.state is State.UNCERTAIN
            and began >= row.updated_at + self._grace
            # The history forgets after 7 days.
            and began - (row.intent_at or 0.0) < REMEMBERED
        )

    def _intent(self, row: Row, ahead: float) -> Intent:
        return Intent(
            name=(row.batch, row.key),
            model=row.model,
            fingerprint=row.fingerprint or "",
            # A clock that is said to be off, or is off without saying so, only widens what may be.
            sent_from=(row.intent_at or 0.0) + min(ahead, 0.0) - SLACK,
        )

    async def _apply(self, settled: list[tuple[Row, Settlement]]) -> None:
        for row, end in settled:
            name = (row.batch, row.key)
            step = Entry(batch=row.batch, key=row.key, state=State.UNCERTAIN, at=self._clock.now())
            match end:
                case Adopted(prediction_id):
                    step = attrs.evolve(step, state=State.SUBMITTED, prediction_id=prediction_id)
                case Unaccepted():
                    step = attrs.evolve(step, state=State.PENDING, error="shown to be unaccepted")
                case Held(doubt, candidates):
                    # The time of doubt stays what it was: what changes nothing must not delay the next look.
                    known = f"{doubt.value}; candidates: {', '.join(candidates) or 'none'}"
                    step = attrs.evolve(step, at=row.updated_at, error=known)
            try:
                moved = await self._ledger.record(step)
            except NotInHandError:
                # Another worker finds out itself.
                continue
            except LedgerError as trouble:
                # It stays in doubt; the others do not.
                log.warning("what became of job %s could not be written down: %s", row.key, trouble.message)
                continue
            self._ends[name] = end
            if name not in self._wanted:
                self._ends.pop(name)
                if isinstance(end, Adopted):
                    self._adopted(moved)


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
