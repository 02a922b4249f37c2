"""One paid request on its way to the service."""

from __future__ import annotations

from decimal import Decimal

import attrs

from kling_async._core.budget import Reservation
from kling_async._core.http import HttpRequest
from kling_async._core.job import Job
from kling_async.limits import Slot

from .claims import Claim


@attrs.define
class PendingSubmission:
    """A paid request on its way to the service.

    Attributes:
        job: The job.
        key: Key of the job.
        batch: Name of the batch; empty outside a batch.
        request: The paid request.
        fingerprint: Digest of the request body.
        price: Price of one paid request in USD by the price list; None when it is not known.
        slot: The slot that its prediction is to occupy.
        claim: The session's claim on the job; each attempt holds it too.
        token_hash: Digest of the token in the URL of its webhook; None without a webhook.
        reserved: Money that is reserved for the request.
        caller_gone: True if the caller was cancelled during an attempt: the attempt then releases or keeps the slot.
    """

    job: Job
    key: str
    batch: str
    request: HttpRequest
    fingerprint: str
    price: Decimal | None
    slot: Slot
    claim: Claim
    token_hash: str | None = None
    reserved: tuple[Reservation, ...] = ()
    caller_gone: bool = False

    @property
    def name(self) -> tuple[str, str]:
        """Batch and key."""
        return self.batch, self.key

    @property
    def cost(self) -> Decimal | None:
        """Price of one paid request in USD: as reserved, else by the price list; None when it is not known."""
        return self.reserved[0].usd if self.reserved else self.price

    def mark_doubtful(self, doubtful: bool) -> None:  # noqa: FBT001 -- a setter
        """Set whether the request may have been accepted without a reply."""
        if doubtful:
            self.slot.mark_doubtful()
        else:
            self.slot.end_doubt(known=True)
        for reservation in self.reserved:
            reservation.doubtful = doubtful
