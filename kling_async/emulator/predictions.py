"""Predictions: lifecycle and storage.

A prediction has no task and no timer. Its times are drawn at submit, and its status is computed from the clock on each
request, so tens of thousands are cheap.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import random
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

import attrs

from .catalogue import Model
from .faults import Shape

if TYPE_CHECKING:
    from .accounts import Account, Entry  # noqa: TC004 -- that module imports this one

__all__ = [
    "RETENTION_SECONDS",
    "Failure",
    "Prediction",
    "PredictionRecord",
    "PredictionStore",
    "State",
    "Timing",
    "TimingSource",
]

RETENTION_SECONDS: Final = 7 * 86400.0
"""Time for which predictions, outputs and uploads are kept."""

State = Literal["created", "processing", "completed", "failed", "cancelled", "canceled", "timeout", "deleted"]

_INPUT_FAILURE_SECONDS: Final = 1.5
_SHORT_VIDEO_SECONDS: Final = 5
_MAX_FIXED_QUEUE_SECONDS: Final = 1.0
_FIXED_QUEUE_SHARE: Final = 0.1


@attrs.frozen
class Timing:
    """Log-normal duration of predictions, in seconds of the emulator's clock.

    Attributes:
        five: median for a five-second video, in seconds.
        ten: median for a ten-second video, in seconds; other lengths are interpolated linearly.
        spread: sigma of the logarithm; 0 makes every run take the median.
        queue: minimum and maximum time in `created`, in seconds.
    """

    five: float = 75.0
    ten: float = 110.0
    spread: float = 0.25
    queue: tuple[float, float] = (1.0, 3.0)

    def draw(self, rng: random.Random, length: int) -> tuple[float, float]:
        """Draw the seconds in the queue and the seconds of work for a video of `length` seconds."""
        median = max(0.0, self.five + (self.ten - self.five) * (length - _SHORT_VIDEO_SECONDS) / _SHORT_VIDEO_SECONDS)
        return rng.uniform(*self.queue), median * math.exp(rng.gauss(0.0, self.spread))


TimingSource = Timing | float | Callable[[str, Mapping[str, object]], float]
"""`Timing`, a fixed number of seconds, or a function of model id and inputs that returns seconds."""


@attrs.frozen
class Failure:
    """Final status, `data.code` and error text of a prediction that does not complete."""

    status: State = "failed"
    code: int | None = 1405
    message: str = "Task failed."


@attrs.frozen
class PredictionRecord:
    """Immutable snapshot of a prediction.

    Attributes:
        id: 32 lower-case hex digits.
        model: model id.
        key: API key that submitted it.
        status: status on the wire.
        inputs: inputs as run: defaults filled in, unknown keys removed.
        created_at: time of the submit, in Unix seconds.
        ends_at: time of the end, past or planned, in Unix seconds.
        code: `data.code` of a failure; None otherwise.
        error: text of a failure; empty otherwise.
        webhook: callback URL; None if not requested.
        fingerprint: equal for equal model and inputs, as in `Charge`.
        output: URL of the video; None unless completed.
    """

    id: str
    model: str
    key: str
    status: State
    inputs: Mapping[str, object]
    created_at: float
    ends_at: float
    code: int | None
    error: str
    webhook: str | None
    fingerprint: str
    output: str | None


@attrs.define(eq=False)
class Prediction:
    """A prediction.

    Attributes:
        id: 32 lower-case hex digits.
        account: account that is charged.
        model: row of the catalogue.
        inputs: inputs as run.
        origin: base URL of the persona that accepted it.
        created_at: time of the submit, in Unix seconds.
        started_at: time at which it leaves the queue, in Unix seconds.
        ends_at: time at which it ends unless a picture is still being downloaded, in Unix seconds.
        price: USD.
        output: file name of the video.
        webhook: callback URL; None if not requested.
        failure: how it fails; None if it completes.
        shape: deviation of its results; None for none.
        hidden_until: time until which reads respond 404, in Unix seconds.
        pictures: digests of its input pictures, start frame first; empty strings where the content is not known.
        waiting: True while a picture is being downloaded.
        deleted_at: time of its deletion, in Unix seconds; None if not deleted.
        entry: line in the account's ledger; None before it is charged.
        fingerprint: equal for equal model and inputs; pictures are compared by content where it is known.
    """

    id: str
    account: Account
    model: Model
    inputs: dict[str, object]
    origin: str
    created_at: float
    started_at: float
    ends_at: float
    price: Decimal
    output: str
    webhook: str | None = None
    failure: Failure | None = None
    shape: Shape | None = None
    hidden_until: float = 0.0
    pictures: tuple[str, ...] = ()
    waiting: bool = False
    deleted_at: float | None = None
    entry: Entry | None = None
    fingerprint: str = ""

    @property
    def length(self) -> int:
        """Length of the video, in seconds."""
        seconds = self.inputs.get("duration")
        return seconds if isinstance(seconds, int) else _SHORT_VIDEO_SECONDS

    @property
    def inference_milliseconds(self) -> int:
        """Time of inference, in milliseconds."""
        return round((self.ends_at - self.started_at) * 1000)

    @property
    def slot_freed_at(self) -> float | None:
        """Time at which it frees or freed its slot, in Unix seconds; None while a download makes it unknown."""
        ends_at = None if self.waiting else self.ends_at
        if self.deleted_at is None:
            return ends_at
        return self.deleted_at if ends_at is None else min(self.deleted_at, ends_at)

    def set_fingerprint(self) -> None:
        """Compute the fingerprint from the inputs and the digests of the pictures."""
        pictures = self.model.pictures_in(self.inputs)
        digests = dict(zip(pictures, self.pictures, strict=False))
        lists = {name.partition(".")[0] for name in digests if "." in name}
        inputs: dict[str, object] = {name: value for name, value in self.inputs.items() if name not in lists}
        inputs |= {name: digest or pictures[name] for name, digest in digests.items()}
        text = json.dumps([self.model.id, inputs], sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def state(self, now: float) -> State:
        """Return the status at `now`."""
        if self.deleted_at is not None:
            return "deleted"
        if now < self.started_at:
            return "created"
        if self.waiting or now < self.ends_at:
            return "processing"
        return "completed" if self.failure is None else self.failure.status

    def ended(self, now: float) -> bool:
        """Return whether the status is final at `now`."""
        return self.deleted_at is not None or (not self.waiting and now >= self.ends_at)

    def fail(self, failure: Failure, now: float) -> None:
        """Set how it fails because of its pictures, and when."""
        self.failure = failure
        self.ends_at = max(self.started_at, now) + _INPUT_FAILURE_SECONDS

    def record(self, now: float) -> PredictionRecord:
        """Return an immutable snapshot at `now`."""
        state = self.state(now)
        failure = self.failure if self.failure is not None and state == self.failure.status else None
        return PredictionRecord(
            id=self.id,
            model=self.model.id,
            key=self.account.key,
            status=state,
            inputs=dict(self.inputs),
            created_at=self.created_at,
            ends_at=self.ends_at,
            code=None if failure is None else failure.code,
            error="" if failure is None else failure.message,
            webhook=self.webhook,
            fingerprint=self.fingerprint,
            output=f"{self.origin}/output/{self.output}" if state == "completed" else None,
        )


def _created_at(prediction: Prediction) -> float:
    return prediction.created_at


@attrs.define(eq=False)
class PredictionStore:
    """Predictions of the last seven days, of all accounts.

    Attributes:
        timing: duration of predictions.
        rng: source of times and ids.
    """

    timing: TimingSource
    rng: random.Random
    _by_id: dict[str, Prediction] = attrs.field(factory=dict)
    _by_output: dict[str, Prediction] = attrs.field(factory=dict)
    _oldest: deque[Prediction] = attrs.field(factory=deque)

    def draw_times(self, model: Model, inputs: Mapping[str, object]) -> tuple[float, float]:
        """Return the seconds in the queue and the seconds of work for one run."""
        if isinstance(self.timing, Timing):
            length = inputs.get("duration")
            return self.timing.draw(self.rng, length if isinstance(length, int) else _SHORT_VIDEO_SECONDS)
        total = self.timing if isinstance(self.timing, int | float) else self.timing(model.id, inputs)
        queue = min(_MAX_FIXED_QUEUE_SECONDS, total * _FIXED_QUEUE_SHARE)
        return queue, total - queue

    def new_id(self) -> str:
        """Return a new prediction id: 32 lower-case hex digits."""
        return f"{self.rng.getrandbits(128):032x}"

    def new_file_name(self, suffix: str) -> str:
        """Return a new file name for an output."""
        return f"{uuid.UUID(int=self.rng.getrandbits(128), version=4)}{suffix}"

    def add(self, prediction: Prediction) -> None:
        """Store a prediction."""
        self._by_id[prediction.id] = prediction
        self._by_output[prediction.output] = prediction
        self._oldest.append(prediction)

    def get(self, prediction_id: str, account: Account, now: float) -> Prediction | None:
        """Return the account's prediction with that id; None if it has none, or if reads still respond 404."""
        self.expire(now)
        prediction = self._by_id.get(prediction_id)
        if prediction is None or prediction.account is not account or now < prediction.hidden_until:
            return None
        return prediction

    def by_output(self, file: str, now: float) -> Prediction | None:
        """Return the completed prediction with that output file, or None."""
        self.expire(now)
        prediction = self._by_output.get(file)
        return prediction if prediction is not None and prediction.state(now) == "completed" else None

    def delete(self, prediction: Prediction, now: float) -> None:
        """Delete a prediction: a running one stays readable as `deleted`, an ended one is removed.

        It is not refunded.
        """
        account = prediction.account
        if prediction.ended(now):
            self._by_id.pop(prediction.id, None)
        prediction.deleted_at = now
        self._by_output.pop(prediction.output, None)
        account.release(prediction)
        account.predictions.remove(prediction)

    def records(self, now: float) -> tuple[PredictionRecord, ...]:
        """Return snapshots of all predictions, oldest first."""
        self.expire(now)
        return tuple(prediction.record(now) for prediction in self._oldest if prediction.id in self._by_id)

    def expire(self, now: float) -> None:
        """Remove predictions older than seven days."""
        horizon = now - RETENTION_SECONDS
        accounts: set[Account] = set()
        while self._oldest and self._oldest[0].created_at <= horizon:
            expired = self._oldest.popleft()
            self._by_id.pop(expired.id, None)
            self._by_output.pop(expired.output, None)
            accounts.add(expired.account)
        for account in accounts:
            del account.predictions[: bisect.bisect_right(account.predictions, horizon, key=_created_at)]

    @staticmethod
    def page(
        account: Account,
        now: float,
        *,
        after: float | None,
        before: float | None,
        model: str | None,
        status: str | None,
        offset: int,
        count: int,
    ) -> tuple[list[Prediction], int]:
        """Return a page of the account's predictions, newest first, and the total number of matches.

        Args:
            account: owner of the predictions.
            now: time at which `status` is compared, in Unix seconds.
            after: earliest time of submit, in Unix seconds; None for no bound.
            before: latest time of submit, in Unix seconds; None for no bound.
            model: model id; None for all.
            status: status; None for all.
            offset: number of matches to skip.
            count: maximum number to return.
        """
        predictions = account.predictions
        low = 0 if after is None else bisect.bisect_left(predictions, after, key=_created_at)
        high = len(predictions) if before is None else bisect.bisect_right(predictions, before, key=_created_at)
        if model is None and status is None:
            end = high - offset
            return predictions[max(low, end - count) : max(low, end)][::-1], max(0, high - low)
        matching = [
            prediction
            for prediction in reversed(predictions[low:high])
            if (model is None or prediction.model.id == model) and (status is None or prediction.state(now) == status)
        ]
        return matching[offset : offset + count], len(matching)
