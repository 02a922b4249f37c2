"""Rows of text files: JSON lines, a JSON array, and CSV with a header."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import IO, Final, TypeAlias

import attrs

from kling_async.errors import Problem

from ._columns import Columns, Resolved
from ._row import Row
from ._values import DECODER, RepeatedFieldError, cell

MAX_LINE_BYTES: Final = 2**26
"""Greatest length of a line: two images of 10 MB as data URIs, and as much again."""
MAX_VALUES: Final = 100_000
"""Most cells of a line, or values of a JSON object: each takes far more memory than its text."""
_SEPARATOR: Final = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""First line that names the separator to Excel."""
EXPECTED_JSON: Final = (
    "expected an array of objects, [{...}, {...}], or one object per line; pandas writes them with "
    'to_json(path, orient="records")'
)
_Line: TypeAlias = tuple[int, str, Problem | None]
"""Number of a line, its text, and the problem with its bytes."""


def _lines(file: IO[bytes]) -> Iterator[_Line]:
    """Yield numbered lines. Bytes that are not UTF-8 are a problem of their line and are replaced.

    What is appended to an ordinary file meanwhile is not read, and nothing after a line that is too long.
    """
    remaining: float = float("inf")
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO) and file.seekable():
        remaining = file.seek(0, os.SEEK_END)
        file.seek(0)
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES + 1) if remaining > 0 else b""
        if not line:
            return
        remaining -= len(line)
        if len(line) > MAX_LINE_BYTES:
            yield number, "", Problem("", f"expected a line of at most {MAX_LINE_BYTES:,} bytes; the rest was not read")
            return
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            yield number, raw.decode(), None
        except UnicodeDecodeError as error:
            said = f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1})"
            message = f'{said}; save it as UTF-8, which Excel calls "CSV UTF-8"'
            yield number, raw.decode(errors="replace"), Problem("", message)


def too_many_values(text: str, start: int = 0, end: int | None = None, *, separator: str = ",") -> str:
    """Return the problem of a part of a text with more values than a row can have; empty if it has none."""
    if len(text) - start <= MAX_VALUES or text.count(separator, start, end) <= MAX_VALUES:
        return ""
    return f"expected at most {MAX_VALUES:,} values in a row, got more"


def json_rows(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Yield the rows of JSON lines; blank lines are skipped."""
    first = True
    for number, line, undecoded in _lines(file):
        if undecoded is not None:
            yield Row(number, problems=(undecoded,))
            continue
        if not line.strip():
            continue
        too_many = too_many_values(line)
        if too_many:
            yield Row(number, problems=(Problem("", too_many),))
            continue
        try:
            # Without the line break, an object that is cut off ends at its last column, not on the next line.
            value = DECODER.decode(line.rstrip())
        except RepeatedFieldError as error:
            problem = Problem(str(error), "is given twice")
        except json.JSONDecodeError as error:
            problem = Problem("", f"is not JSON: {error.msg} (column {error.colno})")
        except (ValueError, RecursionError) as error:
            problem = Problem("", f"cannot be parsed as JSON: {error}")
        else:
            if first and _is_table_of_columns(value):
                yield Row(0, problems=(Problem("", EXPECTED_JSON),))
                return
            first = False
            if isinstance(value, dict):
                yield columns.row(number, value)
                continue
            problem = Problem("", f"expected one JSON object per line, got {type(value).__name__}")
        yield Row(number, problems=(problem,))


def _is_table_of_columns(value: object) -> bool:
    """Return whether an object has a column in each field, by the numbers of the rows, as pandas writes by default."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(column, dict) and "0" in column for column in value.values())


@attrs.define(eq=False)
class _Decoded:
    """Lines for the CSV reader, which takes several when a quoted cell spans them."""

    lines: Iterator[_Line]
    separator: str
    problems: list[Problem] = attrs.field(factory=list)

    def __iter__(self) -> Iterator[str]:
        for _, line, problem in self.lines:
            if problem is not None:
                self.problems.append(problem)
            too_many = too_many_values(line, separator=self.separator)
            if too_many:
                self.problems.append(Problem("", too_many))
            yield "" if too_many else line

    def new_problems(self) -> tuple[Problem, ...]:
        """Return the problems of the lines read since the last call."""
        problems, self.problems = tuple(self.problems), []
        return problems


def csv_rows(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header; rows without content are skipped."""
    lines = _lines(file)
    top, separator = _top(lines)
    if top is None:
        return
    decoded = _Decoded(itertools.chain([top], lines), separator)
    cells = csv.reader(decoded, delimiter=separator, strict=True)
    skipped = top[0] - 1
    header: Header | None = None
    while True:
        line = skipped + cells.line_num + 1
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, problems=(*decoded.new_problems(), Problem("", f"is not CSV: {error}")))
            if header is None:
                return
            continue
        problems = decoded.new_problems()
        if header is None:
            header = Header.of(row, columns)
            # An empty line stands for one that has too many cells.
            problems += header.problems if row else ()
            if problems:
                yield Row(line, problems=problems, header=True)
                return
        elif problems:
            yield Row(line, problems=problems)
        elif any(text.strip() for text in row):
            yield header.row(line, row)


def _top(lines: Iterator[_Line]) -> tuple[_Line | None, str]:
    """Return the line that the header begins on, None in an empty file, and the separator of the cells."""
    told = ""
    for line in lines:
        match = _SEPARATOR.fullmatch(line[1].rstrip())
        if match is not None:
            told = match[1]
        elif line[1].strip():
            # Spreadsheets write semicolons in many countries. Field names contain none of the three.
            return line, told or max(",;\t", key=line[1].count)
    return None, ""


@attrs.frozen
class Header:
    """Header of a table.

    Attributes:
        names: Names of the columns, in their order.
        resolved: Their meaning.
        problems: Problems with it.
    """

    names: list[str]
    resolved: Resolved
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, cells: list[str], columns: Columns) -> Header:
        """Return the header that a row is."""
        names = [name.strip() for name in cells]
        return cls(names, *columns.header([name for name in names if name]))

    def row(self, line: int, cells: list[str]) -> Row:
        """Return a row of texts."""
        fields: dict[str, object] = {}
        labels: dict[str, object] = {}
        problems: list[Problem] = []
        for place, text in enumerate(cells):
            if not text or text.isspace():
                continue
            name = self.names[place] if place < len(self.names) else ""
            field = self.resolved.fields.get(name)
            if field is not None:
                try:
                    fields[field] = cell(field, text)
                except ValueError as error:
                    problems.append(Problem(field, str(error)))
            elif name in self.resolved.labels:
                labels[self.resolved.labels[name]] = text.strip()
            elif not name and (place or self.names[0]):
                # A first column without a name is the number of the row, as pandas writes it.
                problems.append(Problem("", self._nameless(place)))
        return self.resolved.row(line, fields, labels, tuple(problems))

    def _nameless(self, place: int) -> str:
        if place < len(self.names):
            return f"column {place + 1} has no name in the header"
        return f"column {place + 1} has no name in the header: put a text with the separator in it into double quotes"
