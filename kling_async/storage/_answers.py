"""Counts of the answers that a download got: those that are final are in the table of all requests."""

from __future__ import annotations

import attrs

from kling_async._core.answers import RULES, Kind

(FINAL,) = RULES[Kind.OUTPUT].final
"""OutputAnswers that end a download, once they are settled."""
_MAX_SHOWN = 10
"""Distinct answers that are listed."""


@attrs.define
class _Count:
    times: int
    since: float
    detail: str


@attrs.define
class OutputAnswers:
    """Counts the distinct answers to one request that was sent again and again; `str()` lists them."""

    _counts: dict[str, _Count] = attrs.field(factory=dict, init=False)

    @property
    def total(self) -> int:
        """Number of answers."""
        return sum(count.times for count in self._counts.values())

    def add(self, answer: str, at: float, detail: str = "") -> bool:
        """Count an answer; return whether it is settled: given often enough, and over enough time.

        Args:
            answer: The answer.
            at: Monotonic time, in seconds.
            detail: What differs from one such answer to the next; the latest is listed.
        """
        count = self._counts.setdefault(answer, _Count(0, at, detail))
        count.times += 1
        count.detail = detail
        return count.times >= FINAL.times and at - count.since >= FINAL.over

    def __str__(self) -> str:
        listed = [
            f"{answer}{f', at last {count.detail}' if count.detail else ''} "
            f"({'once' if count.times == 1 else f'{count.times} times'})"
            for answer, count in self._counts.items()
        ]
        more = len(listed) - _MAX_SHOWN
        return "; ".join(listed[:_MAX_SHOWN] + ([f"and {more} other answers"] if more > 0 else []))
