"""Sources of rows: a file, a folder of images, or an iterable."""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import attrs

from kling_async._files import open_file
from kling_async.errors import Problem

from ._parquet import parquet_rows
from ._row import Row
from ._text import csv_rows, json_rows

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._row import Source


class Reader(Protocol):
    """Reads the rows of one format."""

    def __call__(self, file: IO[bytes], /) -> Iterator[Row]:
        """Yield the rows of a file that is open at its beginning."""
        ...


READERS: Final[Mapping[str, Reader]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
"""Suffixes of files that are rows of a folder; the content is checked later."""
_MAX_PROMPT_BYTES: Final = 2**16


@attrs.frozen
class ManifestFile:
    """A file of rows."""

    path: Path

    @property
    def name(self) -> str:
        """Path as given."""
        return str(self.path)

    @property
    def unit(self) -> str:
        """Name of a position: line, or row in a file without lines."""
        return "row" if self.path.suffix.lower() == ".parquet" else "line"

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        with open_file(self.path) as file:
            if file.read(2) in {b"\xff\xfe", b"\xfe\xff"}:
                yield Row(1, problems=(Problem("", "the file is UTF-16; save it as UTF-8"),))
                return
            file.seek(0)
            yield from READERS[self.path.suffix.lower()](file)


@attrs.frozen
class Folder:
    """A folder with one row per image, sorted by name. Hidden files and subfolders are ignored.

    The key is the file's name without its suffix. A text file of the same name contains its prompt.
    """

    path: Path
    unit: str = attrs.field(default="file", init=False)

    @property
    def name(self) -> str:
        """Path as given."""
        return str(self.path)

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        with os.scandir(self.path) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 -- far faster for a million
                and not entry.is_dir()
            )
        for number, name in enumerate(names, 1):
            yield self._row(number, self.path / name)

    def _row(self, number: int, image: Path) -> Row:
        # An absolute path is found from any root, and refused outside of it.
        fields: dict[str, object] = {"key": image.stem, "image": str(image.absolute())}
        text = image.with_suffix(".txt")
        try:
            with open_file(text) as file:
                prompt = file.read(_MAX_PROMPT_BYTES).decode("utf-8-sig").strip()
        except FileNotFoundError:
            return Row(number, fields, file=str(image))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            return Row(number, fields, (Problem("prompt", f"cannot be read: {reason}"),), str(text))
        return Row(number, {**fields, "prompt": prompt}, file=str(image))


@attrs.frozen
class Repeatable:
    """An iterable that can be iterated over repeatedly."""

    name: str
    items: Iterable[Mapping[str, object]]
    unit: str = attrs.field(default="row", init=False)

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        yield from _numbered(self.items)


class Spooled:
    """An iterator, whose rows are kept in a temporary file until this object is garbage-collected."""

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
                        f"{name}: row {number} cannot be pickled, which keeps the rows of an iterator; pass a list"
                    ) from error

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        with self._path.open("rb") as file:
            yield from _numbered(_unpickled(file))


def source_of(name: str, rows: Iterable[Mapping[str, object]]) -> Source:
    """Return the source for an iterable of any kind."""
    return Spooled(name, rows) if isinstance(rows, Iterator) else Repeatable(name, rows)


def _unpickled(file: IO[bytes]) -> Iterator[Mapping[str, object]]:
    while True:
        try:
            item: Mapping[str, object] = pickle.load(file)  # noqa: S301 -- our own file, writable by this user only
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
            wrong = next(name for name in item if not isinstance(name, str))
            problem = Problem("", f"expected names of fields as text, got {type(wrong).__name__}")
        else:
            fields = dict(item)
        yield Row(number, fields, () if problem is None else (problem,))
