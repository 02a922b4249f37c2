"""What the service knows of one run, and what a batch says of one job."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path

import attrs

from kling_async.errors import KlingError, NoOutputError, PredictionFailedError, Spent, StorageError

from .job import Job


class Status(Enum):
    """What the SDK acts on. The service's own word is kept in `Prediction.raw_status`.

    A word that is not known here means *still running*: a new word must not end a paid job.
    """

    CREATED = "created"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    DELETED = "deleted"

    # That of Enum hashes the name, in Python.
    __hash__ = object.__hash__

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self not in _RUNNING

    @classmethod
    def of(cls, word: str) -> Status:
        """The status that a word of the service stands for; both spellings of cancelled have been seen."""
        folded = word.strip().lower()
        return _WORDS.get(folded, cls.PROCESSING)


_WORDS = {status.value: status for status in Status} | {
    "canceled": Status.CANCELLED,
    "pending": Status.CREATED,
    "queued": Status.CREATED,
}

_RUNNING = (Status.CREATED, Status.PROCESSING)
_ENDS = frozenset(Status) - {*_RUNNING}

NEXT: Mapping[Status, frozenset[Status]] = {
    Status.CREATED: _ENDS | {Status.PROCESSING},
    Status.PROCESSING: _ENDS,
    **dict.fromkeys(_ENDS, frozenset()),
}
"""Where a status may go. A read that would go elsewhere is late news from a slow replica and changes nothing."""


def newer(seen: Status, read: Status) -> bool:
    """Whether `read` is news after `seen`."""
    return read in NEXT[seen]


@attrs.frozen(kw_only=True)
class Prediction:
    """The service's record of one run; plain data.

    Attributes:
        id: Opaque id.
        model: Model id; empty in minimal replies.
        status: What the SDK makes of `raw_status`.
        raw_status: The service's own word.
        outputs: URLs of the results, for Kling one MP4; kept for 7 days.
        error: The service's error text, or None.
        code: The task's error code (docs/error-codes), or None.
        nsfw: The service's content flags, one per output; a flag is data, not an error.
        created_at: When the service accepted the job; UTC.
        inference: Seconds that the generation took, or None.
        key: The job's name within its batch, set by the SDK.
        input: What the run was given, where the service says it (the list and webhooks, sometimes), or None.
        request_id: The service's id of the HTTP request that brought this.
        raw: The record as it came.
    """

    id: str
    model: str = ""
    status: Status = Status.CREATED
    raw_status: str = "created"
    outputs: tuple[str, ...] = ()
    error: str | None = None
    code: int | None = None
    nsfw: tuple[bool, ...] = ()
    created_at: datetime | None = None
    inference: float | None = None
    key: str | None = None
    input: Mapping[str, object] | None = attrs.field(default=None, repr=False, eq=False)
    request_id: str | None = None
    raw: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)

    @property
    def output(self) -> str | None:
        """The URL of the video, or None while there is none."""
        return self.outputs[0] if self.outputs else None

    def failure(self, *, job: Job | None = None) -> KlingError | None:
        """The error that this record amounts to, or None when it ran well or still runs."""
        if self.status is Status.COMPLETED:
            if self.outputs:
                return None
            return NoOutputError(
                "the service says completed and gives no output", prediction=self, job=job, key=self.key
            )
        if not self.status.ended:
            return None
        said = f": {self.error}" if self.error else ""
        number = f" with code {self.code}" if self.code else ""
        return PredictionFailedError(
            f"the prediction ended as {self.raw_status}{number}{said}",
            code=self.code,
            prediction=self,
            job=job,
            key=self.key,
            # Refunds of moderated jobs are not covered by the refund policy.
            spent=Spent.YES if self.code == MODERATION else None,
            advice=_ADVICE.get(self.code or 0, "read the service's error text"),
        )


MODERATION = 1200
"""The task code of refused content (docs/error-codes)."""

RETRIED = frozenset({5000, 5003, 5004})
"""Task codes that are the service's own trouble (docs/error-codes): neither moderation, parameters nor media."""

_ADVICE = {
    MODERATION: "change the prompt or the image",
    1400: "correct the parameters",
    1401: "correct the parameters",
    1402: "make sure that the service can download the image, or upload it again",
    1403: "ask once more",
    1405: "ask once more",
    1407: "top up the account",
    5000: "ask again after a while",
    5003: "ask again after a while",
    5004: "ask again after a while",
}


@attrs.frozen
class SavedFile:
    """An output, saved. `str()` of it says where.

    Attributes:
        location: The file, or its URL in an object store (`s3://bucket/name.mp4`).
        bytes: Its length.
        sha256: Its digest, lower-case hex.
    """

    location: Path | str
    bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """The file on the disk.

        Raises:
            StorageError: It is in an object store; `location` is its URL.
        """
        if isinstance(self.location, Path):
            return self.location
        raise StorageError(
            f"{self.location} is in an object store, not on the disk",
            target=self.location,
            advice="look at `location`; that is a URL or a path",
        )

    @property
    def address(self) -> str:
        """Where it is, wherever one stands: an absolute path, or the URL."""
        return str(self.location.absolute() if isinstance(self.location, Path) else self.location)

    def __str__(self) -> str:
        return str(self.location)

    def __fspath__(self) -> str:
        return str(self.path)


@attrs.frozen(kw_only=True)
class Outcome:
    """What a batch says of one job, once.

    Attributes:
        job: What was asked for.
        key: Its name within the batch.
        index: Its place in the input, from 0.
        prediction: The service's record, as far as there is one.
        error: Why there is no video, or no file; None when all went well.
        saved: What was saved.
        cost: USD by the price list, or None when nothing was accepted or the price is not known.
    """

    job: Job
    key: str
    index: int
    prediction: Prediction | None = None
    error: KlingError | None = None
    saved: SavedFile | None = None
    cost: Decimal | None = None

    @property
    def ok(self) -> bool:
        """Whether the video is there, and saved if that was asked for."""
        return self.error is None

    def unwrap(self) -> Prediction:
        """The completed prediction.

        Raises:
            KlingError: The job's error.
        """
        if self.error is not None:
            raise self.error
        if self.prediction is None:  # pragma: no cover -- an outcome without an error has a prediction
            raise AssertionError(self)
        return self.prediction
