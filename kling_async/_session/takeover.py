"""Rows that other processes left, and news that they publish."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from kling_async._core.clock import Clock
from kling_async._core.states import Entry, Row, State
from kling_async._submission.claims import Claims
from kling_async._submission.doubts import Doubts
from kling_async._submission.running import RunningPredictions
from kling_async._submission.submitter import Submitter
from kling_async._watching.watcher import Watcher
from kling_async.errors import LedgerError
from kling_async.ledger import Ledger, SharedLedger

if TYPE_CHECKING:
    from kling_async._core.prediction import Prediction
    from kling_async.webhooks import Delivery

log = logging.getLogger("kling_async")


@attrs.define(kw_only=True)
class Takeover:
    """Takes over what earlier or other sessions left running or in doubt.

    Attributes:
        ledger: Has the rows.
        shared: The same ledger where several processes write it; None otherwise.
        clock: The session's clock.
        claims: The jobs that this session is submitting.
        submitter: Has paid ids that the ledger did not record yet.
        doubts: Receives the evidence of webhooks.
        running: Watches what runs.
        watcher: Receives the news of webhooks.
    """

    ledger: Ledger
    shared: SharedLedger | None
    clock: Clock
    claims: Claims
    submitter: Submitter
    doubts: Doubts
    running: RunningPredictions
    watcher: Watcher

    async def take_over(self) -> None:
        """Watch what runs, and mark as uncertain what an earlier process left between intent and reply.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        for row in await self._unowned(State.INTENT):
            if (row.batch, row.key) not in self.claims:
                await self.ledger.record(
                    Entry(
                        batch=row.batch,
                        key=row.key,
                        state=State.UNCERTAIN,
                        at=self.clock.now(),
                        error="its process ended while it was being submitted",
                    )
                )
        for row in await self._unowned(State.SUBMITTED):
            if row.prediction_id is not None:
                self.running.follow(row)

    async def share(self, ledger: SharedLedger) -> None:
        """Until cancelled, take over what other sessions of a shared ledger leave, and receive their webhooks."""
        while True:
            deliveries = await ledger.published()
            try:
                for prediction, token_hash in deliveries:
                    await self._handle_update(prediction, token_hash)
                recorded = await self.submitter.record_again()
                for row in (*recorded, *await ledger.claim_unowned([State.SUBMITTED], None)):
                    self.running.follow(row)
            except LedgerError as error:
                log.warning("rows that other sessions left cannot be read: %s", error.message)

    async def deliver(self, delivery: Delivery) -> None:
        """Handle a webhook delivery whose signature was verified."""
        handled = await self._handle_update(delivery.prediction, delivery.token_hash)
        if not handled and self.shared is not None:
            # It may be another session's that shares the ledger.
            self.shared.publish(delivery.prediction, delivery.token_hash)

    async def _handle_update(self, prediction: Prediction, token_hash: str | None) -> bool:
        """Handle what a webhook says of a prediction; return whether it is watched here."""
        if token_hash is not None and not await self.ledger.known([prediction.id]):
            await self.doubts.add_evidence(token_hash, prediction.id)
        return self.watcher.tell(prediction)

    async def _unowned(self, state: State) -> list[Row]:
        """Return the rows in a state that an earlier process left, owned by this one from now on."""
        return await (self.ledger.rows([state]) if self.shared is None else self.shared.claim_unowned([state], None))
