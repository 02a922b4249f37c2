"""Rows as they are in their source, before any field is checked."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import attrs

from kling_async._core.job import JobFields
from kling_async.errors import Problem, RowProblem

NOTE: Final = "_error"
"""Optional field that says why the job failed before; it is for readers and not part of the job."""
CONTINUES: Final = "continues"
"""Field with the key of another row: the job begins with the last frame of that row's video, instead of an image."""
CONTINUES_AT: Final = "continues_at"
"""Field with seconds in that video: the job begins with the frame that is shown then, instead of the last one."""
INPUT: Final = "extra."
"""Beginning of the names of columns that are one input of `extra`, such as `extra.video`."""
FIELDS: Final = frozenset({"key", NOTE, CONTINUES, CONTINUES_AT, *JobFields.__annotations__})
"""Fields of a row."""


_NONE: Final[Mapping[str, object]] = MappingProxyType({})


@attrs.frozen
class Row:
    """A row of a source.

    Attributes:
        line: Its first line, from 1; 0 for a problem of the whole file. In sources without lines: its number.
        fields: Its fields, unchecked.
        problems: Reasons why it could not be read; `fields` is then ignored.
        file: In a folder: the file that the row was made of; else None.
        labels: Values of its other columns.
        header: True if the problems are those of the header: the rows after it are not read.
    """

    line: int
    fields: Mapping[str, object] = attrs.field(factory=dict)
    problems: tuple[Problem, ...] = ()
    file: str | None = None
    labels: Mapping[str, object] = _NONE
    header: bool = False


def with_labels(fields: Mapping[str, object], labels: Mapping[str, object]) -> dict[str, object]:
    """Return fields with labels from other columns, but for names that the row's own labels have."""
    if not labels:
        return dict(fields)
    own = fields.get("labels", {})
    return {**fields, "labels": {**labels, **own} if isinstance(own, Mapping) else own}


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

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of things in the source that are no rows, by kind; known once its rows were read."""
        ...

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows, from the first.

        Raises:
            OSError: The source cannot be read.
        """
        ...


class Positioned(Protocol):
    """A row, or what is known of one.

    Attributes:
        line: As that of `Row`.
        file: As that of `Row`.
    """

    @property
    def line(self) -> int: ...

    @property
    def file(self) -> str | None: ...


def located(source: Source, row: Positioned, problem: Problem) -> RowProblem:
    """Return a problem with its position."""
    return RowProblem(row.file or source.name, None if row.file else row.line or None, problem.path, problem.message)
