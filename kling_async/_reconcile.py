"""Finds out what became of submissions in doubt: reads the account's history, and lets `settle` decide."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async._core.errors import ApiError, TransportError, UnsupportedError
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
)
from kling_async._core.states import Entry, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Prediction
    from kling_async._core.states import Row
    from kling_async.ledger import Ledger

log = logging.getLogger("kling_async")

SLACK = 30.0
"""Seconds by which the service's clock and ours may disagree after the `Date` header was taken into account."""
SUBMIT_WITHIN = 120.0
"""Seconds after an intent within which its request can still have been accepted."""
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
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        history: Callable[[float], Awaitable[tuple[list[Prediction], float]]],
        grace: float,
        sole_user: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._history = history
        self._grace = grace
        self._sole_user = sole_user
        self._turn = anyio.Lock()
        self._ends: dict[tuple[str, str], Settlement] = {}

    async def settle(self, row: Row) -> Settlement:
        """What became of one submission; its row is moved on, unless it is held."""
        name = (row.batch, row.key)
        self._ends.pop(name, None)
        async with self._turn:
            # The round of somebody else may have settled it meanwhile.
            end = self._ends.pop(name, None)
            for attempt in range(ROUNDS):
                if end is not None:
                    break
                await self._until(row.updated_at + self._grace)
                try:
                    await self._round()
                except UnsupportedError:
                    end = Held(Doubt.WHETHER, ())
                except (ApiError, TransportError) as trouble:
                    log.warning("the history could not be read to settle job %s: %s", row.key, trouble.message)
                    if attempt + 1 == ROUNDS:
                        end = Held(Doubt.WHETHER, ())
                else:
                    end = self._ends.pop(name, None)
            return end or Held(Doubt.WHETHER, ())

    async def _until(self, moment: float) -> None:
        left = moment - self._clock.now()
        if left > 0:
            await self._clock.sleep(left + 0.001)

    async def _round(self) -> None:
        rows = [row for row in await self._ledger.rows([State.INTENT, State.UNCERTAIN]) if row.intent_at is not None]
        began = self._clock.now()
        oldest = min((row.intent_at or 0.0 for row in rows), default=began)
        listed, ahead = await self._history(oldest - SLACK)
        # Ids that were recorded while the history was being read are asked for after it, so that they are known.
        known = await self._ledger.known([prediction.id for prediction in listed])
        echoes = {prediction.id: fingerprint(prediction.input) for prediction in listed if prediction.input is not None}
        compared = [(sent, echoes[id_]) for id_, sent in known.items() if sent is not None and id_ in echoes]
        faithful = bool(compared) and all(sent == echo for sent, echo in compared)
        wanted = {row.fingerprint for row in rows}
        orphans = [
            Orphan(
                id=prediction.id,
                model=prediction.model,
                created_at=prediction.created_at.timestamp() if prediction.created_at else None,
                fingerprint=echo if (echo := echoes.get(prediction.id)) in wanted or faithful else None,
            )
            for prediction in listed
            if prediction.id not in known
        ]
        intents = [
            Intent(
                name=(row.batch, row.key),
                model=row.model,
                fingerprint=row.fingerprint or "",
                # A clock that is said to be off only widens the window: too many candidates cost an answer, too few
                # cost money.
                sent_from=(row.intent_at or 0.0) + min(ahead, 0.0) - SLACK,
                sent_until=(row.intent_at or 0.0) + max(ahead, 0.0) + SUBMIT_WITHIN + SLACK,
            )
            for row in rows
        ]
        doubtful = {(row.batch, row.key): row for row in rows if row.state is State.UNCERTAIN}
        ripe = {name for name, row in doubtful.items() if began >= row.updated_at + self._grace}
        ends = settle(intents, orphans, ripe=ripe, alone=self._sole_user)
        for name, row in doubtful.items():
            if name in ripe or isinstance(ends[name], Adopted):
                await self._apply(row, ends[name])
                self._ends[name] = ends[name]

    async def _apply(self, row: Row, end: Settlement) -> None:
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
        await self._ledger.record(step)
