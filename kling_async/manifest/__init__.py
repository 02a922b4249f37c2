"""Manifests: read jobs from a file, a folder of images or an iterable, and check all of them first.

```python
manifest = read_manifest("jobs.jsonl")          # or jobs.csv, jobs.parquet
manifest = read_manifest("photos/", prompt="She turns and smiles")
manifest = read_rows(dataset, model="kling-v2.1-pro")
async with kling.batch(manifest, save_to="videos/") as batch: ...
```

A row has the fields of `Job`, and optionally `key`. An image is a URL, or a file below the manifest's folder; in
`extra`, `element_list` and `voice_list`, a text `file:clips/walk.mp4` is such a file, and every other text is sent. In
a folder every image is a row: its key is the name of the file, and its prompt is in a text file beside it, `anna.txt`
beside `anna.png`.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack, cast

import anyio.to_thread
import attrs

from kling_async._core.catalogue import Model
from kling_async._core.prices import Certainty, Kind, Price
from kling_async._images.preflight import require_pillow
from kling_async.errors import ManifestError, Problem, RowProblem

from ._check import Keyed, check_rows, job_of_row
from ._row import NOTE, Source, located
from ._sources import READERS, Folder, ManifestFile, source_of

if TYPE_CHECKING:
    import os

    from kling_async._core.job import JobFields

__all__ = ["NOTE", "Kind", "Manifest", "read_manifest", "read_rows"]

_MAX_CHUNK_ROWS: Final = 64
_MAX_CHUNK_BYTES: Final = 2**20


@attrs.define(eq=False)
class Manifest:
    """Checked jobs. Every iteration, with `for` or `async for`, reads the source again, row by row.

    Attributes:
        name: Name of the source.
        root: Folder of the image files; None if files are given as `Path`s only.
        kinds: Number of rows of each kind.
        warnings: Properties of images that the service may not accept.
        models: The models that rows have, by id.
    """

    name: str
    root: Path | None
    kinds: Mapping[Kind, int]
    warnings: tuple[RowProblem, ...]
    models: Mapping[str, Model]
    _source: Source = attrs.field(repr=False)
    _common: Mapping[str, object] = attrs.field(repr=False)
    _fit: bool = attrs.field(repr=False)
    _own_models: Mapping[str, Model] = attrs.field(repr=False)
    _cautions: Mapping[tuple[str, Problem], int] = attrs.field(repr=False)

    def __len__(self) -> int:
        return sum(self.kinds.values())

    def __iter__(self) -> Iterator[Keyed]:
        """Yield key and job of every row. Rows are checked again, since files may have changed.

        Raises:
            ManifestError: A row is not valid any more.
            OSError: The file cannot be read any more.
        """
        with closing(self._source.rows()) as rows:
            for row in rows:
                found = job_of_row(row, self.root, self._common, fit=self._fit, models=self._own_models)
                if isinstance(found, tuple):
                    yield found
                else:
                    raise ManifestError([located(self._source, row, problem) for problem in found])

    def price(self, provider: str = "wavespeed") -> Price:
        """Return the list price of all rows, in USD; unknown if that of one row is unknown."""
        total, certainty = Decimal(0), Certainty.STATED
        for kind, count in self.kinds.items():
            each = self.models[kind.model].price_of(kind, provider)
            if each.usd is None:
                return each
            total += each.usd * count
            if each.certainty.approximate:
                certainty = max(certainty, each.certainty, key=lambda known: known.rank)
        return Price(total, certainty)

    def cautions(self, provider: str = "wavespeed") -> dict[Problem, int]:
        """Return what may not be as expected at a provider, and is not refused, with the number of rows."""
        return {caution: rows for (name, caution), rows in self._cautions.items() if name == provider}

    async def __aiter__(self) -> AsyncGenerator[Keyed, None]:
        """Yield key and job of every row, read in a worker thread so that the event loop is not blocked."""
        items = iter(self)
        try:
            while chunk := await anyio.to_thread.run_sync(_chunk, items):
                for item in chunk:
                    yield item
        finally:
            cast("Generator[Keyed, None, None]", items).close()


def read_manifest(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    fit: bool = False,
    models: Iterable[Model] = (),
    **common: Unpack[JobFields],
) -> Manifest:
    """Read a manifest and check every row, including its files.

    The whole file is read now, and again by every iteration; rows are not kept in memory. Of a file only the first
    and last bytes are read.

    Args:
        path: JSON lines (`.jsonl`, `.ndjson`) or CSV with a header (`.csv`), in UTF-8; Parquet (`.parquet`, extra
            `parquet`), whose problems have rows instead of lines; or a folder of images.
        root: Folder of the files; files outside of it are refused. By default the manifest's own folder.
        fit: Accept other formats and larger images, which are converted: files by the session, which needs `fit=True`
            too, bytes in rows during iteration.
        models: Models that the catalogue does not have, such as those of `Model.from_service`; rows name them by their
            ids.
        common: Fields of `Job` for rows that do not have them.

    Raises:
        ManifestError: Rows are wrong; `problems` has all problems of all lines.
        ConfigurationError: pyarrow, for Parquet, or Pillow, for `fit`, is not installed.
    """
    where = Path(path)
    source: Source = ManifestFile(where)
    folder = where.parent
    if where.suffix.lower() not in READERS:
        source, folder = Folder(where), where
        if not where.is_dir():
            expected = f"expected a folder of images, or a file of {', '.join(READERS)}"
            message = f"{expected}, got {where.suffix or 'no suffix'}"
            raise ManifestError([RowProblem(source.name, None, "", message)])
    try:
        return _checked(source, (folder if root is None else Path(root)).resolve(), common, fit=fit, models=models)
    except (OSError, RuntimeError) as error:
        # Until Python 3.13 a loop of symbolic links is a RuntimeError.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ManifestError([RowProblem(source.name, None, "", f"cannot be read: {reason}")]) from error


def read_rows(
    rows: Iterable[Mapping[str, object]],
    *,
    name: str = "rows",
    root: str | os.PathLike[str] | None = None,
    fit: bool = False,
    models: Iterable[Model] = (),
    **common: Unpack[JobFields],
) -> Manifest:
    """Check rows from any source: dictionaries of a database, a data frame, a data set.

    Args:
        rows: Mappings with the fields of `Job`, and optionally `key`. A list or another repeatable iterable is read
            twice; an iterator is kept in a temporary file meanwhile.
        name: Name of the source in problems, as in `rows:12 duration: ...`; rows are numbered from 1.
        root: Folder of the files that rows name by strings; files outside of it are refused. Without it a string is a
            URL, and files are given as `Path`s.
        fit: As for `read_manifest`.
        models: As for `read_manifest`.
        common: As for `read_manifest`.

    Raises:
        ManifestError: Rows are wrong; `problems` has all problems of all rows.
        TypeError: A row of an iterator cannot be pickled.
    """
    return _checked(
        source_of(name, rows), None if root is None else Path(root).resolve(), common, fit=fit, models=models
    )


def _checked(
    source: Source, root: Path | None, common: Mapping[str, object], *, fit: bool, models: Iterable[Model]
) -> Manifest:
    if fit:
        require_pillow()
    own = {name: model for model in models for name in (model.id, model.name, *model.aliases)}
    found = check_rows(source, root, common, fit=fit, models=own)
    if not found.problems and not found.kinds:
        found.problems.append(RowProblem(source.name, None, "", "has no rows"))
    if found.problems:
        raise ManifestError(found.problems)
    return Manifest(
        source.name, root, found.kinds, tuple(found.warnings), found.models, source, common, fit, own, found.cautions
    )


def _chunk(items: Iterator[Keyed]) -> list[Keyed]:
    """Take the next rows; few if they contain images."""
    chunk: list[Keyed] = []
    size = 0
    for item in itertools.islice(items, _MAX_CHUNK_ROWS):
        chunk.append(item)
        size += sum(len(file) for file in item[1].files.values() if isinstance(file, (str, bytes)))
        if size > _MAX_CHUNK_BYTES:
            break
    return chunk
