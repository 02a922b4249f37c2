"""Accounts: who may start how much, and what it costs.

Everything here is worked out when somebody asks, from the times noted at the submit; nothing runs in the background.
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

__all__ = ["LEVELS", "WINDOW_SECONDS", "Account", "Charge", "Entry", "Level", "LevelName", "Refusal"]

WINDOW_SECONDS: Final = 60.0
"""Starts are counted over a sliding window of this many seconds."""

LevelName = Literal["bronze", "silver", "gold", "ultra"]


@attrs.frozen
class Level:
    """What an account may do at once.

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
"""The vendor's account levels, as its newest page gives them for videos."""


@attrs.frozen
class Charge:
    """Money taken for one prediction.

    Attributes:
        prediction_id: the prediction that was paid for.
        model: its model id.
        amount: USD.
        key: the API key of the account that paid.
        at: when, in Unix seconds.
        refunded: whether it was given back.
        refunded_at: when it was given back, in Unix seconds.
        inputs: what the prediction ran with: defaults filled in, unknown keys gone.
        fingerprint: the same for the same model and inputs; pictures count by their content where it is known.
        refund_due: when it is or was to be given back, in Unix seconds; None when it is not.
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
        """The prompt; empty when there was none."""
        return str(self.inputs.get("prompt", ""))


@attrs.define(eq=False)
class Entry:
    """A line of an account's books, written at the submit and marked at the refund."""

    prediction: Prediction
    amount: Decimal
    at: float
    refunded_at: float | None = None
    refund_due: float | None = None

    def charge(self) -> Charge:
        """The line as a value that does not change any more."""
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
        """Whether a refund that is due will be given: not when it was deleted before it ended."""
        deleted_at = self.prediction.deleted_at
        return deleted_at is None or deleted_at >= self.prediction.ends_at


@attrs.frozen
class Refusal:
    """Why a submit is not taken now.

    Attributes:
        message: the text of the 429.
        seconds: after how long another try can succeed.
    """

    message: str
    seconds: float


@attrs.define(eq=False)
class Account:
    """One API key with its level, its running predictions and its books.

    Attributes:
        key: the API key.
        level: what it may do at once.
        funds: USD left, not counting refunds that are due and not yet looked at; read `balance()`.
        queueing: whether a submit above the concurrency limit waits for a slot instead of being refused.
        entries: the books, oldest first.
        predictions: its predictions of the last seven days, oldest first.
        peak: the greatest number of predictions that ran at once.
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
    _slots: list[float] = attrs.field(factory=list)
    _refunds: list[tuple[float, int, Entry]] = attrs.field(factory=list)
    _numbers: Iterator[int] = attrs.field(factory=itertools.count)

    @property
    def webhook_secret(self) -> str:
        """The secret that signs this account's webhooks; the same for the same key in every run."""
        digest = hashlib.sha256(b"kling-async emulator webhook secret\0" + self.key.encode()).digest()
        return "whsec_" + base64.b64encode(digest).decode()

    def refusal(self, now: float) -> Refusal | None:
        """Why a submit at `now` would be refused, or None when it may go ahead."""
        self._forget_starts(now)
        if len(self._starts) >= self.level.starts_per_minute:
            seconds = self._starts[0] + WINDOW_SECONDS - now if self._starts else WINDOW_SECONDS
            return Refusal(f"Rate limit exceeded: {self.level.starts_per_minute} predictions per 1 minute", seconds)
        if not self.queueing and self.unfinished(now) >= self.level.concurrent:
            seconds = self._ends[0][0] - now if self._ends else WINDOW_SECONDS
            return Refusal("You have reached your concurrency limit", seconds)
        return None

    def slot(self, now: float) -> float:
        """From when a prediction that is accepted at `now` may run."""
        while self._slots and self._slots[0] <= now:
            heapq.heappop(self._slots)
        if not self.queueing or len(self._slots) < self.level.concurrent:
            return now
        return heapq.heappop(self._slots)

    def accept(self, prediction: Prediction, now: float) -> Entry:
        """Count a prediction as started and charge its price."""
        self._starts.append(now)
        self._running[prediction.id] = prediction
        self.reschedule(prediction)
        if self.queueing:
            heapq.heappush(self._slots, prediction.ends_at)
        self.predictions.append(prediction)
        self.peak = max(self.peak, self.running(now))
        entry = Entry(prediction, prediction.price, now)
        self.funds -= prediction.price
        self.entries.append(entry)
        return entry

    def reschedule(self, prediction: Prediction) -> None:
        """Note when the prediction ends; called again when that changes."""
        heapq.heappush(self._ends, (prediction.ends_at, next(self._numbers), prediction))

    def release(self, prediction: Prediction) -> None:
        """Free the slot of a prediction before its time: it was deleted."""
        self._running.pop(prediction.id, None)

    def unfinished(self, now: float) -> int:
        """How many predictions have been accepted and have not ended."""
        while self._ends and self._ends[0][0] <= now:
            _, _, prediction = heapq.heappop(self._ends)
            if prediction.id not in self._running:
                continue
            if prediction.waiting:
                # It cannot end before its picture has arrived; ask again when time has passed.
                self._ends_later(prediction, now)
            elif prediction.ends_at <= now:
                del self._running[prediction.id]
        return len(self._running)

    def _ends_later(self, prediction: Prediction, now: float) -> None:
        heapq.heappush(self._ends, (now + 0.5, next(self._numbers), prediction))

    def running(self, now: float) -> int:
        """How many predictions occupy a slot."""
        unfinished = self.unfinished(now)
        return min(unfinished, self.level.concurrent) if self.queueing else unfinished

    def refund(self, entry: Entry, at: float) -> None:
        """Give the money of a failed prediction back at that time."""
        entry.refund_due = at if entry.refund_due is None else min(at, entry.refund_due)
        heapq.heappush(self._refunds, (at, next(self._numbers), entry))

    def settle(self, now: float) -> None:
        """Carry out the refunds that are due."""
        while self._refunds and self._refunds[0][0] <= now:
            due, _, entry = heapq.heappop(self._refunds)
            if entry.refunded_at is None and entry.refundable:
                entry.refunded_at = due
                self.funds += entry.amount

    def balance(self, now: float) -> Decimal:
        """USD left at `now`."""
        self.settle(now)
        return self.funds

    def steps(self) -> list[tuple[float, int]]:
        """Each change of how many predictions occupied a slot: when, and how many from then on."""
        changes = Counter[float]()
        for entry in self.entries:
            prediction = entry.prediction
            changes[entry.at] += 1
            if prediction.over_at is not None:
                changes[prediction.over_at] -= 1
        unfinished, steps = 0, []
        for at in sorted(changes):
            unfinished += changes[at]
            steps.append((at, min(unfinished, self.level.concurrent) if self.queueing else unfinished))
        return steps

    def _forget_starts(self, now: float) -> None:
        while self._starts and self._starts[0] <= now - WINDOW_SECONDS:
            self._starts.popleft()
