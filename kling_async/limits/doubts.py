"""Bound on blind submits: a line that drops every reply must not pay for thousands of jobs that nobody knows of."""

from __future__ import annotations

import math

import anyio

MAX_BLIND_SUBMITS = 64
"""Lost replies without a clear one after them, at which nothing more is sent while these are settled."""
FIRST_HALVED = 32
"""Submits that may be unanswered before the first lost reply halves their number."""


class DoubtWindow:
    """Number of submits that may be unanswered at once: halved by each lost reply, restored by a clear one.

    A submit whose reply was lost is not an unanswered one: nobody waits for it. It is blind until a clear reply shows
    that the line works, or until it is settled.

    Attributes:
        pending: Number of submits in doubt that are being settled.
        sending: Number of submits that are unanswered.
    """

    def __init__(self) -> None:
        self.pending = 0
        self.sending = 0
        self._blind = 0
        self._changed = anyio.Event()

    @property
    def exhausted(self) -> bool:
        """True when as many submits are blind as may be."""
        return self._blind >= MAX_BLIND_SUBMITS

    async def begin(self) -> None:
        """Wait until one more submit may be unanswered, and count it."""
        while self.sending >= self._allowed:
            await self._changed.wait()
        self.sending += 1

    def end(self) -> None:
        """Count a submit as answered, or as lost."""
        self.sending -= 1
        self._change()

    def lost(self) -> None:
        """Record a lost reply."""
        self._blind += 1
        self.pending += 1

    def cleared(self) -> None:
        """Record a clear reply."""
        if self._blind:
            self._blind = 0
            self._change()

    def settled(self, *, known: bool) -> None:
        """Record the end of the settlement of a doubt.

        Args:
            known: True if it is known now whether the submit was accepted.
        """
        self.pending -= 1
        if known and self._blind:
            self._blind -= 1
        self._change()

    @property
    def _allowed(self) -> float:
        """Number of submits that may be unanswered now; infinite while replies are clear."""
        if not self._blind:
            return math.inf
        if self.exhausted and self.pending:
            return 0
        return max(1, FIRST_HALVED >> self._blind)

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
