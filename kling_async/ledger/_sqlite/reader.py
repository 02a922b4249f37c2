"""Reading of ledger files, also while another process writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kling_async._core.states import Row, State, Step

from . import statements
from .connection import reading
from .tables import as_newest

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator


def read_ledger(
    path: str | os.PathLike[str], *, batch: str | None = None, states: Iterable[State] | None = None
) -> Iterator[Row]:
    """Yield the rows of a ledger file, each with its job's content, by the time of their last step.

    Args:
        path: The file.
        batch: Only this batch's; "" is what was submitted outside of batches.
        states: Only rows in these states.

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
    query = f"{statements.SELECT_WITH_CONTENT} WHERE {' AND '.join(conditions)} ORDER BY updated_at"
    for row in _found(Path(path), query, values):
        yield statements.read_row(row)


def read_steps(path: str | os.PathLike[str], *, batch: str | None = None, key: str | None = None) -> Iterator[Step]:
    """Yield the steps of a ledger file: all of a job one after another, in the order in which they were written.

    Args:
        path: The file.
        batch: Only this batch's; "" is what was submitted outside of batches.
        key: Only of jobs with this key.

    Raises:
        LedgerError: There is no such file, or it is no ledger.
    """
    for of, name, state, at, attempt, prediction_id, error in _found(Path(path), statements.STEPS, (batch, key)):
        yield Step(of, name, State(state), at, attempt, prediction_id, error)


def _found(path: Path, query: str, values: Iterable[object]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query for the newest tables, from a file of any version.

    Raises:
        LedgerError: There is no such file, or it is no ledger.
    """
    with reading(path) as (connection, version):
        yield from connection.execute(as_newest(connection, version) + query, tuple(values))
