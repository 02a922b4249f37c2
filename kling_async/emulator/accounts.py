"""Accounts: limits, charges and refunds.

All values are computed on request from the times recorded at submit; nothing runs in the background.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final, Literal

import attrs

from .predictions import Prediction

__all__ = ["LEVELS", "RATE_WINDOW_SECONDS", "Account", "Charge", "Entry", "Level", "LevelName", "Refusal"]

RATE_WINDOW_SECONDS: Final = 60.0
"""Length of the sliding window over which starts are counted."""

_PENDING_RECHECK_SECONDS: Final = 0.5

LevelName = Literal["bronze", "silver", "gold", "ultra"]


@attrs.frozen
class Level:
    """Limits of an account.

    Attributes:
        starts_per_minute: accepted submits within any 60 seconds.
        concurrent: predictions that have not ended.
    """

    starts_per_minute: int
    concurrent: int


LEVELS: Final[dict[LevelName, Level]] = {
    "bronze": Level(2, 2),
    "silver": Level(500, 300),
    "gold": Level(3000, 3000),
    "ultra": Level(5000, 10000),
}
"""The vendor's account levels, with the limits that its newest page gives for videos."""


@attrs.frozen
class Charge:
    """Money charged for one prediction.

    Attributes:
        prediction_id: id of the prediction.
        model: model id.
        amount: USD.
        key: API key of the charged account.
        at: time of the charge, in Unix seconds.
        refunded: True once it was refunded.
        refunded_at: time of the refund, in Unix seconds; None if not refunded.
        inputs: inputs as run: defaults filled in, unknown keys removed.
        fingerprint: equal for equal model and inputs; pictures are compared by content where it is known.
        refund_due: time at which the refund is or was due, in Unix seconds; None if no refund is due.
    """

    prediction_id: str
    model: str
    amount: Decimal
    key: str
    at: float
    refunded: bool
    refunded_at: float | None
    inputs: Mapping[str, object]
    fingerprint: str
    refund_due: float | None

    @property
    def prompt(self) -> str:
        """The prompt; empty if there was none."""
        return str(self.inputs.get("prompt", ""))


@attrs.define(eq=False)
class Entry:
    """A ledger line of an account: written at submit, updated at the refund."""

    prediction: Prediction
    amount: Decimal
    at: float
    refunded_at: float | None = None
    refund_due: float | None = None

    def charge(self) -> Charge:
        """Return an immutable copy of the line."""
        prediction = self.prediction
        return Charge(
            prediction_id=prediction.id,
            model=prediction.model.id,
            amount=self.amount,
            key=prediction.account.key,
            at=self.at,
            refunded=self.refunded_at is not None,
            refunded_at=self.refunded_at,
            inputs=dict(prediction.inputs),
            fingerprint=prediction.fingerprint,
            refund_due=self.refund_due if self.refunded_at is None and self.refundable else self.refunded_at,
        )

    @property
    def refundable(self) -> bool:
        """False if the prediction was deleted before it ended: a refund that is due is then not paid."""
        deleted_at = self.prediction.deleted_at
        return deleted_at is None or deleted_at >= self.prediction.ends_at


@attrs.frozen
class Refusal:
    """Reason for a 429.

    Attributes:
        message: text of the response.
        seconds: time until another submit can succeed.
    """

    message: str
    seconds: float


@attrs.define(eq=False)
class Account:
    """An API key with its limits, running predictions and ledger.

    Attributes:
        key: API key.
        level: limits.
        funds: USD left, without refunds that are due but not yet applied; `balance()` applies them.
        queueing: queue submits above the concurrency limit instead of refusing them.
        entries: ledger, oldest first.
        predictions: predictions of the last seven days, oldest first.
        peak: highest number of concurrent predictions so far.
    """

    key: str
    level: Level
    funds: Decimal
    queueing: bool = False
    entries: list[Entry] = attrs.field(factory=list)
    predictions: list[Prediction] = attrs.field(factory=list)
    peak: int = 0
    _running: dict[str, Prediction] = attrs.field(factory=dict)
    _ends: list[tuple[float, int, Prediction]] = attrs.field(factory=list)
    _starts: deque[float] = attrs.field(factory=deque)
    _slot_ends: list[float] = attrs.field(factory=list)
    _refunds: list[tuple[float, int, Entry]] = attrs.field(factory=list)
    _sequence: Iterator[int] = attrs.field(factory=itertools.count)

    @property
    def webhook_secret(self) -> str:
        """The secret that signs this account's webhooks; derived from the key, so equal in every run."""
        digest = hashlib.sha256(b"kling-async emulator webhook secret\0" + self.key.encode()).digest()
        return "whsec_" + base64.b64encode(digest).decode()

    def refusal(self, now: float) -> Refusal | None:
        """Return the reason to refuse a submit at `now`, or None if it is within the limits."""
        self._drop_old_starts(now)
        if len(self._starts) >= self.level.starts_per_minute:
            seconds = self._starts[0] + RATE_WINDOW_SECONDS - now if self._starts else RATE_WINDOW_SECONDS
            return Refusal(f"Rate limit exceeded: {self.level.starts_per_minute} predictions per 1 minute", seconds)
        if not self.queueing and self.unfinished(now) >= self.level.concurrent:
            seconds = self._ends[0][0] - now if self._ends else RATE_WINDOW_SECONDS
            return Refusal("You have reached your concurrency limit", seconds)
        return None

    def slot_free_at(self, now: float) -> float:
        """Return the time at which a prediction accepted at `now` gets a slot; when queueing, reserve that slot."""
        while self._slot_ends and self._slot_ends[0] <= now:
            heapq.heappop(self._slot_ends)
        if not self.queueing or len(self._slot_ends) < self.level.concurrent:
            return now
        return heapq.heappop(self._slot_ends)

    def accept(self, prediction: Prediction, now: float) -> Entry:
        """Count a prediction as started and charge its price."""
        self._starts.append(now)
        self._running[prediction.id] = prediction
        self.reschedule(prediction)
        if self.queueing:
            heapq.heappush(self._slot_ends, prediction.ends_at)
        self.predictions.append(prediction)
        self.peak = max(self.peak, self.running(now))
        entry = Entry(prediction, prediction.price, now)
        self.funds -= prediction.price
        self.entries.append(entry)
        return entry

    def reschedule(self, prediction: Prediction) -> None:
        """Record the time at which the prediction ends; call again when it changes."""
        heapq.heappush(self._ends, (prediction.ends_at, next(self._sequence), prediction))

    def release(self, prediction: Prediction) -> None:
        """Free the slot of a prediction that was deleted before its end."""
        self._running.pop(prediction.id, None)

    def unfinished(self, now: float) -> int:
        """Return the number of accepted predictions that have not ended."""
        while self._ends and self._ends[0][0] <= now:
            _, _, prediction = heapq.heappop(self._ends)
            if prediction.id not in self._running:
                continue
            if prediction.waiting:
                # It cannot end before its picture is downloaded; check again later.
                heapq.heappush(self._ends, (now + _PENDING_RECHECK_SECONDS, next(self._sequence), prediction))
            elif prediction.ends_at <= now:
                del self._running[prediction.id]
        return len(self._running)

    def running(self, now: float) -> int:
        """Return the number of predictions that occupy a slot."""
        unfinished = self.unfinished(now)
        return min(unfinished, self.level.concurrent) if self.queueing else unfinished

    def refund(self, entry: Entry, at: float) -> None:
        """Schedule the refund of a failed prediction."""
        entry.refund_due = at if entry.refund_due is None else min(at, entry.refund_due)
        heapq.heappush(self._refunds, (at, next(self._sequence), entry))

    def settle(self, now: float) -> None:
        """Apply the refunds that are due."""
        while self._refunds and self._refunds[0][0] <= now:
            due, _, entry = heapq.heappop(self._refunds)
            if entry.refunded_at is None and entry.refundable:
                entry.refunded_at = due
                self.funds += entry.amount

    def balance(self, now: float) -> Decimal:
        """Return the USD left, after applying the refunds that are due."""
        self.settle(now)
        return self.funds

    def running_history(self) -> list[tuple[float, int]]:
        """Return each change of the number of occupied slots: Unix seconds and the new number."""
        changes = Counter[float]()
        for entry in self.entries:
            prediction = entry.prediction
            changes[entry.at] += 1
            if prediction.slot_freed_at is not None:
                changes[prediction.slot_freed_at] -= 1
        unfinished, history = 0, []
        for at in sorted(changes):
            unfinished += changes[at]
            history.append((at, min(unfinished, self.level.concurrent) if self.queueing else unfinished))
        return history

    def _drop_old_starts(self, now: float) -> None:
        while self._starts and self._starts[0] <= now - RATE_WINDOW_SECONDS:
            self._starts.popleft()
