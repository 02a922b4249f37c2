"""States of a job, the legal moves between them, and the row and the step that every ledger stores.

| State      | Label     | waiting | unsent | in doubt | open | accepted | unsaved | ended | unsuccessful | sendable | paid |
|------------|-----------|---------|--------|----------|------|----------|---------|-------|--------------|----------|------|
| PENDING    | waiting   | x       | x      |          |      |          |         |       |              | x        |      |
| CLAIMED    | waiting   | x       | x      |          |      |          |         |       |              | x        |      |
| INTENT     | sending   |         |        | x        | x    |          |         |       |              |          | x    |
| UNCERTAIN  | uncertain |         |        | x        | x    |          |         |       |              |          | x    |
| SUBMITTED  | running   |         |        |          | x    | x        | x       |       |              |          | x    |
| COMPLETED  | unsaved   |         |        |          |      | x        | x       | x     |              |          | x    |
| DOWNLOADED | saved     |         |        |          |      | x        |         | x     |              |          | x    |
| FAILED     | failed    |         |        |          |      | x        |         | x     | x            | x        |      |
| EXPIRED    | expired   |         |        |          |      | x        |         | x     | x            |          |      |
| REJECTED   | rejected  |         | x      |          |      |          |         | x     | x            | x        |      |
| SKIPPED    | skipped   |         | x      |          |      |          |         | x     |              | x        |      |
| ABANDONED  | abandoned |         |        |          |      |          |         | x     |              |          | x    |
| REUSED     | reused    |         |        |          |      |          |         | x     |              |          |      |

The label is the word that people read. Each column after it is a property of `State` and a set of this module
(`UNSENT`, `IN_DOUBT`, ...). No other module spells out a set of states.
"""  # noqa: E501 -- rows of a table

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

from .copies import changed
from .reconciliation import Doubt
from .seen import Seen

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    """State of a job."""

    PENDING = "pending"
    """Known and not sent; or shown to be unaccepted, and free to be sent again."""
    CLAIMED = "claimed"
    """Claimed by a worker and not sent."""
    INTENT = "intent"
    """The paid request may have been sent. After a crash nobody knows."""
    SUBMITTED = "submitted"
    """Accepted and paid: there is an id."""
    COMPLETED = "completed"
    """The service has the video."""
    FAILED = "failed"
    """The service ended the prediction without a video."""
    REJECTED = "rejected"
    """Certainly not accepted; the same request would be refused again."""
    UNCERTAIN = "uncertain"
    """Sent; whether it was accepted is not known."""
    SKIPPED = "skipped"
    """Not sent: its batch had stopped, or the job that it continues has no video."""
    EXPIRED = "expired"
    """The prediction or its output was deleted by the service before it was fetched."""
    DOWNLOADED = "downloaded"
    """The video is saved."""
    ABANDONED = "abandoned"
    """Given up by hand while in doubt: it may have been paid for, and is neither looked for nor sent again."""
    REUSED = "reused"
    """Not sent: the video of another batch's job with the same content was handed out for it."""

    # Enum's own hash is computed in Python, from the name.
    __hash__ = object.__hash__

    @property
    def label(self) -> str:
        """The word for the state wherever people read it; `value` is the word for machines."""
        return _LABELS.get(self, self.value)

    @property
    def waiting(self) -> bool:
        """True when the job is to be sent and no attempt of it has ended."""
        return self in WAITING

    @property
    def unsent(self) -> bool:
        """True when no request of the present attempt can have been accepted: sending it pays for nothing twice."""
        return self in UNSENT

    @property
    def in_doubt(self) -> bool:
        """True when a request was sent, or may have been, and its result is not known."""
        return self in IN_DOUBT

    @property
    def open(self) -> bool:
        """True when a prediction may be running: the job occupies one of the account's slots."""
        return self in OPEN

    @property
    def accepted(self) -> bool:
        """True when the service accepted the job: there is a paid id."""
        return self in ACCEPTED

    @property
    def unsaved(self) -> bool:
        """True when the job is paid for and its video can still be fetched."""
        return self in UNSAVED

    @property
    def ended(self) -> bool:
        """True when nothing runs and nothing is in doubt: the state changes only by a new decision."""
        return self in ENDED

    @property
    def unsuccessful(self) -> bool:
        """True when the job ended without a video for a reason of its own."""
        return self in UNSUCCESSFUL

    @property
    def sendable(self) -> bool:
        """True when a paid request may be sent from here."""
        return self in SENDABLE

    @property
    def paid(self) -> bool:
        """True when the same job in another batch would be paid for a second time: it is paid for, or may be.

        A failed job is not: the service refunds it. Neither is an expired one: there is nothing to wait for or to hand
        out, and the user knows that only another payment brings the video.
        """
        return self in PAID


MOVES: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.CLAIMED, State.INTENT, State.REJECTED, State.SKIPPED, State.REUSED}),
    State.CLAIMED: frozenset({State.PENDING, State.INTENT, State.REJECTED, State.SKIPPED, State.REUSED}),
    # Straight to an end only when the id could not be recorded in between.
    State.INTENT: frozenset(
        {
            State.PENDING,
            State.SUBMITTED,
            State.REJECTED,
            State.UNCERTAIN,
            State.COMPLETED,
            State.FAILED,
            State.ABANDONED,
        }
    ),
    State.SUBMITTED: frozenset({State.COMPLETED, State.FAILED, State.EXPIRED}),
    State.COMPLETED: frozenset({State.DOWNLOADED, State.EXPIRED}),
    State.UNCERTAIN: frozenset({State.PENDING, State.SUBMITTED, State.REJECTED, State.ABANDONED}),
    State.SKIPPED: frozenset({State.PENDING, State.INTENT, State.REJECTED, State.REUSED}),
    State.REJECTED: frozenset({State.PENDING, State.INTENT, State.SKIPPED, State.REUSED}),
    State.FAILED: frozenset({State.PENDING, State.INTENT, State.REUSED}),
    State.EXPIRED: frozenset(),
    State.DOWNLOADED: frozenset({State.COMPLETED}),
    # A paid id that turns up is never lost. Free to be sent again only by hand, as shown to be unaccepted.
    State.ABANDONED: frozenset({State.PENDING, State.SUBMITTED}),
    # The job whose video it shared has failed, or the video is gone.
    State.REUSED: frozenset({State.PENDING}),
}
"""The legal moves. Staying in a state, with more known about it, is legal too, except for an intent.

A failed job is sent again only when a retry was asked for; a downloaded one is completed again when its file is gone.
"""

WAITING = frozenset({State.PENDING, State.CLAIMED})
UNSENT = WAITING | {State.SKIPPED, State.REJECTED}
IN_DOUBT = frozenset({State.INTENT, State.UNCERTAIN})
MAYBE_ACCEPTED = IN_DOUBT | {State.ABANDONED}
"""A prediction that is in no ledger may be that of such a job: one that was given up may have been accepted too."""
OPEN = IN_DOUBT | {State.SUBMITTED}
UNSAVED = frozenset({State.SUBMITTED, State.COMPLETED})
UNSUCCESSFUL = frozenset({State.FAILED, State.EXPIRED, State.REJECTED})
ACCEPTED = UNSAVED | {State.DOWNLOADED, State.FAILED, State.EXPIRED}
ENDED = frozenset(State) - WAITING - OPEN
WITH_VIDEO = frozenset({State.COMPLETED, State.DOWNLOADED})
"""States in which the video of a job can be handed to what continues it; of a reused one see `Row.has_video`."""
WITHOUT_VIDEO = UNSUCCESSFUL | {State.SKIPPED, State.ABANDONED}
"""States in which a job has no video, and nothing that is under way brings one."""
PAID = IN_DOUBT | UNSAVED | {State.DOWNLOADED, State.ABANDONED}
SENDABLE = frozenset(state for state, moves in MOVES.items() if State.INTENT in moves)
KEPT = frozenset({State.COMPLETED, State.DOWNLOADED, State.EXPIRED, State.ABANDONED})
"""States in which a job whose key gets other content stays under another key: its prediction is paid for, or may be."""
RENEWABLE = SENDABLE - {State.CLAIMED} | {State.REUSED}
"""States in which a job can get other content: nothing that was made for it is left."""
_LABELS: Mapping[State, str] = {
    State.PENDING: "waiting",
    State.CLAIMED: "waiting",
    State.INTENT: "sending",
    State.SUBMITTED: "running",
    State.COMPLETED: "unsaved",
    State.DOWNLOADED: "saved",
}

RELEASED: Mapping[State, State] = {State.CLAIMED: State.PENDING, State.INTENT: State.UNCERTAIN}
"""State of a job after its worker has released it, where that is another one."""

RESUME_ORDER: tuple[frozenset[State], ...] = (
    frozenset({State.COMPLETED}),
    frozenset({State.SUBMITTED}),
    IN_DOUBT,
    UNSENT,
    ACCEPTED - UNSAVED | {State.ABANDONED, State.REUSED},
)
"""Order in which the jobs of a batch are resumed: first those whose videos expire, then those that cost money."""

REUSE_ORDER: tuple[State, ...] = (State.DOWNLOADED, State.COMPLETED, State.SUBMITTED)
"""States of jobs whose videos can be handed out for other jobs, those first whose videos are there the longest."""

UNFINISHED_ORDER = (*RESUME_ORDER[1:3], WAITING)
"""Of these, the jobs that are not at their end."""


# Neither an entry nor a row is ever changed. Not being frozen makes them three times as fast to make, and every job
# makes many.
@attrs.define(kw_only=True, unsafe_hash=True)
class Entry:
    """One step of one job. None means not known, or not changed.

    Attributes:
        batch: Name of the batch; empty outside a batch.
        key: Name of the job.
        state: State after the step.
        at: Seconds since the epoch.
        attempt: Number of paid requests sent for the job, this one included.
        fingerprint: Digest of the request body, with the intent.
        token_hash: Digest of the webhook token, with the intent.
        sender: Id of the sender, with the intent.
        prediction_id: The paid id.
        reused: Id of the prediction of another job whose video is handed out for it.
        cost: Price of the request in USD by the price list, with the intent.
        refunded: USD that the service gave back for the prediction.
        output: URL of the video.
        code: Error code of the task.
        error: Reason, for people to read. Nothing is decided by it.
        doubt: Kind of the doubt, while it is in doubt.
        candidates: Ids of the predictions that the job may have become, while it is in doubt.
        path: Path of the file.
        bytes: Length of the file in bytes.
        sha256: Digest of the file.
        expected_version: Version of the row that the step follows from; it is refused when the row has another one.
    """

    batch: str
    key: str
    state: State
    at: float
    attempt: int | None = None
    fingerprint: str | None = None
    token_hash: str | None = None
    sender: str | None = None
    prediction_id: str | None = None
    reused: str | None = None
    cost: Decimal | None = None
    refunded: Decimal | None = None
    output: str | None = None
    code: int | None = None
    error: str | None = None
    doubt: Doubt | None = None
    candidates: tuple[str, ...] | None = None
    path: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    expected_version: tuple[State, int] | None = None


@attrs.frozen
class Step:
    """A step of a job's history.

    Attributes:
        batch: Name of the batch; empty outside a batch.
        key: Name of the job.
        state: State after the step.
        at: Seconds since the epoch.
        attempt: Number of paid requests sent for the job by then.
        prediction_id: The paid id at that time.
        error: Reason, for people to read.
    """

    batch: str
    key: str
    state: State
    at: float
    attempt: int
    prediction_id: str | None = None
    error: str | None = None


@attrs.frozen
class Known:
    """Facts about a job, found by the id of one of its predictions.

    Attributes:
        fingerprint: Digest of the request body; None when a later attempt has replaced it.
        model: Id of the model.
        sender: Id of the sender; None when it was not recorded, or a later attempt has replaced it.
    """

    fingerprint: str | None
    model: str
    sender: str | None


@attrs.define(kw_only=True, unsafe_hash=True)
class Row:
    """A job in the ledger.

    Attributes:
        batch: Name of the batch; empty outside a batch.
        key: Name of the job.
        digest: Digest of its content, image files included.
        model: Id of the model.
        state: State.
        updated_at: Time of the last step, in seconds since the epoch.
        attempt: Number of paid requests sent for it.
        fingerprint: Digest of the last request body.
        token_hash: Digest of the last webhook token.
        sender: Id of the sender of the last paid request; None for requests of versions that did not record it.
        intent_at: Time right before the last paid request, in seconds since the epoch.
        submitted_at: Time of its acceptance, in seconds since the epoch.
        prediction_id: The paid id.
        reused: Id of the prediction of another job whose video is handed out for it, while it is reused.
        seen: Setting that it was enqueued with for what other batches have paid for; None leaves it to its worker.
        cost: Price of the last paid request in USD by the price list.
        spent: Price of all its accepted requests in USD by the price list; None as long as no price was known.
        refunded: USD of it that the service gave back.
        failures: Number of its predictions that failed.
        output: URL of the video.
        code: Error code of the task.
        error: Reason of its state, for people to read. Nothing is decided by it.
        doubt: Kind of the doubt, once it was looked for without success; kept when it is abandoned.
        candidates: Ids of the predictions that it may have become; kept when it is abandoned.
        path: Path of the file.
        bytes: Length of the file in bytes.
        sha256: Digest of the file.
        caller: Name of who asked for it; empty for nobody in particular.
        priority: Its priority among the caller's jobs.
        job: Its content as JSON, images as URLs or digests; None unless it was asked for.
        files: Paths of its image files as JSON; None unless they were asked for, or without image files.
        labels: The caller's own values as JSON; None unless they were asked for, or without any.
        frames: Keys of the jobs that its pictures are frames of as JSON; None unless asked for, or without any.
    """

    batch: str
    key: str
    digest: str
    model: str
    state: State
    updated_at: float
    attempt: int = 0
    fingerprint: str | None = None
    token_hash: str | None = None
    intent_at: float | None = None
    submitted_at: float | None = None
    prediction_id: str | None = None
    cost: Decimal | None = None
    spent: Decimal | None = None
    refunded: Decimal | None = None
    failures: int = 0
    output: str | None = None
    code: int | None = None
    error: str | None = None
    doubt: Doubt | None = None
    candidates: tuple[str, ...] = ()
    sender: str | None = None
    reused: str | None = None
    path: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    seen: Seen | None = None
    caller: str = ""
    priority: int = 0
    job: str | None = attrs.field(default=None, repr=False)
    files: str | None = attrs.field(default=None, repr=False)
    labels: str | None = attrs.field(default=None, repr=False)
    frames: str | None = attrs.field(default=None, repr=False)

    @property
    def has_video(self) -> bool:
        """True if there is a video that another job can continue; of a reused job, once its own row names that."""
        return self.state in WITH_VIDEO or (
            self.state is State.REUSED and (self.output is not None or self.path is not None)
        )

    @property
    def version(self) -> tuple[State, int]:
        """State and attempt: what was read of a row holds as long as these are the same."""
        return self.state, self.attempt

    def after(self, entry: Entry) -> Row:
        """Return the row as the step leaves it.

        Raises:
            ValueError: The move is not legal, or the row has another version than the step follows from.
        """
        return changed(self, **self.changes(entry))

    def changes(self, entry: Entry) -> dict[str, Any]:
        """Return the attributes that the step changes, with their new values.

        Raises:
            ValueError: The move is not legal, or the row has another version than the step follows from.
        """
        if entry.expected_version is not None and entry.expected_version != self.version:
            raise ValueError(f"job {self.key} has moved on to {self.state.value}")
        # An intent must not follow an intent: a second request for it would be a second payment.
        stays = entry.state is self.state is not State.INTENT
        if not stays and entry.state not in MOVES[self.state]:
            raise ValueError(f"job {self.key} cannot go from {self.state.value} to {entry.state.value}")
        changes: dict[str, Any] = {"state": entry.state, "updated_at": entry.at}
        if entry.state is State.INTENT:
            # A new attempt has neither the id nor the error of the one before it.
            changes |= {name: None for name in OF_ATTEMPT if getattr(self, name) is not None}
            changes["intent_at"] = entry.at
        elif entry.state is State.SUBMITTED and not stays:
            changes |= {"submitted_at": entry.at, "error": None}
        elif entry.state is State.FAILED and not stays:
            changes["failures"] = self.failures + 1
        elif entry.state is State.REUSED:
            changes |= {"error": None, "code": None}
        if self.state is State.REUSED and not stays:
            changes |= dict.fromkeys(OF_REUSE)
        if self.doubt is not None and entry.state not in _DOUBTFUL:
            changes |= {"doubt": None, "candidates": ()}
        changes |= {name: value for name, value in zip(_CARRIED, _carried(entry), strict=True) if value is not None}
        cost = changes.get("cost", self.cost)
        if cost is not None and entry.state in ACCEPTED and self.state not in ACCEPTED:
            changes["spent"] = (self.spent or 0) + cost
        return changes


OF_ATTEMPT = ("prediction_id", "error", "code", "output", "token_hash", "submitted_at")
OF_REUSE = ("reused", "output", "path", "bytes", "sha256")
_DOUBTFUL = frozenset({State.UNCERTAIN, State.ABANDONED})
"""States that keep the kind of the doubt and its candidates."""
_CARRIED = (
    "attempt",
    "fingerprint",
    "token_hash",
    "sender",
    "prediction_id",
    "reused",
    "cost",
    "refunded",
    "output",
    "code",
    "error",
    "doubt",
    "candidates",
    "path",
    "bytes",
    "sha256",
)
_carried = attrgetter(*_CARRIED)
