"""The service's record of one run (`Prediction`) and the result of one job (`Outcome`)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path

import attrs

from kling_async.errors import KlingError, NoOutputError, PredictionFailedError, Spent, StorageError

from . import html
from .job import Job


class Status(Enum):
    """Status of a prediction. The service's own word is in `Prediction.raw_status`.

    An unknown word means *still running*: a new word must not end a paid job.
    """

    CREATED = "created"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    DELETED = "deleted"

    # Enum.__hash__ runs in Python and hashes the name; the identity is enough.
    __hash__ = object.__hash__

    @property
    def ended(self) -> bool:
        """True if the status is final."""
        return self not in _RUNNING

    @classmethod
    def of(cls, word: str) -> Status:
        """Return the status for a word of the service, which writes cancelled in both spellings."""
        return _BY_WORD.get(word.strip().lower(), cls.PROCESSING)

    @staticmethod
    def is_known(word: object) -> bool:
        """Return whether a value is one of the service's words for a status."""
        return isinstance(word, str) and word.strip().lower() in _BY_WORD


_BY_WORD = {status.value: status for status in Status} | {
    "canceled": Status.CANCELLED,
    "pending": Status.CREATED,
    "queued": Status.CREATED,
}

_RUNNING = (Status.CREATED, Status.PROCESSING)
_FINAL = frozenset(Status) - {*_RUNNING}

TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.CREATED: _FINAL | {Status.PROCESSING},
    Status.PROCESSING: _FINAL,
    **dict.fromkeys(_FINAL, frozenset()),
}
"""Possible transitions. A read with any other status is stale, from a lagging replica, and is ignored."""


def newer(seen: Status, read: Status) -> bool:
    """Return whether `read` is newer than `seen`."""
    return read in TRANSITIONS[seen]


@attrs.frozen(kw_only=True)
class Prediction:
    """The service's record of one run; plain data.

    Attributes:
        id: Opaque id.
        model: Model id; empty in minimal replies.
        status: Status, derived from `raw_status`.
        raw_status: The service's own word.
        outputs: URLs of the outputs (for Kling one MP4), valid for 7 days.
        error: The service's error text, or None.
        code: Task error code (docs/error-codes), or None.
        nsfw: The service's content flags, one per output; a flag is data, not an error.
        created_at: Time at which the service accepted the job, UTC; None if unknown.
        inference: Duration of the generation in seconds, or None.
        key: Key of the job within its batch, set by the SDK; None if unknown.
        input: Inputs of the run, which lists and webhooks sometimes include, or None.
        request_id: The service's id of the HTTP request with this record, or None.
        raw: The record as received.
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
        """URL of the video; None while there is none."""
        return self.outputs[0] if self.outputs else None

    def failure(self, *, job: Job | None = None) -> KlingError | None:
        """Return the error of a failed prediction; None if it succeeded or still runs."""
        if self.status is Status.COMPLETED:
            if self.outputs:
                return None
            return NoOutputError("the prediction completed without an output", prediction=self, job=job, key=self.key)
        if not self.status.ended:
            return None
        code = f" with code {self.code}" if self.code else ""
        text = f": {self.error[:_MAX_TEXT]}" if self.error else ""
        return PredictionFailedError(
            f"the prediction ended as {self.raw_status}{code}{text}",
            code=self.code,
            prediction=self,
            job=job,
            key=self.key,
            # The refund policy does not cover moderated jobs.
            spent=Spent.YES if self.code == MODERATION_CODE else None,
            advice=_ADVICE.get(self.code or 0, "read the service's error text"),
        )


_MAX_TEXT = 500
"""Characters of the service's text that an error quotes; `Prediction.error` has all of it."""
MODERATION_CODE = 1200
"""Task code of refused content (docs/error-codes)."""

INPUT_CODES = frozenset({MODERATION_CODE, 1400, 1401, 1402})
"""Task codes that the caller can fix: content, parameters, access to the image (docs/error-codes)."""

RETRYABLE_CODES = frozenset({5000, 5003, 5004})
"""Task codes of failures of the service itself: not content, parameters or images (docs/error-codes)."""

_ADVICE = {
    MODERATION_CODE: "change the prompt or the image",
    1400: "correct the parameters",
    1401: "correct the parameters",
    1402: "make sure that the service can download the image, or upload it again",
    1403: "submit the job again",
    1405: "submit the job again",
    1407: "top up the account",
    5000: "submit the job again later",
    5003: "submit the job again later",
    5004: "submit the job again later",
}


@attrs.frozen
class SavedFile:
    """A saved output; `str()` returns its location.

    Attributes:
        location: The file, or the URL in an object store (`s3://bucket/name.mp4`).
        bytes: Length in bytes.
        sha256: SHA-256 digest, lower-case hex.
    """

    location: Path | str
    bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """The file on disk.

        Raises:
            StorageError: The output is in an object store; use `location`.
        """
        if isinstance(self.location, Path):
            return self.location
        raise StorageError(
            f"expected a file on disk, got {self.location} in an object store",
            target=self.location,
            advice="use `location`, which is a path or a URL",
        )

    @property
    def address(self) -> str:
        """Location as an absolute path or URL."""
        return str(self.location.absolute() if isinstance(self.location, Path) else self.location)

    def __str__(self) -> str:
        return str(self.location)

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """Return a player, by which a notebook shows the file."""
        return html.video(self.location, self.bytes)


@attrs.frozen(kw_only=True)
class Outcome:
    """The result of one job of a batch.

    Attributes:
        job: The job.
        key: Key of the job within the batch.
        index: Position in the input, from 0.
        prediction: The service's record, or None if there is none.
        error: The reason for a missing video or file; None on success.
        saved: The saved output, or None if none was saved.
        cost: USD by the price list; None if nothing was accepted or the price is unknown.
        reused: True if the prediction is of another batch's job with the same content: it was not paid for again.
    """

    job: Job
    key: str
    index: int
    prediction: Prediction | None = None
    error: KlingError | None = None
    saved: SavedFile | None = None
    cost: Decimal | None = None
    reused: bool = False

    def _repr_html_(self) -> str:
        """Return the key with the video, or with the error, by which a notebook shows the outcome."""
        below = html.note(str(self.error)) if self.error is not None else ""
        if self.saved is not None:
            below += html.video(self.saved.location, self.saved.bytes)
        elif self.prediction is not None:
            below += html.note(f"prediction {self.prediction.id}: {self.prediction.raw_status}")
        return html.heading(self.key) + below

    @property
    def ok(self) -> bool:
        """True if the video exists, and is saved if that was requested."""
        return self.error is None

    def unwrap(self) -> Prediction:
        """Return the completed prediction.

        Raises:
            KlingError: The job failed; this is its error.
        """
        if self.error is not None:
            raise self.error
        if self.prediction is None:  # pragma: no cover -- an outcome without an error has a prediction
            raise AssertionError(self)
        return self.prediction
