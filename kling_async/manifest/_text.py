"""Rows of text files: JSON lines, and CSV with a header."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Final

import attrs

from kling_async.errors import Problem

from ._row import Row, header_problems, is_unknown

JSON_FIELDS: Final = frozenset({"extra", "multi_prompt", "element_list", "voice_list", "keyframes", "images"})
"""Fields that a cell contains as JSON."""


MAX_LINE_BYTES: Final = 2**26
"""Greatest length of a line: two images of 10 MB as data URIs, and as much again."""


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str, Problem | None]]:
    """Yield numbered lines. Bytes that are not UTF-8 are a problem of their line and are replaced.

    What is appended to the file meanwhile is not read, and nothing after a line that is too long.
    """
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
            message = f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1}); save it as UTF-8"
            yield number, raw.decode(errors="replace"), Problem("", message)


class _RepeatedFieldError(ValueError):
    pass


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # By default the last of repeated fields would be used silently, and it may cost more.
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise _RepeatedFieldError(repeated)
    return fields


# Shared: `json.loads` with a hook creates a decoder per call.
_JSON: Final = json.JSONDecoder(object_pairs_hook=_json_object)


def json_rows(file: IO[bytes]) -> Iterator[Row]:
    """Yield the rows of JSON lines; blank lines are skipped."""
    for number, line, undecoded in _lines(file):
        if undecoded is not None:
            yield Row(number, problems=(undecoded,))
            continue
        if not line.strip():
            continue
        try:
            # Without the line break, an object that is cut off ends at its last column, not on the next line.
            value = _JSON.decode(line.rstrip())
        except _RepeatedFieldError as error:
            problem = Problem(str(error), "is given twice")
        except json.JSONDecodeError as error:
            problem = Problem("", f"is not JSON: {error.msg} (column {error.colno})")
        except (ValueError, RecursionError) as error:
            problem = Problem("", f"cannot be parsed as JSON: {error}")
        else:
            if isinstance(value, dict):
                yield Row(number, value)
                continue
            problem = Problem("", f"expected one JSON object per line, got {type(value).__name__}")
        yield Row(number, problems=(problem,))


@attrs.define(eq=False)
class _Decoded:
    """Lines for the CSV reader, which takes several when a quoted cell spans them."""

    lines: Iterator[tuple[int, str, Problem | None]]
    problems: list[Problem] = attrs.field(factory=list)

    def __iter__(self) -> Iterator[str]:
        for _, line, problem in self.lines:
            if problem is not None:
                self.problems.append(problem)
            yield line

    def new_problems(self) -> tuple[Problem, ...]:
        """Return the problems of the lines read since the last call."""
        problems, self.problems = tuple(self.problems), []
        return problems


def csv_rows(file: IO[bytes]) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header; rows without content are skipped."""
    lines = _lines(file)
    top = next(lines, None)
    while top is not None and not top[1].strip():
        top = next(lines, None)
    if top is None:
        return
    decoded = _Decoded(itertools.chain([top], lines))
    # Spreadsheets write semicolons in many countries. Field names contain none of the three.
    cells = csv.reader(decoded, delimiter=max(",;\t", key=top[1].count), strict=True)
    skipped = top[0] - 1
    header: list[str] | None = None
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
            header = [name.strip() for name in row]
            problems += header_problems(header)
            if problems:
                yield Row(line, problems=problems)
        elif problems:
            yield Row(line, problems=problems)
        elif any(cell.strip() for cell in row):
            yield _csv_row(line, header, row)


def _csv_row(line: int, header: list[str], row: list[str]) -> Row:
    fields: dict[str, object] = {}
    problems: list[Problem] = []
    for place, cell in enumerate(row):
        name = header[place] if place < len(header) else ""
        if not cell.strip() or (name and is_unknown(name)):
            continue
        if not name:
            problems.append(Problem("", f"column {place + 1} has no name in the header"))
            continue
        try:
            fields[name] = _cell(name, cell)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
    return Row(line, fields, tuple(problems))


def _cell(name: str, cell: str) -> object:
    """Return the value of a cell.

    Raises:
        ValueError: The text is not a value of the field.
    """
    text = cell.strip()
    match name:
        case "guidance_scale":
            try:
                return float(text)
            except ValueError:
                raise ValueError(f"expected a number from 0 to 1, got {text[:40]!r}") from None
        case "sound":
            if text.lower() not in _BOOLEANS:
                raise ValueError(f"expected true or false, got {text[:40]!r}")
            return _BOOLEANS[text.lower()]
        case _ if name in JSON_FIELDS:
            return parse_json_cell(name, text)
        case "prompt" | "negative_prompt":
            return cell
        case _:
            return text


def parse_json_cell(name: str, text: str) -> object:
    """Return the value of a cell with JSON.

    Raises:
        ValueError: The text is not JSON.
    """
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError):
        kind = "object" if name == "extra" else "list"
        raise ValueError(f"expected a JSON {kind}, got {text[:40]!r}") from None


_BOOLEANS: Final[Mapping[str, bool]] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
