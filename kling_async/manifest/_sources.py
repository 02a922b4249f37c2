"""Where rows come from: a file, a folder of images, or an iterable."""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import attrs

from kling_async.errors import Problem

from ._parquet import parquet_rows
from ._row import Row
from ._text import csv_rows, json_rows

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._row import Source


class Reader(Protocol):
    """The rows of one format."""

    def __call__(self, file: IO[bytes], /) -> Iterator[Row]:
        """All rows of a file that is open at its beginning."""
        ...


READERS: Final[Mapping[str, Reader]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
PICTURES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
"""Suffixes of what is taken for an image in a folder; whether it is one is found out by its content."""
_LONGEST_PROMPT: Final = 2**16


@attrs.frozen
class TextFile:
    """A file with a row after another."""

    path: Path

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return str(self.path)

    @property
    def unit(self) -> str:
        """Lines, or rows of what has no lines."""
        return "row" if self.path.suffix.lower() == ".parquet" else "line"

    def rows(self) -> Generator[Row, None, None]:
        """All rows."""
        with self.path.open("rb") as file:
            if file.peek(2)[:2] in {b"\xff\xfe", b"\xfe\xff"}:
                yield Row(1, problems=(Problem("", "the file is UTF-16; save it as UTF-8"),))
                return
            yield from READERS[self.path.suffix.lower()](file)


@attrs.frozen
class Folder:
    """A row per image that lies in the folder, in the order of the names; hidden files and folders in it are not seen.

    The key is the file's name without its suffix. A text file of the same name has its prompt.
    """

    path: Path
    unit: str = attrs.field(default="file", init=False)

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return str(self.path)

    def rows(self) -> Generator[Row, None, None]:
        """All rows."""
        with os.scandir(self.path) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in PICTURES  # noqa: PTH122 -- far faster for a million
                and not entry.is_dir()
            )
        for number, name in enumerate(names, 1):
            yield self._row(number, self.path / name)

    def _row(self, number: int, picture: Path) -> Row:
        # In full, so that it is found from whatever root, and refused outside of it.
        fields: dict[str, object] = {"key": picture.stem, "image": str(picture.absolute())}
        beside = picture.with_suffix(".txt")
        try:
            with beside.open("rb") as file:
                prompt = file.read(_LONGEST_PROMPT).decode("utf-8-sig").strip()
        except FileNotFoundError:
            return Row(number, fields, file=str(picture))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            return Row(number, fields, (Problem("prompt", f"cannot be read: {reason}"),), str(beside))
        return Row(number, {**fields, "prompt": prompt}, file=str(picture))


@attrs.frozen
class Given:
    """An iterable that begins anew whenever it is asked."""

    name: str
    items: Iterable[Mapping[str, object]]
    unit: str = attrs.field(default="row", init=False)

    def rows(self) -> Generator[Row, None, None]:
        """All rows."""
        yield from _numbered(self.items)


class Spooled:
    """An iterator, which goes once: its rows are kept in a temporary file until nobody has the manifest any more."""

    def __init__(self, name: str, items: Iterator[Mapping[str, object]]) -> None:
        self.name = name
        self.unit = "row"
        descriptor, path = tempfile.mkstemp(prefix="kling-async-")
        self._path = Path(path)
        weakref.finalize(self, self._path.unlink, missing_ok=True)
        with os.fdopen(descriptor, "wb") as file:
            for number, item in enumerate(items, 1):
                try:
                    pickle.dump(item, file)
                except Exception as error:
                    raise TypeError(
                        f"{name}: row {number} cannot be kept until all are checked; give a list"
                    ) from error

    def rows(self) -> Generator[Row, None, None]:
        """All rows."""
        with self._path.open("rb") as file:
            yield from _numbered(_unpickled(file))


def given(name: str, rows: Iterable[Mapping[str, object]]) -> Source:
    """The rows of an iterable of any kind."""
    return Spooled(name, rows) if isinstance(rows, Iterator) else Given(name, rows)


def _unpickled(file: IO[bytes]) -> Iterator[Mapping[str, object]]:
    while True:
        try:
            item: Mapping[str, object] = pickle.load(file)  # noqa: S301 -- our own file, that nobody else may write
        except EOFError:
            return
        yield item


def _numbered(items: Iterable[object]) -> Iterator[Row]:
    for number, item in enumerate(items, 1):
        problem: Problem | None = None
        fields: dict[str, object] = {}
        if not isinstance(item, Mapping):
            problem = Problem("", f"expected a mapping of fields, got {type(item).__name__}")
        elif not all(isinstance(name, str) for name in item):
            problem = Problem("", "has fields whose names are no texts")
        else:
            fields = dict(item)
        yield Row(number, fields, () if problem is None else (problem,))
