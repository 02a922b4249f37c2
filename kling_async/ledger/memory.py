"""A ledger that forgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import State

if TYPE_CHECKING:
    from . import Entry

_OPEN = frozenset({State.INTENT, State.SUBMITTED, State.UNCERTAIN})


class MemoryLedger:
    """What is under way, and nothing else: its size follows the running jobs. It does not survive the process.

    Attributes:
        open: The last entries of jobs that may be running, by batch and key.
    """

    def __init__(self) -> None:
        self.open: dict[tuple[str, str], Entry] = {}

    async def record(self, entry: Entry) -> None:
        """Remember an open job, forget an ended one."""
        self.note(entry)

    def note(self, entry: Entry) -> None:
        """The same."""
        name = (entry.batch, entry.key)
        if entry.state in _OPEN:
            self.open[name] = entry
        else:
            self.open.pop(name, None)

    async def aclose(self) -> None:
        """Nothing to do."""
