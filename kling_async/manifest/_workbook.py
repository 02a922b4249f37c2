"""Size of an Excel workbook, by its XML, before a library makes a table of it in memory.

One far cell in a tiny file makes the table as large as all cells up to it, and zeros pack a thousandfold.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from typing import IO, Final

import attrs

from ._bytes import OLE

MAX_CELLS: Final = 2**24
"""Cells of a sheet, from the first row and column to the last used ones: 500 MB of memory."""
MAX_UNPACKED_BYTES: Final = 2**29
_MAX_ELEMENT_BYTES: Final = 2**20
"""Bytes from one tag to the next; a cell holds 32,767 characters."""
_CHUNK_BYTES: Final = 2**20
_OTHERS: Final = {"xl/workbook.bin": "a binary workbook (.xlsb)", "content.xml": "an OpenDocument sheet (.ods)"}
_CELL: Final = re.compile(rb'<c r="([A-Z]{1,3})([0-9]{1,7})"')
_NAME: Final = re.compile(rb"""\sr\s*=\s*["']([A-Za-z]{0,3})([0-9]{0,7})["']""")
_TAG: Final = re.compile(rb"<(?:\w+:)?(row|c)(?=[\s>/])([^<>]*>)")
_LETTERS: Final = 26


def size_problem(file: IO[bytes]) -> str:
    """Return why a workbook cannot be read into memory; empty if it can.

    Args:
        file: The file, at its beginning, where it is left.
    """
    magic = file.read(len(OLE))
    file.seek(0)
    if magic == OLE:
        # Their sheets have 16 million cells at most.
        return ""
    try:
        with zipfile.ZipFile(file) as parts:
            return _problem(parts)
    # RuntimeError: a part is encrypted, or packed in a way that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        return f"cannot be read as an Excel workbook: {error}; save it again as .xlsx, or as CSV UTF-8"
    finally:
        file.seek(0)


def _problem(parts: zipfile.ZipFile) -> str:
    unpacked = 0
    for part in parts.infolist():
        if part.filename in _OTHERS:
            return f"is {_OTHERS[part.filename]} by its content; save it again as .xlsx, or as CSV UTF-8"
        sheet = _Sheet()
        with parts.open(part) as content:
            while chunk := content.read(_CHUNK_BYTES):
                unpacked += len(chunk)
                if unpacked > MAX_UNPACKED_BYTES:
                    return f"expected at most {MAX_UNPACKED_BYTES:,} bytes unpacked, got more; save it as CSV UTF-8"
                problem = sheet.add(chunk)
                if problem and part.filename.endswith(".xml"):
                    return f"{problem} ({part.filename}); delete what lies far outside, or save the sheet as CSV UTF-8"
    return ""


@attrs.define
class _Sheet:
    """Rows and columns that the cells of a sheet span, as far as it was read.

    Attributes:
        rows: Number of the last row.
        columns: Number of the last column.
    """

    rows: int = 0
    columns: int = 0
    _row: int = 0
    """Number of the present row; one without a number follows the last."""
    _width: int = 0
    """Number of the present column; a cell without a name follows the last."""
    _rest: bytes = b""

    def add(self, chunk: bytes) -> str:
        """Read on; return why the sheet is too large, empty if it is not."""
        text = self._rest + chunk
        end = max(text.rfind(b"<"), 0)
        text, self._rest = text[:end], text[end:]
        if len(self._rest) > _MAX_ELEMENT_BYTES:
            return f"expected elements of at most {_MAX_ELEMENT_BYTES:,} bytes, got a longer one"
        if not self._add_named(text):
            self._walk(text)
        if self.rows * self.columns > MAX_CELLS:
            return f"expected at most {MAX_CELLS:,} cells, got {self.rows:,} rows of {self.columns:,} columns"
        return ""

    def _add_named(self, text: bytes) -> bool:
        """Add cells that all have their names in the usual place, many at a time; return False if any does not."""
        cells = _CELL.findall(text)
        if len(cells) != text.count(b"<c") + text.count(b":c"):
            return False
        if not cells:
            return True
        columns = max(self.columns, *map(_column, {letters for letters, _ in cells}))
        last = max(map(int, {row for _, row in cells}))
        rows = max(self.rows, last)
        # Some may be empty.
        if rows * columns > MAX_CELLS:
            return False
        self.rows, self.columns, self._row = rows, columns, last
        return True

    def _walk(self, text: bytes) -> None:
        """Look at rows and cells one by one, some of which are empty, or have no number or name."""
        for kind, rest in _TAG.findall(text):
            named = _NAME.search(rest)
            if kind == b"row":
                self._row = int(named[2]) if named and named[2] else self._row + 1
                self._width = 0
                continue
            self._width = _column(named[1]) if named else self._width + 1
            if named and named[2]:
                self._row = int(named[2])
            if not rest.endswith(b"/>"):
                self.rows, self.columns = max(self.rows, self._row), max(self.columns, self._width)


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters.upper():
        number = number * _LETTERS + letter - ord("A") + 1
    return number
