"""State of one job that a session runs."""

from __future__ import annotations

import math
from decimal import Decimal

import attrs

from kling_async._core.budget import Budget
from kling_async._core.content import Content
from kling_async._core.job import Job
from kling_async._core.seen import Seen
from kling_async._core.turns import ANYWHERE, Place
from kling_async._submission.drain import Drain

from .link import Link


@attrs.define(eq=False, kw_only=True)
class JobRun:
    """State of one job that a session runs.

    Attributes:
        job: The job.
        key: Key of the job.
        drain: Ends the run while nothing of it is at the service: before it is sent, and between two attempts.
        covered: True if its price is reserved before it is its turn: it is sent also when the budget is used up.
        batch: Name of the batch; empty outside a batch.
        deadline: Seconds to wait for the end, from acceptance or from when this run finds the job accepted; and seconds
            without progress to try to save the video.
        budget: The batch's budget, beside that of the session.
        content: Content of the job; None until it is read.
        seen: What to do when another batch of the ledger has paid for the job.
        recalled: True for a job out of the ledger: its image files are read only when it is sent.
        prediction_id: Id of the latest accepted prediction; None before the first.
        cost: USD of all accepted predictions by the price list; None when there is none with a known price.
        failures: Number of its predictions that failed, in earlier runs too.
        named_alone: True if the video may be named after the picture alone: no other job of the input has such a name.
        reused: True when the video of another batch's job is handed out for this one.
        is_call: True for `generate` and `submit`, which are refused while too many jobs of their caller wait.
        index: Position in the input of its batch, from 0.
        link: Its place in a film; None outside of films, and for a job that a film begins with.
    """

    job: Job
    key: str
    drain: Drain
    covered: bool = False
    batch: str = ""
    deadline: float = math.inf
    budget: Budget | None = None
    content: Content | None = None
    seen: Seen = "pay"
    recalled: bool = False
    prediction_id: str | None = None
    cost: Decimal | None = None
    failures: int = 0
    reused: bool = False
    named_alone: bool = False
    is_call: bool = False
    index: int = 0
    link: Link | None = None

    @property
    def place(self) -> Place:
        """Its place among the jobs that wait for slots."""
        job = self.job
        if job.caller or job.priority or self.link is not None:
            return Place(job.caller, job.priority, math.inf if self.link is None else self.link.rank)
        return ANYWHERE

    @property
    def content_read(self) -> Content:
        """The content, which was read."""
        if self.content is None:  # pragma: no cover -- a runner reads it before anything else
            raise AssertionError(self.key)
        return self.content
