"""Predictions: their life from created to gone, worked out from the clock when somebody looks.

No task and no timer belongs to a prediction: its times are drawn at the submit, and its status follows from them. Tens
of thousands are cheap to hold.
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
    from .accounts import Account, Entry  # noqa: TC004 - that module imports this one

__all__ = [
    "RETENTION_SECONDS",
    "Prediction",
    "PredictionRecord",
    "PredictionStore",
    "State",
    "Timing",
    "TimingSource",
    "Verdict",
]

RETENTION_SECONDS: Final = 7 * 86400.0
"""Predictions, outputs and uploads are kept this many seconds."""

State = Literal["created", "processing", "completed", "failed", "cancelled", "canceled", "timeout", "deleted"]

_FAILURE_SECONDS: Final = 1.5
_SHORT_VIDEO: Final = 5


@attrs.frozen
class Timing:
    """How long predictions take, in seconds of the emulator's clock; times are drawn log-normally.

    Attributes:
        five: median seconds for a five-second video.
        ten: median seconds for a ten-second video; other lengths lie on the line through both.
        spread: sigma of the logarithm; 0 makes every run take the median.
        queue: least and greatest seconds a prediction stays `created`.
    """

    five: float = 75.0
    ten: float = 110.0
    spread: float = 0.25
    queue: tuple[float, float] = (1.0, 3.0)

    def draw(self, rng: random.Random, length: int) -> tuple[float, float]:
        """Seconds in the queue and seconds of work for a video of `length` seconds."""
        median = max(0.0, self.five + (self.ten - self.five) * (length - _SHORT_VIDEO) / _SHORT_VIDEO)
        return rng.uniform(*self.queue), median * math.exp(rng.gauss(0.0, self.spread))


TimingSource = Timing | float | Callable[[str, Mapping[str, object]], float]
"""`Timing`, a fixed number of seconds, or a function of model id and inputs that returns seconds."""


@attrs.frozen
class Verdict:
    """How a prediction ends when it does not complete."""

    status: State = "failed"
    code: int | None = 1405
    message: str = "Task failed."


@attrs.frozen
class PredictionRecord:
    """A prediction as it stood when asked for.

    Attributes:
        id: 32 lower-case hex digits.
        model: model id.
        key: the API key that submitted it.
        status: the service's word for its state.
        inputs: what it ran with: defaults filled in, unknown keys gone.
        created_at: Unix seconds.
        ends_at: when it ends or ended, in Unix seconds.
        code: `data.code` of a failure.
        error: text of a failure, else empty.
        webhook: the callback that was asked for.
        fingerprint: the same for the same model and inputs, as in `Charge`.
        output: URL of the video, once there is one.
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
    """One run.

    Attributes:
        id: 32 lower-case hex digits.
        account: who pays.
        model: its row of the catalogue.
        inputs: what it runs with.
        origin: base URL of the persona that took it.
        created_at: Unix seconds of the submit.
        started_at: Unix seconds when it leaves the queue.
        ends_at: Unix seconds when it ends, unless it still waits for a picture.
        price: USD.
        output: file name of the video.
        webhook: callback URL, if asked for.
        verdict: how it fails; None when it completes.
        shape: a deviation in how its results are written.
        hidden_until: until then it is not found, in Unix seconds.
        pictures: digests of its input pictures, start frame first.
        waiting: whether a picture is still being downloaded.
        deleted_at: when it was deleted, in Unix seconds.
        entry: its line in the account's books.
        fingerprint: the same for the same model and inputs; pictures count by their content where it is known.
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
    verdict: Verdict | None = None
    shape: Shape | None = None
    hidden_until: float = 0.0
    pictures: tuple[str, ...] = ()
    waiting: bool = False
    deleted_at: float | None = None
    entry: Entry | None = None
    fingerprint: str = ""

    @property
    def length(self) -> int:
        """The length of the video, in seconds."""
        seconds = self.inputs.get("duration")
        return seconds if isinstance(seconds, int) else _SHORT_VIDEO

    @property
    def milliseconds(self) -> int:
        """The time of inference, in milliseconds."""
        return round((self.ends_at - self.started_at) * 1000)

    @property
    def over_at(self) -> float | None:
        """When it freed its slot or will, in Unix seconds; None while nobody can tell."""
        ends_at = None if self.waiting else self.ends_at
        if self.deleted_at is None:
            return ends_at
        return self.deleted_at if ends_at is None else min(self.deleted_at, ends_at)

    def name(self) -> None:
        """Work out the fingerprint, once its pictures have been looked at."""
        digests = dict(zip(self.model.images_in(self.inputs), self.pictures, strict=False))
        inputs = self.inputs | {name: digest for name, digest in digests.items() if digest}
        text = json.dumps([self.model.id, inputs], sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def state(self, now: float) -> State:
        """The status at that time."""
        if self.deleted_at is not None:
            return "deleted"
        if now < self.started_at:
            return "created"
        if self.waiting or now < self.ends_at:
            return "processing"
        return "completed" if self.verdict is None else self.verdict.status

    def ended(self, now: float) -> bool:
        """Whether nothing will change any more."""
        return self.deleted_at is not None or (not self.waiting and now >= self.ends_at)

    def fail(self, verdict: Verdict, now: float) -> None:
        """Let it end with that verdict, a moment after its pictures have been looked at."""
        self.verdict = verdict
        self.ends_at = max(self.started_at, now) + _FAILURE_SECONDS

    def record(self, now: float) -> PredictionRecord:
        """The prediction as a value that does not change any more."""
        state = self.state(now)
        verdict = self.verdict if self.verdict is not None and state == self.verdict.status else None
        return PredictionRecord(
            id=self.id,
            model=self.model.id,
            key=self.account.key,
            status=state,
            inputs=dict(self.inputs),
            created_at=self.created_at,
            ends_at=self.ends_at,
            code=None if verdict is None else verdict.code,
            error="" if verdict is None else verdict.message,
            webhook=self.webhook,
            fingerprint=self.fingerprint,
            output=f"{self.origin}/output/{self.output}" if state == "completed" else None,
        )


def _created_at(prediction: Prediction) -> float:
    return prediction.created_at


@attrs.define(eq=False)
class PredictionStore:
    """All predictions of the last seven days, over all accounts.

    Attributes:
        timing: how long predictions take.
        rng: the source of times and ids.
    """

    timing: TimingSource
    rng: random.Random
    _by_id: dict[str, Prediction] = attrs.field(factory=dict)
    _by_output: dict[str, Prediction] = attrs.field(factory=dict)
    _oldest: deque[Prediction] = attrs.field(factory=deque)

    def times(self, model: Model, inputs: Mapping[str, object]) -> tuple[float, float]:
        """Seconds in the queue and seconds of work for one run."""
        if isinstance(self.timing, Timing):
            length = inputs.get("duration")
            return self.timing.draw(self.rng, length if isinstance(length, int) else _SHORT_VIDEO)
        total = self.timing if isinstance(self.timing, int | float) else self.timing(model.id, inputs)
        queue = min(1.0, total * 0.1)
        return queue, total - queue

    def name(self) -> str:
        """A fresh id: 32 lower-case hex digits."""
        return f"{self.rng.getrandbits(128):032x}"

    def file(self) -> str:
        """A fresh file name for a video."""
        return f"{uuid.UUID(int=self.rng.getrandbits(128), version=4)}.mp4"

    def add(self, prediction: Prediction) -> None:
        """Keep a prediction."""
        self._by_id[prediction.id] = prediction
        self._by_output[prediction.output] = prediction
        self._oldest.append(prediction)

    def get(self, prediction_id: str, account: Account, now: float) -> Prediction | None:
        """The prediction of that id, if it is the account's own, still kept and to be seen."""
        self.expire(now)
        prediction = self._by_id.get(prediction_id)
        if prediction is None or prediction.account is not account or now < prediction.hidden_until:
            return None
        return prediction

    def by_output(self, file: str, now: float) -> Prediction | None:
        """The completed prediction that made that file."""
        self.expire(now)
        prediction = self._by_output.get(file)
        return prediction if prediction is not None and prediction.state(now) == "completed" else None

    def drop(self, prediction: Prediction, now: float) -> None:
        """Delete a prediction: a running one stays to be seen as `deleted`, an ended one is gone.

        The money is not given back.
        """
        account = prediction.account
        if prediction.ended(now):
            self._by_id.pop(prediction.id, None)
        prediction.deleted_at = now
        self._by_output.pop(prediction.output, None)
        account.release(prediction)
        account.predictions.remove(prediction)

    def records(self, now: float) -> tuple[PredictionRecord, ...]:
        """Everything that is kept, oldest first."""
        self.expire(now)
        return tuple(prediction.record(now) for prediction in self._oldest if prediction.id in self._by_id)

    def expire(self, now: float) -> None:
        """Forget what is older than seven days."""
        horizon = now - RETENTION_SECONDS
        accounts: set[Account] = set()
        while self._oldest and self._oldest[0].created_at <= horizon:
            gone = self._oldest.popleft()
            self._by_id.pop(gone.id, None)
            self._by_output.pop(gone.output, None)
            accounts.add(gone.account)
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
        """A page of the account's predictions, newest first, and how many match in all."""
        every = account.predictions
        low = 0 if after is None else bisect.bisect_left(every, after, key=_created_at)
        high = len(every) if before is None else bisect.bisect_right(every, before, key=_created_at)
        if model is None and status is None:
            first = high - offset
            return every[max(low, first - count) : max(low, first)][::-1], max(0, high - low)
        matching = [
            prediction
            for prediction in reversed(every[low:high])
            if (model is None or prediction.model.id == model) and (status is None or prediction.state(now) == status)
        ]
        return matching[offset : offset + count], len(matching)
