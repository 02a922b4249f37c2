"""Rows of a JSON file with one array of objects, read piece by piece."""

from __future__ import annotations

import codecs
import json
import re
from typing import IO, TYPE_CHECKING, Final

from kling_async.errors import Problem

from ._row import Row
from ._text import EXPECTED_JSON, MAX_LINE_BYTES, json_rows, too_many_values
from ._values import DECODER, RepeatedFieldError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._columns import Columns

_CHUNK_BYTES: Final = 2**16
_SPACE: Final = " \t\r\n\ufeff"
_SPACES: Final = re.compile(f"[{_SPACE}]*")


def json_array_rows(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Yield the rows of an array of objects, numbered from 1; or of JSON lines, which have the suffix `.json` too."""
    try:
        yield from _rows(file, columns)
    except UnicodeDecodeError as error:
        said = f"is not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8; the rest was not read"
        yield Row(0, problems=(Problem("", said),))


def _rows(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    text = _Text(file)
    first = text.next_character()
    if first == "[":
        yield from _array_rows(text, columns)
    elif first == "{" and not text.is_one_object_on_its_line():
        yield Row(0, problems=(Problem("", EXPECTED_JSON),))
    elif first:
        file.seek(0)
        yield from json_rows(file, columns)


def _array_rows(text: _Text, columns: Columns) -> Iterator[Row]:
    text.skip()
    number = 0
    while text.next_character() not in {"]", ""}:
        number += 1
        try:
            value = text.value()
        except RepeatedFieldError as error:
            # How far the object reaches is not known.
            yield Row(number, problems=(Problem(str(error), "is given twice; the rest was not read"),))
            return
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            said = f"{error.msg} (line {error.lineno} of the row)" if isinstance(error, json.JSONDecodeError) else error
            yield Row(number, problems=(Problem("", f"is not JSON: {said}; the rest was not read"),))
            return
        if isinstance(value, dict):
            yield columns.row(number, value)
        else:
            yield Row(number, problems=(Problem("", f"expected an object, got {type(value).__name__}"),))
        if text.next_character() == ",":
            text.skip()
        elif text.next_character() not in {"]", ""}:
            yield Row(number + 1, problems=(Problem("", "is not JSON: expected a comma; the rest was not read"),))
            return
    if text.next_character() != "]":
        yield Row(number + 1, problems=(Problem("", "is not JSON: the array has no end, the file was cut"),))


class _Text:
    """Text of a file from the present place on, of which only as much is in memory as one value needs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="strict").decode
        self._text = ""
        self._place = 0
        self._ended = False

    def next_character(self) -> str:
        """Return the next character that is no space; empty at the end."""
        while True:
            match = _SPACES.match(self._text, self._place)
            self._place = self._place if match is None else match.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read(_CHUNK_BYTES):
                return ""

    def skip(self) -> None:
        """Skip a character."""
        self._place += 1

    def is_one_object_on_its_line(self) -> bool:
        """Return whether an object ends on the line that it begins on."""
        wanted = _CHUNK_BYTES
        while "\n" not in self._text and len(self._text) < MAX_LINE_BYTES and self._read(wanted):
            # Twice as much each time, so that a long line is not copied too often.
            wanted *= 2
        line = self._text[self._place :].partition("\n")[0].rstrip(_SPACE)
        return line.endswith("}")

    def value(self) -> object:
        """Return the JSON value here, and go behind it.

        Raises:
            ValueError: There is none.
        """
        self.next_character()
        wanted = _CHUNK_BYTES
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError:
                # It may go on. Twice as much each time, so that a long value is not parsed too often.
                self._check_values(len(self._text))
                if len(self._text) - self._place > MAX_LINE_BYTES or not self._read(wanted):
                    raise
                wanted *= 2
            else:
                self._check_values(end)
                self._place = end
                return value

    def _check_values(self, end: int) -> None:
        """Raise if there are too many values up to an end.

        Raises:
            ValueError: There are.
        """
        problem = too_many_values(self._text, self._place, end)
        if problem:
            raise ValueError(problem)

    def _read(self, size: int) -> bool:
        """Read on; return whether there was more.

        Raises:
            ValueError: It is no UTF-8.
        """
        if self._ended:
            return False
        chunk = self._file.read(size)
        self._ended = not chunk
        self._text = self._text[self._place :] + self._decode(chunk, final=self._ended)
        self._place = 0
        return not self._ended
