"""What the processes of an account tell each other: that something has moved, and what webhooks have told."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TypeAlias

from kling_async._core.prediction import Prediction, Status

Told: TypeAlias = "tuple[Prediction, str | None]"
"""A prediction as a webhook told it, and the digest of the token in the webhook's URL."""

LONGEST = 7_999
"""Bytes that a notification takes."""


def channel_of(account: str) -> str:
    """Where the workers of an account tell each other that something has moved."""
    return f"kling_{sha256(account.encode()).hexdigest()[:16]}"


def written(by: str, prediction: Prediction, token_hash: str | None) -> str | None:
    """The notification of what a webhook told; None when it is too long for one, and is read from the service."""
    note = json.dumps(
        {
            "by": by,
            "token": token_hash,
            "id": prediction.id,
            "model": prediction.model,
            "status": prediction.status.value,
            "raw_status": prediction.raw_status,
            "outputs": prediction.outputs,
            "error": prediction.error,
            "code": prediction.code,
        }
    )
    return note if len(note) <= LONGEST else None


def read(note: str, *, me: str) -> Told | None:
    """What another process was told; None when it is no more than that something has moved, or was told to us."""
    if not note:
        return None
    try:
        fields = json.loads(note)
        by, token = fields.pop("by"), fields.pop("token")
        prediction = Prediction(**{**fields, "status": Status(fields["status"]), "outputs": tuple(fields["outputs"])})
    except (LookupError, TypeError, ValueError):
        # Of a later version, or of somebody else's.
        return None
    return None if by == me else (prediction, token)
