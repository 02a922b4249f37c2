"""Adaptive limit on running predictions, learned from acceptances and 429s. Without clock and event loop."""

from __future__ import annotations

from kling_async._core.adaptive import AdaptiveLimit

DECREASE_FACTOR = 0.7
"""Factor on the capacity for each refusal after the first."""
HOLD_GENERATIONS = 4.0
"""Generations for which a limit that showed itself is kept before a higher one is probed."""
RUNNING_PER_UNSEEN_END = 32
"""One in this many running predictions is assumed to have ended without the session having seen it."""
INITIAL_UNANSWERED_SUBMITS = 4
"""Submits that may be unanswered at once until one is answered: the line may lose every reply."""
MAX_UNANSWERED_SUBMITS = 512
"""Submits that may be unanswered at once at most: a crash leaves at most as many in doubt."""
RUNNING_PER_UNANSWERED = 3
"""Running predictions for each further unanswered submit: the account may permit fewer than its level says."""
CEILING_PER_UNANSWERED = 16
"""Slots for each submit that may be unanswered from the first answer on."""
SLOTS_PER_UNANSWERED = 8
"""Slots for each unanswered submit once a limit has shown itself."""


class Capacity:
    """Number of predictions that may run: at most `ceiling`, reduced by refusals, raised again by probing.

    The first refusal shows the limit: the number running at that moment, less the few that ended unseen. If the next
    submit is refused as well although a prediction has ended in between, the limit has moved down, and the capacity is
    multiplied by a factor. It goes up by one, two, four, eight in a *generation*, which is as many acceptances as there
    are slots; a refusal ends the generation. The number of submits that may be unanswered at once has a limit of its
    own, so that a burst is not refused as a whole.

    Args:
        ceiling: Maximum number of running predictions.
        adaptive: Whether to learn; if not, the capacity is always the ceiling.

    Attributes:
        ceiling: Maximum number of running predictions.
        total: Number that may run now; 1 to `ceiling`.
        unanswered: Limit on the submits that are unanswered.
    """

    def __init__(self, ceiling: int, *, adaptive: bool = True) -> None:
        self.ceiling = ceiling
        self.total = ceiling
        self._adaptive = adaptive
        self._base = ceiling
        self._hold_generations = 0.0
        self._generations = 0.0
        self._accepted_since_refusal = True
        self.unanswered = AdaptiveLimit(
            INITIAL_UNANSWERED_SUBMITS, MAX_UNANSWERED_SUBMITS, tried=ceiling // CEILING_PER_UNANSWERED
        )

    def allowed(self, running: int) -> int:
        """Return the number of slots while `running` predictions may run; the difference may be submitted now."""
        if not self._adaptive:
            return self.total
        # At a limit of the account all that is unanswered is refused.
        if self.total < self.ceiling:
            at_risk = self.total // SLOTS_PER_UNANSWERED
        else:
            at_risk = max(running // RUNNING_PER_UNANSWERED, self.ceiling // CEILING_PER_UNANSWERED)
        return min(self.total, running + min(self.unanswered.total, max(INITIAL_UNANSWERED_SUBMITS, at_risk)))

    def record_accepted(self, running: int) -> None:
        """Record an accepted job.

        Args:
            running: Number of running predictions, this one included.
        """
        self._accepted_since_refusal = True
        # Probing means nothing unless the present limit is nearly reached.
        if self.total < self.ceiling and running >= 0.9 * self.total:
            self._generations += 1 / self.total
            more = int(2 ** max(0.0, self._generations - self._hold_generations)) - 1
            self.total = min(self._base + more, self.ceiling)

    def slow_down(self) -> None:
        """Allow one unanswered submit at a time, after a refusal of any kind."""
        self.unanswered.record_refused(self.unanswered.epoch, factor=0.0)

    def record_refused(self, running: int, *, certain: bool) -> None:
        """Record a refusal because too many predictions run, or possibly because of that.

        Args:
            running: Number of running predictions.
            certain: Whether that is certainly the reason.
        """
        self.slow_down()
        if not self._adaptive:
            return
        shows_limit = certain and self._accepted_since_refusal
        lower = (
            running - running // RUNNING_PER_UNSEEN_END
            if shows_limit
            else int((running if certain else self.total) * DECREASE_FACTOR)
        )
        self.total = self._base = max(1, min(self.total, lower))
        self._hold_generations = HOLD_GENERATIONS if shows_limit else 0.0
        self._generations = 0.0
        self._accepted_since_refusal = False
