"""The batch of a run, and what of it may have to be paid for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from kling_async._core.budget import Budget
from kling_async._session.batch import Batch
from kling_async._session.session import KlingSession
from kling_async.manifest import Kind

from .plan import Plan

if TYPE_CHECKING:
    from kling_async.ledger import State


@attrs.define
class Due:
    """Jobs of a batch that a run may pay for now.

    Attributes:
        kinds: Number of these jobs by kind.
        doubtful: Number of these jobs that are in doubt: each is paid for only if its earlier request was not accepted.
        known: Number of the other jobs: they are paid for, or are never sent again.
        spent: USD that the batch has cost before, less refunds.
    """

    kinds: Counter[Kind] = attrs.field(factory=Counter)
    doubtful: int = 0
    known: int = 0
    spent: Decimal = Decimal(0)

    def add(self, kind: Kind, state: State | None, *, payable: bool) -> None:
        """Count a job.

        Args:
            kind: Kind of the job.
            state: State of the job; None if the ledger does not have it.
            payable: Whether a run may pay for it.
        """
        if not payable:
            self.known += 1
            return
        self.kinds[kind] += 1
        self.doubtful += state is not None and state.in_doubt


@attrs.frozen(kw_only=True)
class Work:
    """A batch to run.

    Attributes:
        name: Name of the batch.
        total: Number of jobs.
        due: Jobs that may have to be paid for.
        plan: The same with prices.
        budget: Limit of the cost; None if there is none.
        batch: Creates the batch in an open session.
        order: Returns the keys in the order of the input, from the ledger; None if the batch comes in that order.
        invalid: Returns the rows that were left out of the manifest, for `errors.jsonl`; None without a manifest.
    """

    name: str
    total: int
    due: Due
    plan: Plan
    budget: Budget | None
    batch: Callable[[KlingSession], Batch]
    order: Callable[[], Iterable[str]] | None = None
    invalid: Callable[[], Iterable[Mapping[str, object]]] | None = None
