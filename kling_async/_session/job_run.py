"""State of one job that a session runs."""

from __future__ import annotations

import math
from decimal import Decimal

import attrs

from kling_async._core.budget import Budget
from kling_async._core.content import Content
from kling_async._core.job import Job
from kling_async._submission.drain import Drain


@attrs.define(eq=False, kw_only=True)
class JobRun:
    """State of one job that a session runs.

    Attributes:
        job: The job.
        key: Key of the job.
        batch: Name of the batch; empty outside a batch.
        deadline: Seconds to wait for the end, from acceptance or from when this run finds the job accepted.
        drain: Ends the run while nothing of it is at the service: before it is sent, and between two attempts.
        budget: The batch's budget, beside that of the session.
        content: Content of the job; None until it is read.
        recalled: True for a job out of the ledger: its image files are read only when it is sent.
        prediction_id: Id of the latest accepted prediction; None before the first.
        cost: USD of all accepted predictions by the price list; None when there is none with a known price.
        failures: Number of its predictions that failed, in earlier runs too.
    """

    job: Job
    key: str
    batch: str = ""
    deadline: float = math.inf
    drain: Drain = attrs.field(factory=Drain)
    budget: Budget | None = None
    content: Content | None = None
    recalled: bool = False
    prediction_id: str | None = None
    cost: Decimal | None = None
    failures: int = 0
