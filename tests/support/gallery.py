"""Events of a run for the gallery, without a service, at times that the test chooses."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs

from kling_async import Job, Outcome, Prediction, SavedFile, Status, events
from kling_async.errors import KlingError, PredictionFailedError
from kling_async.events import Observer

START = 1_800_000_000.0
IMAGE = "https://pictures.example/face.png?signature=secret"


@attrs.define
class Script:
    """Source of job events for an observer; `at` is the time of the next event."""

    observer: Observer
    batch: str = "spring"
    at: float = START
    jobs: dict[str, Job] = attrs.field(factory=dict)

    def admitted(self, key: str, **fields: Any) -> None:
        job = self.jobs[key] = Job(**{"prompt": "Waves", "image": IMAGE, **fields})
        self.observer(events.Admitted(at=self.at, key=key, batch=self.batch, job=job))

    def accepted(self, key: str) -> None:
        prediction = self.prediction(key, Status.CREATED)
        about: dict[str, Any] = {"at": self.at, "key": key, "batch": self.batch, "job": self.jobs[key]}
        self.observer(events.Submitting(**about, attempt=1))
        self.observer(events.Accepted(**about, prediction=prediction))

    def ended(self, key: str, status: Status = Status.COMPLETED, **more: Any) -> None:
        prediction = self.prediction(key, status, **more)
        self.observer(events.Changed(at=self.at, key=key, batch=self.batch, prediction=prediction))

    def saved(self, key: str, path: Path) -> None:
        file = SavedFile(path, path.stat().st_size, "0" * 64)
        self.observer(events.Saved(at=self.at, key=key, batch=self.batch, file=file))
        self.finished(key, saved=file)

    def finished(self, key: str, error: KlingError | None = None, **more: Any) -> None:
        outcome = Outcome(job=self.jobs[key], key=key, index=0, error=error, **more)
        self.observer(events.Finished(at=self.at, key=key, batch=self.batch, outcome=outcome))

    def done(self, key: str, path: Path, *, seconds: float = 60.0, **fields: Any) -> None:
        """Send all events of a job: two seconds of waiting, `seconds` of generation, one of download."""
        begun = self.at
        self.admitted(key, **fields)
        self.at = begun + 2
        self.accepted(key)
        self.at += seconds
        self.ended(key)
        self.at += 1
        self.saved(key, path)
        self.at = begun

    def failed(self, key: str, message: str = "it broke", **fields: Any) -> None:
        self.admitted(key, **fields)
        self.accepted(key)
        self.ended(key, Status.FAILED, error=message, code=1405)
        error = PredictionFailedError(f"the prediction ended as failed: {message}", code=1405, advice="ask once more")
        self.finished(key, error, cost=Decimal("0.28"))

    @staticmethod
    def prediction(key: str, status: Status, **more: Any) -> Prediction:
        outputs = ("https://outputs.example/a.mp4?signature=secret",) if status is Status.COMPLETED else ()
        id_ = f"id-of-{key}"
        return Prediction(id=id_, key=key, status=status, raw_status=status.value, outputs=outputs, **more)
