"""Take over rows of other processes, and handle the webhooks that they publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._core.clock import Clock
from kling_async._core.states import Entry, Row, State
from kling_async._log import log
from kling_async._submission.doubts import Doubts
from kling_async._submission.running import RunningPredictions
from kling_async._submission.senders import Senders
from kling_async._submission.submitter import Submitter
from kling_async._watching.watcher import Watcher
from kling_async.errors import LedgerError
from kling_async.ledger import Ledger, SharedLedger

if TYPE_CHECKING:
    from kling_async._core.prediction import Prediction
    from kling_async.webhooks import Delivery

SHARE_RETRY_S = 1.0
"""Seconds until a shared ledger that could not be read is read again."""


@attrs.define(kw_only=True)
class Takeover:
    """Takes over rows that other sessions, earlier or running, left as submitted or in doubt.

    Attributes:
        ledger: Has the rows.
        shared: The same ledger where several processes write it; None otherwise.
        senders: Tells which jobs the session's account has sent.
        clock: The session's clock.
        submitter: Has paid ids that the ledger did not record yet.
        doubts: Settles submissions by the evidence of webhooks.
        running: Watches running predictions.
        watcher: Handles the updates of webhooks.
    """

    ledger: Ledger
    shared: SharedLedger | None
    senders: Senders
    clock: Clock
    submitter: Submitter
    doubts: Doubts
    running: RunningPredictions
    watcher: Watcher

    async def take_over(self) -> None:
        """Watch unowned running predictions, and mark unowned intents as uncertain: their process ended before a reply.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        for row in await self._unowned(State.INTENT):
            step = Entry(
                batch=row.batch,
                key=row.key,
                state=State.UNCERTAIN,
                at=self.clock.now(),
                error="its process ended while it was being submitted",
                expected_version=row.version,
            )
            try:
                await self.ledger.record(step)
            except LedgerError:
                # Its process lives, and has recorded the reply meanwhile.
                found = await self.ledger.find(row.batch, row.key)
                if found is None or found[0].version == row.version:
                    raise
        for row in await self._unowned(State.SUBMITTED):
            if row.prediction_id is not None and not self.senders.exclude(row):
                self.running.follow(row)

    async def share(self) -> None:
        """Take over rows that other sessions of a shared ledger release, and handle their webhooks, until cancelled.

        Returns at once where no other process writes the ledger.
        """
        if self.shared is None:
            return
        while True:
            try:
                deliveries = await self.shared.published()
                for prediction, token_hash in deliveries:
                    await self._handle_update(prediction, token_hash)
                recorded = await self.submitter.record_again()
                await self.senders.refresh()
                for row in (*recorded, *await self.shared.claim_unowned([State.SUBMITTED], self.senders.ids)):
                    if not self.senders.exclude(row):
                        self.running.follow(row)
            except LedgerError as error:
                log.warning("rows released by other sessions cannot be read, trying again: %s", error.message)
                await self.clock.sleep(SHARE_RETRY_S)

    async def deliver(self, delivery: Delivery) -> None:
        """Handle a verified webhook delivery."""
        handled = await self._handle_update(delivery.prediction, delivery.token_hash)
        if not handled and self.shared is not None:
            # Another session of the shared ledger may be watching it.
            self.shared.publish(delivery.prediction, delivery.token_hash)

    async def _handle_update(self, prediction: Prediction, token_hash: str | None) -> bool:
        """Handle an update of a prediction by a webhook, and return whether it changed a prediction watched here."""
        if token_hash is not None and not await self.ledger.known([prediction.id]):
            await self.doubts.add_evidence(token_hash, prediction.id)
        return self.watcher.handle_webhook(prediction)

    async def _unowned(self, state: State) -> list[Row]:
        """Claim and return the unowned rows in a state."""
        if self.shared is None:
            return await self.ledger.rows([state])
        return await self.shared.claim_unowned([state], self.senders.ids)
