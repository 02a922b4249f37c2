"""Sources of rows: a file, stdin, pictures, or an iterable."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import attrs

from kling_async._files import open_file
from kling_async.errors import ManifestError, Problem, RowProblem

from ._bytes import GZIP, OLE, as_utf8, unpacked
from ._columns import Columns
from ._json import json_array_rows
from ._parquet import parquet_rows
from ._pictures import NamedPictures, Pictures, is_pattern, is_picture, matches
from ._row import Row
from ._spreadsheet import xlsx_rows
from ._text import csv_rows, json_rows

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ._row import Source


class Reader(Protocol):
    """Reads the rows of one format."""

    def __call__(self, file: IO[bytes], columns: Columns, /) -> Iterator[Row]:
        """Yield the rows of a file that is open at its beginning."""
        ...


_TEXTS: Final[Mapping[str, Reader]] = {
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_array_rows,
}
READERS: Final[Mapping[str, Reader]] = {**_TEXTS, ".parquet": parquet_rows, ".xlsx": xlsx_rows}
"""Readers by the suffixes of files; that of a text may be followed by `.gz`."""
STDIN: Final = "-"
_EXPECTED: Final = (
    f"expected a folder of pictures, pictures, a pattern such as photos/*.jpg, or a file of {', '.join(READERS)} "
    "(also packed: .csv.gz)"
)
_FRAMES: Final[Mapping[str, str]] = {
    "pandas": 'frame.to_dict("records")',
    "polars": "frame.iter_rows(named=True)",
    "datasets": "one split of it",
}
"""Expressions that yield rows as mappings, by the library."""


@attrs.frozen
class _Binary:
    """A format that is no text.

    Attributes:
        kind: Its name for people.
        suffix: Suffix of files in it that are lists; empty if none are.
    """

    kind: str
    suffix: str = ""


_BINARIES: Final[Mapping[bytes, _Binary]] = {
    GZIP: _Binary("packed twice"),
    b"PK\x03\x04": _Binary("an Excel workbook (.xlsx) or another zip file", ".xlsx"),
    OLE: _Binary("an old Excel workbook (.xls)"),
    b"PAR1": _Binary("a Parquet file", ".parquet"),
    b"\xff\xd8\xff": _Binary("a JPEG picture"),
    b"\x89PNG": _Binary("a PNG picture"),
    b"%PDF": _Binary("a PDF"),
}
"""Formats of files that people name or pipe as a list, by their first bytes."""
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Beginning of a URL, also of one in a path."""


@attrs.frozen(eq=False)
class ManifestFile:
    """A file of rows.

    Attributes:
        path: The file.
        columns: The meaning of its columns.
        suffix: Suffix that names its format.
        name: Name of the source.
    """

    path: Path
    columns: Columns
    suffix: str
    name: str
    left_out: Mapping[str, int] = attrs.field(factory=dict, init=False)

    @property
    def unit(self) -> str:
        """Name of a position: line, or row in a file without lines."""
        return "line" if READERS[self.suffix] in {csv_rows, json_rows} else "row"

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        with open_file(self.path) as file:
            if self.suffix in _TEXTS:
                text = unpacked(file)
                binary = _binary_of(text)
                if binary is not None:
                    yield Row(0, problems=(Problem("", f"is {binary.kind}, and no text with rows"),))
                    return
                yield from READERS[self.suffix](as_utf8(text), self.columns)
            else:
                yield from READERS[self.suffix](file, self.columns)


@attrs.frozen(eq=False)
class Repeatable:
    """An iterable that can be iterated over repeatedly."""

    name: str
    items: Iterable[Mapping[str, object]]
    columns: Columns
    unit: str = attrs.field(default="row", init=False)
    left_out: Mapping[str, int] = attrs.field(factory=dict, init=False)

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        yield from _numbered(self.items, self.columns)


class Spooled:
    """An iterator, whose rows are kept in a temporary file until this object is garbage-collected."""

    def __init__(self, name: str, items: Iterator[Mapping[str, object]], columns: Columns) -> None:
        self.name = name
        self.unit = "row"
        self.left_out: Mapping[str, int] = {}
        self._columns = columns
        descriptor, self._path = _temporary(self)
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
            yield from _numbered(_unpickled(file), self._columns)


class Piped:
    """A list that was piped into the process, kept in a temporary file until this object is garbage-collected."""

    def __init__(self, file: IO[bytes], columns: Columns) -> None:
        self.name = "stdin"
        descriptor, path = _temporary(self)
        with os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(file, copy)
        self._file = ManifestFile(path, columns, _suffix_by_content(path), self.name)
        self.unit = self._file.unit
        self.left_out: Mapping[str, int] = {}

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        yield from self._file.rows()


def source_of_rows(name: str, rows: Iterable[Mapping[str, object]], columns: Columns) -> Source:
    """Return the source for an iterable of any kind.

    Raises:
        ManifestError: It is a data frame, or a mapping of columns, and no rows.
    """
    if isinstance(rows, Mapping) or type(rows).__name__ in {"DataFrame", "LazyFrame"}:
        said = f"expected rows, each a mapping of fields, got {type(rows).__name__}{_frame_advice(rows)}"
        raise ManifestError([RowProblem(name, None, "", said)])
    return Spooled(name, rows, columns) if isinstance(rows, Iterator) else Repeatable(name, rows, columns)


def source_of_paths(
    paths: Sequence[str | os.PathLike[str]], columns: Columns, *, recursive: bool
) -> tuple[Source, Path]:
    """Return the source that paths name, and the folder of its pictures.

    Raises:
        ManifestError: They name none.
        OSError: A folder cannot be read.
    """
    names = [os.fspath(path) for path in paths]
    if len(names) == 1:
        return _source_of_path(names[0], columns, recursive=recursive)
    pictures: list[Path] = []
    for path in names:
        found = matches(path) if is_pattern(path) else [Path(path)]
        pictures += found
        wrong = next((one for one in found if not is_picture(one) or one.is_dir()), None)
        if wrong is not None or not found:
            got = wrong or "a pattern that matches none"
            raise _refused(path, f"expected one list, one folder, or pictures alone, got {got}")
    if not pictures:
        raise _refused("", _EXPECTED)
    return _named(pictures)


def batch_name(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Return the name of the batch of a list: of a file or folder its own, of several pictures that of their folder."""
    if len(paths) == 1:
        path = os.fspath(paths[0])
        if path == STDIN:
            return "stdin"
        if not is_pattern(path):
            name = Path(path).resolve()
            return Path(name.stem).stem if name.suffix == ".gz" else name.stem
    return _common(_fixed_part(os.fspath(path)) for path in paths).name or "pictures"


def _source_of_path(path: str, columns: Columns, *, recursive: bool) -> tuple[Source, Path]:
    where = Path(path)
    if path == STDIN:
        if sys.stdin is None:
            raise _refused("stdin", "is closed: pipe a list into the process")
        return Piped(sys.stdin.buffer, columns), Path()
    if _URL.match(path) and not where.exists():
        raise _refused(path, "is a URL, and no list: write it into the column image of one")
    if is_pattern(path):
        found = matches(path)
        if not found:
            raise _refused(path, "no picture matches the pattern")
        source, _ = _named(found)
        return attrs.evolve(source, name=path), _fixed_part(path)
    suffix = where.suffix.lower()
    if suffix == ".gz":
        suffix = Path(where.stem).suffix.lower()
        if suffix not in _TEXTS:
            got = suffix or "no suffix"
            raise _refused(path, f"expected a packed file of {', '.join(_TEXTS)}, got {got} before .gz")
    if suffix in READERS:
        return ManifestFile(where, columns, suffix, str(where)), where.parent
    if where.is_dir():
        return Pictures(where, recursive), where
    if is_picture(where):
        return _named([where])
    raise _refused(path, f"{_EXPECTED}, got {where.suffix or 'no suffix'}")


def _named(pictures: list[Path]) -> tuple[NamedPictures, Path]:
    once = tuple(dict.fromkeys(picture.absolute() for picture in pictures))
    folder = _common(picture.parent for picture in once)
    name = str(pictures[0]) if len(once) == 1 else str(folder)
    return NamedPictures(once, name), folder


def _common(folders: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


def _fixed_part(path: str) -> Path:
    """Return the folder of a path, or of a pattern that below which its wildcards begin."""
    folder = Path(path).parent
    while is_pattern(str(folder)):
        folder = folder.parent
    return folder


def _refused(name: str, message: str) -> ManifestError:
    return ManifestError([RowProblem(name, None, "", message)])


def _suffix_by_content(path: Path) -> str:
    """Return the suffix of the format that a file has by its content; that of a CSV file for anything unknown."""
    with path.open("rb") as file:
        binary = _binary_of(file)
        if binary is not None and binary.suffix:
            return binary.suffix
        text = as_utf8(unpacked(file)).read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return ".json" if text.startswith((b"[", b"{")) else ".csv"


def _binary_of(file: IO[bytes]) -> _Binary | None:
    """Return the format of a file that is no text, by its first bytes; None if it may be a text."""
    head = file.read(4)
    file.seek(0)
    return next((binary for magic, binary in _BINARIES.items() if head.startswith(magic)), None)


def _temporary(owner: object) -> tuple[int, Path]:
    """Return a descriptor and the path of a new temporary file, which is deleted with its owner."""
    descriptor, name = tempfile.mkstemp(prefix="kling-async-")
    path = Path(name)
    weakref.finalize(owner, path.unlink, missing_ok=True)
    return descriptor, path


def _unpickled(file: IO[bytes]) -> Iterator[Mapping[str, object]]:
    while True:
        try:
            item: Mapping[str, object] = pickle.load(file)  # noqa: S301 -- our own file, writable by this user only
        except EOFError:
            return
        yield item


def _frame_advice(value: object) -> str:
    """Return what to pass instead of a data frame, or of its series or tuples; empty for anything else."""
    instead = _FRAMES.get(type(value).__module__.partition(".")[0])
    return f"; pass {instead}" if instead else ""


def _numbered(items: Iterable[object], columns: Columns) -> Iterator[Row]:
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            said = f"expected a mapping of fields, got {type(item).__name__}"
            problem = Problem("", said + _frame_advice(item))
            yield Row(number, problems=(problem,))
        elif not all(isinstance(name, str) for name in item):
            wrong = next(name for name in item if not isinstance(name, str))
            problem = Problem("", f"expected names of fields as text, got {type(wrong).__name__}")
            yield Row(number, problems=(problem,))
        else:
            yield columns.row(number, item)
