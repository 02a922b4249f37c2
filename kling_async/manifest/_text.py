"""Rows of text files: JSON lines, and CSV with a header."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs

from kling_async.errors import Problem

from ._row import Row, header_problems, unknown

JSON_FIELDS: Final = frozenset({"extra", "multi_prompt", "element_list", "voice_list"})
"""Fields whose value a cell has as JSON."""


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, str, Problem | None]]:
    """Lines with their numbers. What is not UTF-8 is replaced, so that the lines after it can be read, and told."""
    for number, line in enumerate(file, 1):
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            yield number, raw.decode(), None
        except UnicodeDecodeError as error:
            message = f"is not UTF-8 (byte 0x{raw[error.start]:02x} at place {error.start + 1}); save the file as UTF-8"
            yield number, raw.decode(errors="replace"), Problem("", message)


class _RepeatedFieldError(ValueError):
    pass


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # The last one would win silently, and it may be the more expensive one.
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise _RepeatedFieldError(repeated)
    return fields


# One for all rows: `json.loads` with a hook makes a decoder per call.
_JSON: Final = json.JSONDecoder(object_pairs_hook=_json_object)


def json_rows(file: Iterable[bytes]) -> Iterator[Row]:
    for number, line, undecoded in _lines(file):
        if undecoded is not None:
            yield Row(number, problems=(undecoded,))
            continue
        if not line.strip():
            continue
        try:
            value = _JSON.decode(line)
        except _RepeatedFieldError as error:
            problem = Problem(str(error), "is given twice")
        except json.JSONDecodeError as error:
            problem = Problem("", f"is not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            problem = Problem("", f"is not JSON that can be read: {error}")
        else:
            if isinstance(value, dict):
                yield Row(number, value)
                continue
            problem = Problem("", f"expected one JSON object per line, got {type(value).__name__}")
        yield Row(number, problems=(problem,))


@attrs.define(eq=False)
class _Decoded:
    """Lines for the CSV reader, which asks for them when a quoted cell goes on."""

    lines: Iterator[tuple[int, str, Problem | None]]
    problems: list[Problem] = attrs.field(factory=list)

    def __iter__(self) -> Iterator[str]:
        for _, line, problem in self.lines:
            if problem is not None:
                self.problems.append(problem)
            yield line

    def taken(self) -> tuple[Problem, ...]:
        """What was wrong with the lines since it was asked last."""
        problems, self.problems = tuple(self.problems), []
        return problems


def csv_rows(file: Iterable[bytes]) -> Iterator[Row]:
    lines = _lines(file)
    top = next(lines, None)
    while top is not None and not top[1].strip():
        top = next(lines, None)
    if top is None:
        return
    decoded = _Decoded(itertools.chain([top], lines))
    # Spreadsheets of many countries write semicolons; a name of a field holds none of the three.
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
            yield Row(line, problems=(*decoded.taken(), Problem("", f"is not CSV: {error}")))
            if header is None:
                return
            continue
        problems = decoded.taken()
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
        if not cell.strip() or (name and unknown(name)):
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
    """The value of a cell.

    Raises:
        ValueError: It is none of this field.
    """
    text = cell.strip()
    match name:
        case "guidance_scale":
            try:
                return float(text)
            except ValueError:
                raise ValueError(f"expected a number from 0 to 1, got {text[:40]!r}") from None
        case "sound":
            if text.lower() not in _TRUTH:
                raise ValueError(f"expected true or false, got {text[:40]!r}")
            return _TRUTH[text.lower()]
        case _ if name in JSON_FIELDS:
            return json_value(name, text)
        case "prompt" | "negative_prompt":
            return cell
        case _:
            return text


def json_value(name: str, text: str) -> object:
    """The value of a cell that has JSON in it.

    Raises:
        ValueError: It has not.
    """
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError):
        kind = "object" if name == "extra" else "list"
        raise ValueError(f"expected a JSON {kind}, got {text[:40]!r}") from None


_TRUTH: Final[Mapping[str, bool]] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
