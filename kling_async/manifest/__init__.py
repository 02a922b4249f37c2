"""Manifests: read jobs from a file, a folder of images or an iterable, and check all of them first.

```python
manifest = read_manifest("products.xlsx", columns={"image": "Filename"})  # or .csv, .tsv, .jsonl, .json, .parquet
manifest = read_manifest("photos/", prompt="She turns and smiles")        # or photos/*.jpg, or ["a.jpg", "b.jpg"]
manifest = read_rows(dataset, model="kling-v2.1-pro")
async with kling.batch(manifest, save_to="videos/") as batch: ...
```

A row has the fields of `Job`, and optionally `key`; without one it is called by a hash of its content. With the key of
another row in the column `continues`, it begins with the last frame of that row's video, or with that at the seconds in
`continues_at`, and needs no image. Other columns travel along as `Job.labels` into the results, such as `film`, by
which clips are grouped. An image is a URL, or a file below the manifest's folder; in `extra`, `element_list` and
`voice_list`, a text `file:clips/walk.mp4` is such a file, and every other text is sent. In a folder every image is a
row: its key is the name of the file, and its prompt is in a text file beside it, `anna.txt` beside `anna.png`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack, cast

import anyio.to_thread
import attrs

from kling_async._core.catalogue import Model
from kling_async._core.chains import films
from kling_async._core.picture_names import UniqueNames
from kling_async._core.prices import Certainty, Kind, Price
from kling_async._images.preflight import require_pillow
from kling_async.errors import ManifestError, Problem, RowProblem

from ._check import Following, Keyed, check_rows, job_of_row, key_of, name_of
from ._columns import Columns
from ._invalid import as_line, problems_of_row
from ._row import NOTE, Row, Source, located
from ._sources import batch_name, source_of_paths, source_of_rows

if TYPE_CHECKING:
    from kling_async._core.job import JobFields

__all__ = ["NOTE", "Keyed", "Kind", "Manifest", "batch_name", "read_manifest", "read_rows"]

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
        columns: Names of the columns that are no fields, and travel along.
        left_out: What lies in a folder and is no row, by suffix or kind, with how often.
        invalid: Problems of the rows that `skip_invalid` leaves out, the first 10,000 of them.
    """

    name: str
    root: Path | None
    kinds: Mapping[Kind, int]
    warnings: tuple[RowProblem, ...]
    models: Mapping[str, Model]
    columns: tuple[str, ...]
    left_out: Mapping[str, int]
    invalid: tuple[RowProblem, ...]
    _source: Source = attrs.field(repr=False, alias="source")
    _common: Mapping[str, object] = attrs.field(repr=False, alias="common")
    _fit: bool = attrs.field(repr=False, alias="fit")
    _own_models: Mapping[str, Model] = attrs.field(repr=False, alias="own_models")
    _cautions: Mapping[tuple[str, bool, Problem], int] = attrs.field(repr=False, alias="cautions")
    _skipped: Mapping[int, Problem | None] = attrs.field(repr=False, alias="skipped")
    _unique_names: UniqueNames = attrs.field(repr=False, alias="unique_names")
    _following: Mapping[str, Following] = attrs.field(repr=False, alias="following")

    def __len__(self) -> int:
        return sum(self.kinds.values())

    @property
    def skipped(self) -> int:
        """Number of rows that `skip_invalid` leaves out."""
        return len(self._skipped)

    @property
    def unique_names(self) -> UniqueNames:
        """Names of pictures that no other row has, as its picture's or as its key."""
        return self._unique_names

    def __iter__(self) -> Iterator[Keyed]:
        """Yield key and job of every row. Rows are checked again, since files may have changed.

        Rows that continue others come after these, film after film. The jobs of films are in memory meanwhile; those
        of other rows are not.

        Raises:
            ManifestError: A row is not valid any more, or one of a film is gone.
            OSError: The file cannot be read any more.
        """
        members = {*self._following, *self.continued}
        if not members:
            yield from map(self._made, self._rows())
            return
        # The source is read twice, but no job is made twice.
        named = ((name_of(key_of(row), row.line), row) for row in self._rows())
        held = {name: self._made(row) for name, row in named if name in members}
        if held.keys() != members:
            raise self._changed(len(members - held.keys()), len(members))
        found_films = films({name: row.parents for name, row in self._following.items()}, held)
        for row in self._rows():
            name = name_of(key_of(row), row.line)
            if name not in members:
                yield self._made(row)
            # Taken out, as the key may be there twice by now.
            for each in found_films.pop(name, ()):
                yield held.pop(each)
        if held:
            raise self._changed(len(held), len(members))

    def _changed(self, gone: int, members: int) -> ManifestError:
        """Return the error of a source that lacks rows of films since it was checked."""
        said = f"has changed since it was checked: {gone} of {members} rows of films are gone"
        return ManifestError([RowProblem(self.name, None, "", said)])

    @property
    def continued(self) -> frozenset[str]:
        """Keys of the rows that others continue."""
        return frozenset(parent for row in self._following.values() for parent in row.parents)

    def _rows(self) -> Iterator[Row]:
        """Yield every row that is not left out, in the order of the source."""
        with closing(self._source.rows()) as rows:
            yield from (row for row in rows if row.line not in self._skipped)

    def _made(self, row: Row) -> Keyed:
        """Return key and job of a row.

        Raises:
            ManifestError: It is not valid any more.
        """
        found = job_of_row(row, self.root, self._common, fit=self._fit, models=self._own_models)
        if isinstance(found, tuple):
            return found
        raise ManifestError([located(self._source, row, problem) for problem in found])

    def invalid_rows(self) -> Iterator[dict[str, object]]:
        """Yield the rows that `skip_invalid` leaves out as rows of a manifest, each with its problems as `_error`.

        Image files have absolute paths. What JSON does not have, such as bytes, is left out.

        Raises:
            OSError: The file cannot be read any more.
        """
        if not self._skipped:
            return
        with closing(self._source.rows()) as rows:
            for row in rows:
                if row.line in self._skipped:
                    known = self._skipped[row.line]
                    found = (
                        [known]
                        if known
                        else problems_of_row(row, self.root, self._common, fit=self._fit, models=self._own_models)
                    )
                    yield as_line(self._source, row, found, self.root)

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

    def cautions(self, provider: str = "wavespeed", *, local: bool = False) -> dict[Problem, int]:
        """Return what may not be as expected at a provider, and is not refused, with the number of rows.

        Args:
            provider: Name of the provider.
            local: It is an emulator on this machine, which reaches pictures that the real one does not.
        """
        return {
            caution: rows for (name, at, caution), rows in self._cautions.items() if (name, at) == (provider, local)
        }

    async def __aiter__(self) -> AsyncGenerator[Keyed, None]:
        """Yield key and job of every row, read in a worker thread so that the event loop is not blocked."""
        items = iter(self)
        try:
            while chunk := await anyio.to_thread.run_sync(_chunk, items):
                for item in chunk:
                    yield item
        finally:
            cast("Generator[Keyed, None, None]", items).close()


@attrs.frozen
class LookedUp:
    """Rows of a manifest for a batch that is not to look them up in its ledger first, since that was done.

    Attributes:
        manifest: The manifest.
    """

    manifest: Manifest

    @property
    def unique_names(self) -> UniqueNames:
        """Names of pictures that no other row has."""
        return self.manifest.unique_names

    def __aiter__(self) -> AsyncIterator[Keyed]:
        """Yield key and job of every row."""
        return aiter(self.manifest)


def read_manifest(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    fit: bool = False,
    models: Iterable[Model] = (),
    columns: Mapping[str, str] | None = None,
    recursive: bool = False,
    skip_invalid: bool = False,
    **common: Unpack[JobFields],
) -> Manifest:
    """Read a manifest and check every row, including its files.

    The whole file is read now, and again by every iteration; rows are not kept in memory. Of a file only the first
    and last bytes are read. The defaults and the header are checked first.

    Args:
        path: A table with a header (`.csv`, `.tsv`; `.xlsx` and `.parquet` with the extras of these names), objects
            (`.jsonl`, `.ndjson`, or `.json` with an array), texts also packed (`.csv.gz`), `"-"` for what is piped
            into the process; or a folder of pictures, a picture, several, or a pattern such as `photos/*.jpg`.
        root: Folder of the files; files outside of it are refused. By default the manifest's own folder.
        fit: Accept other formats and larger images, which are converted: files by the session, which needs `fit=True`
            too, bytes in rows during iteration.
        models: Models that the catalogue does not have, such as those of `Model.from_service`; rows name them by their
            ids.
        columns: Names of columns by fields, such as `{"image": "Filename"}`, where they are not the fields' own; by any
            other name, a column travels along under it.
        recursive: Of a folder, take the pictures in its subfolders, too.
        skip_invalid: Leave rows with problems out, instead of refusing all: `Manifest.invalid` has the problems. A
            manifest without a valid row is refused.
        common: Fields of `Job` for rows that do not have them.

    Raises:
        ManifestError: Rows are wrong; `problems` has all problems of all lines.
        ConfigurationError: python-calamine, pyarrow, or Pillow, for `fit`, is not installed; or a name in `columns` is
            nearly that of a field.
    """
    own = _by_name(models)
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    name = str(paths[0]) if paths else ""
    try:
        source, folder = source_of_paths(paths, _columns(columns, common, own), recursive=recursive)
        where = (folder if root is None else Path(root)).resolve()
        return _checked(source, where, common, fit=fit, models=own, skip_invalid=skip_invalid)
    except (OSError, RuntimeError) as error:
        # Until Python 3.13 a loop of symbolic links is a RuntimeError.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ManifestError([RowProblem(name, None, "", f"cannot be read: {reason}")]) from error


def read_rows(
    rows: Iterable[Mapping[str, object]],
    *,
    name: str = "rows",
    root: str | os.PathLike[str] | None = None,
    fit: bool = False,
    models: Iterable[Model] = (),
    columns: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    **common: Unpack[JobFields],
) -> Manifest:
    """Check rows from any source: dictionaries of a database, a data frame, a data set.

    Numbers of numpy and missing values of pandas are understood.

    Args:
        rows: Mappings with the fields of `Job`, and optionally `key`. A list or another repeatable iterable is read
            twice; an iterator is kept in a temporary file meanwhile.
        name: Name of the source in problems, as in `rows:12 duration: ...`; rows are numbered from 1.
        root: Folder of the files that rows name by strings; files outside of it are refused. Without it a string is a
            URL, and files are given as `Path`s.
        fit: As for `read_manifest`.
        models: As for `read_manifest`.
        columns: As for `read_manifest`.
        skip_invalid: As for `read_manifest`.
        common: As for `read_manifest`.

    Raises:
        ManifestError: Rows are wrong; `problems` has all problems of all rows.
        ConfigurationError: A name in `columns` is nearly that of a field.
        TypeError: A row of an iterator cannot be pickled.
    """
    own = _by_name(models)
    source = source_of_rows(name, rows, _columns(columns, common, own))
    where = None if root is None else Path(root).resolve()
    return _checked(source, where, common, fit=fit, models=own, skip_invalid=skip_invalid)


def _by_name(models: Iterable[Model]) -> dict[str, Model]:
    return {name: model for model in models for name in (model.id, model.name, *model.aliases)}


def _columns(given: Mapping[str, str] | None, common: Mapping[str, object], models: Mapping[str, Model]) -> Columns:
    model = common.get("model")
    return Columns(given, {**common, "model": models.get(model, model)} if isinstance(model, str) else common)


def _checked(
    source: Source,
    root: Path | None,
    common: Mapping[str, object],
    *,
    fit: bool,
    models: Mapping[str, Model],
    skip_invalid: bool,
) -> Manifest:
    if fit:
        require_pillow()
    found = check_rows(source, root, common, fit=fit, models=models, skip_invalid=skip_invalid)
    if not found.problems and not found.kinds:
        found.problems.append(RowProblem(source.name, None, "", _nothing_in(source)))
    if found.problems and not (skip_invalid and found.kinds):
        raise ManifestError(found.problems)
    return Manifest(
        name=source.name,
        root=root,
        kinds=found.kinds,
        warnings=tuple(itertools.chain.from_iterable(found.warnings.values())),
        columns=tuple(found.columns),
        left_out=dict(source.left_out),
        invalid=tuple(found.problems),
        source=source,
        common=common,
        fit=fit,
        models=found.models,
        own_models=models,
        cautions=found.cautions,
        skipped=found.skipped,
        unique_names=found.unique_names,
        following=found.following,
    )


def _nothing_in(source: Source) -> str:
    """Return that a source has no rows, and what it has instead."""
    if not source.left_out:
        return "has no pictures" if source.unit == "file" else "has no rows"
    there = ", ".join(f"{count} x {kind}" for kind, count in source.left_out.items())
    advice = "; recursive=True (--recursive) takes those in subfolders" if "subfolders" in source.left_out else ""
    return f"has no pictures; it has {there}{advice}"


def _chunk(items: Iterator[Keyed]) -> list[Keyed]:
    """Take the next rows; few if they contain images."""
    chunk: list[Keyed] = []
    size = 0
    for item in itertools.islice(items, _MAX_CHUNK_ROWS):
        chunk.append(item)
        size += sum(len(image) for image in (item[1].image, item[1].end_image) if isinstance(image, (str, bytes)))
        if size > _MAX_CHUNK_BYTES:
            break
    return chunk
