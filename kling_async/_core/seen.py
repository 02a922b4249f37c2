"""Setting for jobs that another batch of the same ledger has paid for."""

from __future__ import annotations

from typing import Literal, TypeAlias

Seen: TypeAlias = Literal["stop", "reuse", "pay"]
"""Treatment of such a job: refuse it, hand out what was made, or pay for another video."""
