"""Where a job stands: one table of states, shared by every ledger."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

from .copies import changed

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    """Where a job stands."""

    PENDING = "pending"
    """Known, not sent; or shown to be unaccepted, and free to be sent again."""
    CLAIMED = "claimed"
    """Taken by a worker, not sent."""
    INTENT = "intent"
    """The paid request may have been sent. After a crash nobody knows."""
    SUBMITTED = "submitted"
    """Accepted and paid: there is an id."""
    COMPLETED = "completed"
    """The service has the video."""
    FAILED = "failed"
    """The service ended the prediction without a video."""
    REJECTED = "rejected"
    """Certainly not accepted, and not to be sent again as it is."""
    UNCERTAIN = "uncertain"
    """Sent, and whether it was accepted is not known."""
    SKIPPED = "skipped"
    """Not sent, because admission had stopped."""
    EXPIRED = "expired"
    """The prediction or its output was gone before it was fetched."""
    DOWNLOADED = "downloaded"
    """The video is on the disk."""

    # That of Enum hashes the name, in Python.
    __hash__ = object.__hash__


MOVES: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.CLAIMED, State.INTENT, State.REJECTED, State.SKIPPED}),
    State.CLAIMED: frozenset({State.PENDING, State.INTENT, State.REJECTED, State.SKIPPED}),
    # Straight to an end only when the id could not be written down in between.
    State.INTENT: frozenset(
        {State.PENDING, State.SUBMITTED, State.REJECTED, State.UNCERTAIN, State.COMPLETED, State.FAILED}
    ),
    State.SUBMITTED: frozenset({State.COMPLETED, State.FAILED, State.EXPIRED}),
    State.COMPLETED: frozenset({State.DOWNLOADED, State.EXPIRED}),
    State.UNCERTAIN: frozenset({State.PENDING, State.SUBMITTED, State.REJECTED}),
    State.SKIPPED: frozenset({State.PENDING, State.INTENT, State.REJECTED}),
    State.REJECTED: frozenset({State.PENDING, State.INTENT, State.SKIPPED}),
    State.FAILED: frozenset({State.PENDING, State.INTENT}),
    State.EXPIRED: frozenset(),
    State.DOWNLOADED: frozenset({State.COMPLETED}),
}
"""The legal moves. Staying where one is, with more known about it, is legal too, but for an intent.

A failed job is sent again only when a retry was asked for; a downloaded one is completed again when its file is gone.
"""

GIVEN_UP = "given up by hand; it may have been paid for, and is not sent again"
"""The error of a rejected job that was in doubt until somebody decided that it ends there."""

OPEN = frozenset({State.INTENT, State.SUBMITTED, State.UNCERTAIN})
"""States in which something may be running, or may have been paid for without a known end."""


# Neither this nor a row is ever changed. Not frozen, one is made in a third of the time, and every job makes many.
@attrs.define(kw_only=True, unsafe_hash=True)
class Entry:
    """One step of one job. What is None is not known, or not changed.

    Attributes:
        batch: The batch's name; empty outside a batch.
        key: The job's name.
        state: Where it now stands.
        at: Seconds since the epoch.
        attempt: How many paid requests were sent for it, this one included.
        fingerprint: Digest of the request body, with the intent.
        token_hash: Digest of the webhook token, with the intent.
        prediction_id: The paid id, once there is one.
        cost: USD by the price list, with the intent.
        refunded: USD that the service gave back for the prediction.
        output: URL of the video.
        code: The task's error code.
        error: Why, for the states that have a why.
        path: The file.
        bytes: Its length.
        sha256: Its digest.
        seen: The place in which the row stood that this step follows from: it is refused when the row has moved on.
    """

    batch: str
    key: str
    state: State
    at: float
    attempt: int | None = None
    fingerprint: str | None = None
    token_hash: str | None = None
    prediction_id: str | None = None
    cost: Decimal | None = None
    refunded: Decimal | None = None
    output: str | None = None
    code: int | None = None
    error: str | None = None
    path: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    seen: tuple[State, int] | None = None


@attrs.frozen
class Step:
    """One step that a job has made.

    Attributes:
        batch: The batch's name; empty outside a batch.
        key: The job's name.
        state: Where it then stood.
        at: Seconds since the epoch.
        attempt: How many paid requests had been sent for it.
        prediction_id: The paid id that it then had.
        error: Why it stood there, where that was said.
    """

    batch: str
    key: str
    state: State
    at: float
    attempt: int
    prediction_id: str | None = None
    error: str | None = None


@attrs.define(kw_only=True, unsafe_hash=True)
class Row:
    """A job as the ledger has it.

    Attributes:
        batch: The batch's name; empty outside a batch.
        key: The job's name.
        digest: Digest of its content, image files included.
        model: The model's id.
        state: Where it stands.
        updated_at: When it came there; seconds since the epoch.
        attempt: How many paid requests were sent for it.
        fingerprint: Digest of the last request body.
        token_hash: Digest of the last webhook token.
        intent_at: When the last paid request was about to be sent.
        submitted_at: When it was accepted.
        prediction_id: The paid id.
        cost: USD of the last paid request, by the price list.
        spent: USD of all its accepted requests, by the price list; None as long as there was none with a known price.
        refunded: USD of it that the service gave back.
        failures: How many of its predictions failed.
        output: URL of the video.
        code: The task's error code.
        error: Why it stands where it stands.
        path: The file.
        bytes: Its length.
        sha256: Its digest.
        job: Its content as JSON, images as URLs or digests; None unless it was asked for.
        files: Where its image files lay, as JSON; None unless it was asked for, or when it has none.
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
    path: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    job: str | None = attrs.field(default=None, repr=False)
    files: str | None = attrs.field(default=None, repr=False)

    @property
    def place(self) -> tuple[State, int]:
        """Where it stands, and in which attempt: what was seen there is still so as long as it has not moved on."""
        return self.state, self.attempt

    @property
    def given_up(self) -> bool:
        """Whether it was in doubt, and somebody decided that it is neither looked for nor sent again."""
        return self.state is State.REJECTED and self.error == GIVEN_UP

    def after(self, entry: Entry) -> Row:
        """The row as the step leaves it.

        Raises:
            ValueError: The move is not legal; nothing changes.
        """
        return changed(self, **self.changes(entry))

    def changes(self, entry: Entry) -> dict[str, Any]:
        """What the step changes: attributes with their new values.

        Raises:
            ValueError: The move is not legal, or the row is not any more where the step has seen it.
        """
        if entry.seen is not None and entry.seen != self.place:
            raise ValueError(f"job {self.key} has moved on to {self.state.value}")
        # An intent is no place to stay: a second request for it would be a second payment.
        stays = entry.state is self.state is not State.INTENT
        if not stays and entry.state not in MOVES[self.state]:
            raise ValueError(f"job {self.key} cannot go from {self.state.value} to {entry.state.value}")
        changes: dict[str, Any] = {"state": entry.state, "updated_at": entry.at}
        if entry.state is State.INTENT:
            # A new attempt has neither the id nor the error of the one before it.
            changes |= {name: None for name in _OF_ATTEMPT if getattr(self, name) is not None}
            changes["intent_at"] = entry.at
        elif entry.state is State.SUBMITTED and self.state is not State.SUBMITTED:
            changes |= {"submitted_at": entry.at, "error": None}
        elif entry.state is State.FAILED and not stays:
            changes["failures"] = self.failures + 1
        changes |= {name: value for name, value in zip(_CARRIED, _carried(entry), strict=True) if value is not None}
        cost = changes.get("cost", self.cost)
        if cost is not None and entry.state in _PAID and self.state in _SENT:
            changes["spent"] = (self.spent or 0) + cost
        return changes


_OF_ATTEMPT = ("prediction_id", "error", "code", "output", "token_hash", "submitted_at")
_SENT = frozenset({State.INTENT, State.UNCERTAIN})
_PAID = frozenset({State.SUBMITTED, State.COMPLETED, State.FAILED})
_CARRIED = (
    "attempt",
    "fingerprint",
    "token_hash",
    "prediction_id",
    "cost",
    "refunded",
    "output",
    "code",
    "error",
    "path",
    "bytes",
    "sha256",
)
_carried = attrgetter(*_CARRIED)
