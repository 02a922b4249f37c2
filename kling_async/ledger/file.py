"""A small durable file of paid ids: one JSON object per line, appended and synced before the next step."""

from __future__ import annotations

import json
import os
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from . import Entry, State

if TYPE_CHECKING:
    from collections.abc import Iterator


class FileLedger:
    """Appends every step to a file. Steps that arrive together are synced together.

    Args:
        path: The file; made when it is not there, appended to when it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lines: list[bytes] = []
        self._turn = anyio.Lock()
        self._written = 0
        self._queued = 0

    async def record(self, entry: Entry) -> None:
        """Write one step down; return when it is on the disk.

        Raises:
            OSError: The file cannot be written.
        """
        self.note(entry)
        await self._sync(self._queued)

    def note(self, entry: Entry) -> None:
        """Write one step down together with the next one that is recorded, or at the end."""
        step = {
            "at": round(entry.at, 3),
            "batch": entry.batch,
            "key": entry.key,
            "state": entry.state.value,
            "model": entry.model,
            "prediction_id": entry.prediction_id,
            "cost_usd": None if entry.cost is None else str(entry.cost),
            "error": entry.error,
        }
        line = json.dumps({name: value for name, value in step.items() if value is not None}, ensure_ascii=False)
        # Half of a pair of surrogates, as left by a service that cuts its texts, becomes its escape in JSON.
        self._lines.append(line.encode("utf-8", "backslashreplace") + b"\n")
        self._queued += 1

    async def _sync(self, upto: int) -> None:
        async with self._turn:
            if self._written >= upto:
                return
            lines, upto = self._lines, self._queued
            self._lines = []
            try:
                await anyio.to_thread.run_sync(self._append, b"".join(lines))
            except BaseException:
                self._lines = lines + self._lines
                raise
            self._written = upto

    def _append(self, lines: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            # A crash may have left half a line; the next one must not be glued to it.
            if file.tell() and not _ends_line(self.path):
                lines = b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    async def aclose(self) -> None:
        """Write what was noted.

        Raises:
            OSError: The file cannot be written.
        """
        await self._sync(self._queued)


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_paid_ids(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The last entry of every job that was paid for, or may have been, in a file of `FileLedger`.

    A half-written last line, which is what a crash leaves, is passed over.

    Raises:
        OSError: The file cannot be read.
    """
    last: dict[tuple[str, str], Entry] = {}
    with Path(path).open("rb") as file:
        for line in file:
            try:
                step = json.loads(line)
                entry = Entry(
                    batch=step["batch"],
                    key=step["key"],
                    state=State(step["state"]),
                    at=float(step["at"]),
                    model=step["model"],
                    prediction_id=step.get("prediction_id"),
                    cost=None if step.get("cost_usd") is None else Decimal(step["cost_usd"]),
                    error=step.get("error"),
                )
                last[entry.batch, entry.key] = entry
            except (ValueError, KeyError, TypeError, InvalidOperation, RecursionError):
                continue
    paid = (entry for entry in last.values() if entry.prediction_id or entry.state in {State.INTENT, State.UNCERTAIN})
    yield from sorted(paid, key=lambda entry: entry.at)
