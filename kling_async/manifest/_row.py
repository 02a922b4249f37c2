"""A row as it stands in its file, before anything of it is checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from typing import Protocol, cast

import attrs

from kling_async._core.job import Job, JobFields
from kling_async.errors import InvalidJobError, Problem, RowProblem

NOTE = "_error"
"""A field that a row may have for its readers: why the job failed that it repeats. It is no part of the job."""
_OTHERS = frozenset({"key", NOTE})


@attrs.frozen
class Row:
    """A row as it stands in the file.

    Attributes:
        line: Where it begins, from 1; 0 when it is about the whole file. What has no lines has rows.
        fields: Its fields, unchecked.
        problems: Why it could not be read; the fields are then not looked at.
        file: The file that it is, in a folder.
    """

    line: int
    fields: Mapping[str, object] = attrs.field(factory=dict)
    problems: tuple[Problem, ...] = ()
    file: str | None = None


class Source(Protocol):
    """Where rows come from, as often as they are asked for."""

    @property
    def name(self) -> str:
        """What problems call it."""
        ...

    @property
    def unit(self) -> str:
        """What its places are called."""
        ...

    def rows(self) -> Generator[Row, None, None]:
        """All rows, from the first.

        Raises:
            OSError: It cannot be read.
        """
        ...


def about(source: Source, row: Row, problem: Problem) -> RowProblem:
    """The problem with its place."""
    return RowProblem(row.file or source.name, None if row.file else row.line or None, problem.path, problem.message)


def unknown(name: str) -> bool:
    """Whether no row has such a field."""
    return name not in _OTHERS and name not in JobFields.__annotations__


def header_problems(header: list[str]) -> tuple[Problem, ...]:
    """What is wrong with the names of the columns."""
    problems = [
        Problem(name, "is the name of two columns") for name, times in Counter(header).items() if name and times > 1
    ]
    try:
        Job(**cast("JobFields", dict.fromkeys((name for name in header if name and name not in _OTHERS), None)))
    except InvalidJobError as error:
        # Said once, not in every row; the rows pass these columns over.
        problems += (problem for problem in error.problems if problem.path in header and unknown(problem.path))
    return tuple(problems)
