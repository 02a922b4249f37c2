"""Reading of ledger files, also while another process writes them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.marks import Mark, Marked
from kling_async._core.states import Row, State, Step
from kling_async.ledger._columns import after_all, restored_identity

from . import statements
from .connection import LOCK, beside, closed_by, connect_reader, reading, unusable
from .registration import registered
from .tables import as_newest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kling_async._core.content import Identity


@attrs.frozen
class FileReader:
    """Reads a ledger file.

    Attributes:
        path: The file.
    """

    path: str | os.PathLike[str]

    def rows(
        self, batch: str | None, states: Iterable[State] | None, labels: Mapping[str, str] | None = None
    ) -> Iterator[Row]:
        """Yield the rows of a ledger file, each with its job's content, by the time of their last step.

        Args:
            batch: Only this batch's; "" is what was submitted outside of batches.
            states: Only rows in these states.
            labels: Only rows with these labels, values as texts.

        Raises:
            LedgerError: There is no such file, or it is no ledger.
        """
        conditions = ["1"]
        values: list[object] = []
        if batch is not None:
            conditions.append("job.batch = ?")
            values.append(batch)
        if states is not None:
            condition, words = statements.is_in(states)
            conditions.append(condition)
            values += words
        for label in (labels or {}).items():
            conditions.append(statements.HAS_LABEL)
            values += label * 2
        query = f"{statements.SELECT_WITH_CONTENT} WHERE {' AND '.join(conditions)} ORDER BY updated_at"
        for row in _found(Path(self.path), query, values):
            yield statements.read_row(row)

    def page(self, batch: str, *, prefix: str, after: str, labels: Mapping[str, str], limit: int) -> list[Row]:
        """Return rows of a batch by their keys: `limit` of those that begin with a prefix and come after a key.

        The file is one that this process has open for writing, so it is neither checked, which reads all of it, nor
        older.

        Raises:
            LedgerError: It cannot be read.
        """
        # A range of the primary key; SQLite compares texts as their bytes in UTF-8.
        # With labels, jobs are looked up one by one instead: a plus keeps a condition from choosing the way.
        plus = "+" if labels else ""
        conditions = f"{plus}job.batch = ? AND {plus}job.key > ?"
        values: list[object] = [batch, after]
        if prefix:
            conditions += f" AND {plus}job.key < ?"
            values.append(after_all(prefix))
        for label in labels.items():
            conditions += f" AND {statements.HAS_LABEL}"
            values += label * 2
        query = f"{statements.SELECT_WITH_CONTENT} WHERE {conditions} ORDER BY job.key LIMIT ?"
        try:
            with contextlib.closing(connect_reader(Path(self.path))) as connection:
                return [statements.read_row(row) for row in connection.execute(query, [*values, limit])]
        except sqlite3.Error as error:
            raise unusable(Path(self.path), error) from error

    def steps(self, batch: str | None, key: str | None) -> Iterator[Step]:
        """Yield the steps of a ledger file: all of a job together, in the order in which they were written.

        Args:
            batch: Only this batch's; "" is what was submitted outside of batches.
            key: Only of jobs with this key.

        Raises:
            LedgerError: There is no such file, or it is no ledger.
        """
        for of, name, state, at, attempt, prediction_id, error in _found(
            Path(self.path), statements.STEPS, (batch, key)
        ):
            yield Step(of, name, State(state), at, attempt, prediction_id, error)

    def identity(self, batch: str) -> Identity | None:
        """Return the identity of a batch of a ledger file; None if the file has no such batch.

        Raises:
            LedgerError: There is no such file, or it is no ledger.
        """
        found = [*_found(Path(self.path), statements.IDENTITY, [batch])]
        return restored_identity(*found[0]) if found else None

    def batches(self) -> set[str]:
        """Return the names of the batches that have jobs in a ledger file.

        Raises:
            LedgerError: There is no such file, or it is no ledger.
        """
        return {batch for (batch,) in _found(Path(self.path), "SELECT DISTINCT batch FROM job", ())}

    def order(self, batch: str) -> list[str]:
        """Return the keys of a batch in the order in which its jobs came into the file.

        Raises:
            LedgerError: There is no such file, or it is no ledger.
        """
        return [key for (key,) in _found(Path(self.path), statements.ORDER, [batch])]

    def marks(self) -> dict[str, Marked]:
        """Return the marks of videos of a ledger file, by prediction.

        Raises:
            LedgerError: There is no such file, or it is no ledger.
        """
        return {id_: Marked(Mark(mark), at) for id_, mark, at in _found(Path(self.path), statements.MARKS, ())}


def writer_of(ledger: str | os.PathLike[str]) -> int | None:
    """Return the id of the process of this computer that has a ledger file open for writing, or None.

    The id is read, not proven: locking the file, even for a moment, could refuse a writer that opens just then.
    """
    path = Path(ledger)
    # A copy has no lock file.
    if not path.is_file() or not beside(path, LOCK).exists():
        return None
    try:
        with contextlib.closing(connect_reader(path)) as connection:
            writer = registered(connection)
    except sqlite3.Error:
        return None
    if writer is None or not writer.here or writer.token == closed_by(path):
        return None
    try:
        if os.name == "posix":
            # Killed processes stay registered. (Elsewhere this call would be a signal.)
            with contextlib.suppress(PermissionError):
                os.kill(writer.process, 0)
    except (OSError, OverflowError):
        return None
    return writer.process


def _found(path: Path, query: str, values: Iterable[object]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query for the newest tables, from a file of any version.

    Raises:
        LedgerError: There is no such file, or it is no ledger.
    """
    with reading(path) as (connection, version):
        yield from connection.execute(as_newest(connection, version) + query, tuple(values))
