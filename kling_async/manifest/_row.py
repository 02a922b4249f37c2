"""Rows as they stand in their source, before any field is checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from typing import Protocol, cast

import attrs

from kling_async._core.job import Job, JobFields
from kling_async.errors import InvalidJobError, Problem, RowProblem

NOTE = "_error"
"""Optional field that says why the job failed before; it is for readers and not part of the job."""
_NON_JOB_FIELDS = frozenset({"key", NOTE})


@attrs.frozen
class Row:
    """A row of a source.

    Attributes:
        line: Its first line, from 1; 0 for a problem of the whole file. In sources without lines: its number.
        fields: Its fields, unchecked.
        problems: Reasons why it could not be read; `fields` is then ignored.
        file: In a folder: the file that the row was made of; else None.
    """

    line: int
    fields: Mapping[str, object] = attrs.field(factory=dict)
    problems: tuple[Problem, ...] = ()
    file: str | None = None


class Source(Protocol):
    """A source of rows that can be read repeatedly."""

    @property
    def name(self) -> str:
        """Name of the source in problems."""
        ...

    @property
    def unit(self) -> str:
        """Name of a position in the source: line, row or file."""
        ...

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows, from the first.

        Raises:
            OSError: The source cannot be read.
        """
        ...


def located(source: Source, row: Row, problem: Problem) -> RowProblem:
    """Return a problem with its position."""
    return RowProblem(row.file or source.name, None if row.file else row.line or None, problem.path, problem.message)


def is_unknown(name: str) -> bool:
    """Return whether no row has a field of that name."""
    return name not in _NON_JOB_FIELDS and name not in JobFields.__annotations__


def header_problems(header: list[str]) -> tuple[Problem, ...]:
    """Return the problems of column names: repeated and unknown ones."""
    problems = [
        Problem(name, "is the name of two columns") for name, times in Counter(header).items() if name and times > 1
    ]
    try:
        Job(**cast("JobFields", dict.fromkeys((name for name in header if name and name not in _NON_JOB_FIELDS), None)))
    except InvalidJobError as error:
        # Reported once here; the rows skip these columns.
        problems += (problem for problem in error.problems if problem.path in header and is_unknown(problem.path))
    return tuple(problems)
