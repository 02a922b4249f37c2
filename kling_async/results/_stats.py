"""`stats.json`: counts, money, durations of the phases, errors."""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from decimal import Decimal
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from kling_async.ledger import State

from ._files import Exported, Format, replaced
from ._rows import STATUS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kling_async.ledger import Row, Step

_AMOUNTS: Final = ("spent_usd", "refunded_usd", "refundable_usd", "doubtful_usd")
"""USD of accepted jobs; refunded; of failed jobs not refunded yet; of jobs in doubt."""
_PHASES: Final = {
    "waiting": State.INTENT,
    "submitting": State.SUBMITTED,
    "generating": State.COMPLETED,
    "downloading": State.DOWNLOADED,
}
"""State that ends each phase; a phase begins where the one before it ends, the first with `PENDING`."""
_WHOLE: Final = "whole"


class Stats:
    """Writes `stats.json`.

    Args:
        folder: Folder of the file.
        steps: Reads the steps of the same jobs.
    """

    def __init__(self, folder: Path, steps: Callable[[], Iterator[Step]]) -> None:
        self._path = folder / "stats.json"
        self._steps = steps
        self._rows = 0
        self._states: Counter[str] = Counter()
        self._models: dict[str, Counter[str]] = defaultdict(Counter)
        self._money: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._errors: dict[tuple[str, int | None], list[Any]] = {}

    def add(self, row: Row, *, last: bool) -> None:
        """Count a row. The cost of every run counts, the state only of the last one."""
        status = STATUS[row.state]
        if last:
            self._rows += 1
            self._states[status] += 1
            self._models[row.model][status] += 1
        self._money["spent_usd"] += row.spent or 0
        self._money["refunded_usd"] += row.refunded or 0
        if row.state is State.FAILED and row.cost is not None:
            self._money["refundable_usd"] += max(Decimal(0), row.cost - (row.refunded or 0))
        if row.state.in_doubt:
            self._money["doubtful_usd"] += row.cost or 0
        if row.error or row.state.unsuccessful:
            # The first message stands for all of the same status and code.
            self._errors.setdefault((status, row.code), [0, row.error])[0] += 1

    def end(self) -> Exported:
        """Write the file."""
        errors = sorted(self._errors.items(), key=lambda item: -item[1][0])
        stats = {
            "jobs": self._rows,
            "states": dict(self._states.most_common()),
            "models": {model: dict(states) for model, states in sorted(self._models.items())},
            **{name: float(self._money[name]) for name in _AMOUNTS},
            "phases": _phases(self._steps()),
            "errors": [
                {"status": status, "code": code, "count": count, "example": example}
                for (status, code), (count, example) in errors
            ],
        }
        with replaced(self._path) as file:
            file.write(json.dumps(stats, indent=2) + "\n")
        return Exported(Format.STATS, self._path, self._rows)


def _phases(steps: Iterator[Step]) -> dict[str, dict[str, float]]:
    """Return count, p50 and p95 of the duration of every phase, in seconds. Unfinished phases do not count."""
    seconds: dict[str, array[float]] = {name: array("d") for name in (*_PHASES, _WHOLE)}
    for _, job in groupby(steps, key=lambda step: (step.batch, step.key)):
        begun: dict[State, float] = {}
        first = last = None
        for step in job:
            if step.state is State.INTENT:
                first = step.at if first is None else first
                # A new attempt starts its phases again.
                begun = {state: at for state, at in begun.items() if state is State.PENDING}
            # A refusal makes a job pending again; it has been waiting since it was first pending.
            if step.state is not State.PENDING or first is None:
                begun.setdefault(step.state, step.at)
            last = step.at if step.state is State.DOWNLOADED else last
        start = State.PENDING
        for name, end in _PHASES.items():
            if start in begun and end in begun:
                seconds[name].append(begun[end] - begun[start])
            start = end
        if first is not None and last is not None:
            seconds[_WHOLE].append(last - first)
    return {
        name: {"count": len(values), "p50": _quantile(values, 0.5), "p95": _quantile(values, 0.95)}
        for name, values in seconds.items()
        if values
    }


def _quantile(values: array[float], share: float) -> float:
    """Return the smallest value that is not below this share of the values."""
    return round(sorted(values)[max(0, ceil(share * len(values)) - 1)], 3)
