"""Rows of a file as jobs: all of them checked before the first one is given out.

```python
manifest = read_manifest("jobs.jsonl")          # or jobs.csv, jobs.parquet
manifest = read_manifest("photos/", prompt="She turns and smiles")
manifest = read_rows(dataset, model="kling-v2.1-pro")
async with kling.batch(manifest, save_to="videos/") as batch: ...
```

A row has the fields of `Job`, and optionally `key`. An image that is a URL stays one; anything else is a file, sought
from the manifest's folder, and it may not lie outside of it. In a folder every image is a row; its key is the name of
the file, and a text file beside it, `anna.txt` beside `anna.png`, has its prompt.
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

from kling_async._core.catalogue import Certainty, Model, Price
from kling_async._images.preflight import require_pillow
from kling_async.errors import ManifestError, RowProblem

from ._check import Keyed, Kind, examined, keyed
from ._row import NOTE, Source, about
from ._sources import READERS, Folder, TextFile, given

if TYPE_CHECKING:
    import os

    from kling_async._core.job import JobFields

__all__ = ["NOTE", "Kind", "Manifest", "read_manifest", "read_rows"]

_CHUNK_ROWS: Final = 64
_CHUNK_BYTES: Final = 2**20


@attrs.define(eq=False)
class Manifest:
    """Jobs that were checked. Iterating, plainly or with `async for`, reads them anew, row by row.

    Attributes:
        name: What they were read from.
        root: The folder that image files lie in; None where there are none but those given as paths.
        kinds: How many rows there are of each kind.
        warnings: What the service may not like.
    """

    name: str
    root: Path | None
    kinds: Mapping[Kind, int]
    warnings: tuple[RowProblem, ...]
    _source: Source = attrs.field(repr=False)
    _common: Mapping[str, object] = attrs.field(repr=False)
    _fit: bool = attrs.field(repr=False)
    _models: Mapping[str, Model] = attrs.field(repr=False)

    def __len__(self) -> int:
        return sum(self.kinds.values())

    def __iter__(self) -> Iterator[Keyed]:
        """Read the rows. The file system may have changed since they were checked, so they are checked again.

        Raises:
            ManifestError: A row is not what it was.
            OSError: The file cannot be read any more.
        """
        with closing(self._source.rows()) as rows:
            for row in rows:
                found = keyed(row, self.root, self._common, fit=self._fit)
                if isinstance(found, tuple):
                    yield found
                else:
                    raise ManifestError([about(self._source, row, problem) for problem in found])

    def price(self, provider: str = "wavespeed") -> Price:
        """What all of them cost by the price list, in USD; not known when it is not known of one."""
        total, certainty = Decimal(0), Certainty.STATED
        for kind, count in self.kinds.items():
            each = self._models[kind.model].price(kind.duration, provider=provider, sound=kind.sound)
            if each.usd is None:
                return each
            total += each.usd * count
            certainty = each.certainty if each.certainty is Certainty.INFERRED else certainty
        return Price(total, certainty)

    async def __aiter__(self) -> AsyncGenerator[Keyed, None]:
        """The same, reading in a worker thread: an event loop does not wait for the disk."""
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
    **common: Unpack[JobFields],
) -> Manifest:
    """Check every row of a manifest, and the image files that it names.

    The whole file is read once here, and again when the manifest is iterated over; its rows are not kept. Of an image
    only the ends are read.

    Args:
        path: JSON lines (`.jsonl`, `.ndjson`) or CSV with a header (`.csv`), in UTF-8; Parquet (`.parquet`, extra
            `parquet`), whose problems name rows instead of lines; or a folder of images.
        root: The folder in which image files lie, and which none of them may leave; by default the manifest's own.
        fit: Whether images will be made to fit: other formats and larger ones are fine then. Files are by the session,
            which is to have `fit=True` too; what rows have within them is when its row comes.
        common: Fields of `Job` that rows have unless they say otherwise.

    Raises:
        ManifestError: With all problems of all lines.
        ConfigurationError: Parquet needs pyarrow, and `fit` Pillow.
    """
    where = Path(path)
    source: Source = TextFile(where)
    folder = where.parent
    if where.suffix.lower() not in READERS:
        source, folder = Folder(where), where
        if not where.is_dir():
            expected = f"expected a folder of images, or a file of {', '.join(READERS)}"
            message = f"{expected}, got {where.suffix or 'no suffix'}"
            raise ManifestError([RowProblem(source.name, None, "", message)])
    try:
        return _checked(source, (folder if root is None else Path(root)).resolve(), common, fit=fit)
    except (OSError, RuntimeError) as error:
        # A loop of symbolic links is a RuntimeError until Python 3.13.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ManifestError([RowProblem(source.name, None, "", f"cannot be read: {reason}")]) from error


def read_rows(
    rows: Iterable[Mapping[str, object]],
    *,
    name: str = "rows",
    root: str | os.PathLike[str] | None = None,
    fit: bool = False,
    **common: Unpack[JobFields],
) -> Manifest:
    """Check rows that come from anywhere: dictionaries of a database, a data frame, a data set.

    Args:
        rows: Mappings with the fields of `Job`, and optionally `key`. What can be iterated over again, as a list can,
            is read twice; an iterator is kept in a temporary file meanwhile.
        name: How problems name them, as `rows:12 duration: ...`; they count from 1.
        root: The folder in which files lie that rows name by strings, and which none may leave. Without it a string is
            a URL, and files are given as `Path`s.
        fit: As for `read_manifest`.
        common: As for `read_manifest`.

    Raises:
        ManifestError: With all problems of all rows.
        TypeError: A row of an iterator cannot be pickled.
    """
    return _checked(given(name, rows), None if root is None else Path(root).resolve(), common, fit=fit)


def _checked(source: Source, root: Path | None, common: Mapping[str, object], *, fit: bool) -> Manifest:
    if fit:
        require_pillow()
    found = examined(source, root, common, fit=fit)
    if not found.problems and not found.kinds:
        found.problems.append(RowProblem(source.name, None, "", "has no rows"))
    if found.problems:
        raise ManifestError(found.problems)
    return Manifest(source.name, root, found.kinds, tuple(found.warnings), source, common, fit, found.models)


def _chunk(items: Iterator[Keyed]) -> list[Keyed]:
    """Some more rows; few when they carry their images within them."""
    chunk: list[Keyed] = []
    size = 0
    for item in itertools.islice(items, _CHUNK_ROWS):
        chunk.append(item)
        size += sum(len(image) for image in (item[1].image, item[1].end_image) if isinstance(image, (str, bytes)))
        if size > _CHUNK_BYTES:
            break
    return chunk
