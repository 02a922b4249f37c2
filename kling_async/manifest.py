"""Rows of a file as jobs: all of them checked before the first one is given out.

```python
manifest = read_manifest("jobs.jsonl")          # or jobs.csv
async with kling.batch(manifest, save_to="videos/") as batch: ...
```

A row has the fields of `Job`, and optionally `key`. An image that is a URL stays one; anything else is a file, sought
from the manifest's folder, and it may not lie outside of it.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol, TypeAlias, cast

import anyio.to_thread
import attrs

from ._core.errors import InvalidJobError, ManifestError, Problem, RowProblem
from ._core.job import Job, JobFields

if TYPE_CHECKING:
    import os

__all__ = ["Kind", "Manifest", "read_manifest"]

Keyed: TypeAlias = tuple[str | None, Job]
"""A row: its key if it has one, and its job."""

_JSON_SUFFIXES: Final = frozenset({".jsonl", ".ndjson"})
_CHUNK_ROWS: Final = 64
_CHUNK_BYTES: Final = 2**20
_IMAGES: Final = ("image", "end_image")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


@attrs.frozen
class Kind:
    """What decides the price of a row.

    Attributes:
        model: Full id of the model.
        duration: Seconds of video.
        sound: Whether sound is made too.
    """

    model: str
    duration: int
    sound: bool


@attrs.define(eq=False)
class Manifest:
    """The jobs of a file that was checked. Iterating, plainly or with `async for`, reads it anew, row by row.

    Attributes:
        path: The file.
        root: The folder that its images lie in.
        kinds: How many rows there are of each kind.
    """

    path: Path
    root: Path
    kinds: Mapping[Kind, int]

    def __len__(self) -> int:
        return sum(self.kinds.values())

    def __iter__(self) -> Iterator[Keyed]:
        """Read the rows. The file system may have changed since they were checked, so they are checked again.

        Raises:
            ManifestError: A row is not what it was.
            OSError: The file cannot be read any more.
        """
        with closing(_rows(self.path)) as rows:
            for row in rows:
                found = _keyed(row, self.root)
                if isinstance(found, tuple):
                    yield found
                else:
                    raise ManifestError([_about(self.path, row.line, problem) for problem in found])

    async def __aiter__(self) -> AsyncGenerator[Keyed, None]:
        """The same, reading in a worker thread: an event loop does not wait for the disk."""
        items = iter(self)
        try:
            while chunk := await anyio.to_thread.run_sync(_chunk, items):
                for item in chunk:
                    yield item
        finally:
            cast("Generator[Keyed, None, None]", items).close()


def read_manifest(path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> Manifest:
    """Check every row of a manifest.

    The whole file is read once here, and again when the manifest is iterated over; its rows are not kept.

    Args:
        path: JSON lines (`.jsonl`, `.ndjson`) or CSV with a header (`.csv`), in UTF-8.
        root: The folder in which image files lie, and which none of them may leave; by default the manifest's own.

    Raises:
        ManifestError: With all problems of all lines.
    """
    manifest, folder = Path(path), Path(path).parent if root is None else Path(root)
    if manifest.suffix.lower() not in _READERS:
        message = f"expected a file of {', '.join(_READERS)}, got {manifest.suffix or 'no suffix'}"
        raise ManifestError([_about(manifest, None, Problem("", message))])
    try:
        folder = folder.resolve()
        problems, kinds = _examined(manifest, folder)
    except (OSError, RuntimeError) as error:
        # A loop of symbolic links is a RuntimeError until Python 3.13.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ManifestError([_about(manifest, None, Problem("", f"cannot be read: {reason}"))]) from error
    if not problems and not kinds:
        problems = [_about(manifest, None, Problem("", "has no rows"))]
    if problems:
        raise ManifestError(problems)
    return Manifest(manifest, folder, kinds)


def _examined(path: Path, root: Path) -> tuple[list[RowProblem], Counter[Kind]]:
    """What is wrong with the rows, and how many there are of each kind."""
    problems: list[RowProblem] = []
    kinds: Counter[Kind] = Counter()
    keys = _Keys()
    with closing(_rows(path)) as rows:
        for row in rows:
            key = row.fields.get("key")
            if isinstance(key, str) and key:
                keys.add(key, row.line)
            found = _keyed(row, root)
            if isinstance(found, tuple):
                _, job = found
                kinds[Kind(job.model, job.duration, bool(job.sound))] += 1
            else:
                problems += (_about(path, row.line, problem) for problem in found)
    problems += _repeated(path, keys)
    problems.sort(key=lambda problem: problem.line or 0)
    return problems, kinds


@attrs.frozen
class _Row:
    """A row as it stands in the file.

    Attributes:
        line: Where it begins, from 1.
        fields: Its fields, unchecked.
        problems: Why it could not be read; the fields are then not looked at.
    """

    line: int
    fields: Mapping[str, object] = attrs.field(factory=dict)
    problems: tuple[Problem, ...] = ()


class _Keys:
    """Which keys were seen on which lines, in 16 bytes per key: a manifest may have millions.

    Only hashes are kept, so what looks repeated has to be compared. They are kept in many small shelves, of which one
    at a time is unpacked.
    """

    def __init__(self) -> None:
        self._shelves = [(array("q"), array("Q")) for _ in range(256)]

    def add(self, key: str, line: int) -> None:
        """Note a key."""
        digest = hash(key)
        digests, lines = self._shelves[digest & 255]
        digests.append(digest)
        lines.append(line)

    def suspects(self) -> set[int]:
        """The lines whose keys may occur more than once."""
        suspects: set[int] = set()
        for digests, lines in self._shelves:
            first: dict[int, int] = {}
            for digest, line in zip(digests, lines, strict=True):
                earlier = first.setdefault(digest, line)
                if earlier != line:
                    suspects |= {earlier, line}
        return suspects


def _repeated(path: Path, keys: _Keys) -> Iterator[RowProblem]:
    suspects = keys.suspects()
    if not suspects:
        return
    first: dict[str, int] = {}
    with closing(_rows(path)) as rows:
        for row in rows:
            key = row.fields.get("key")
            if row.line not in suspects or not isinstance(key, str) or not key:
                continue
            earlier = first.setdefault(key, row.line)
            if earlier != row.line:
                yield _about(path, row.line, Problem("key", f"{key[:80]!r} is the key of line {earlier} already"))


def _about(path: Path, line: int | None, problem: Problem) -> RowProblem:
    return RowProblem(str(path), line, problem.path, problem.message)


def _keyed(row: _Row, root: Path) -> Keyed | list[Problem]:
    """The row's key and job, or all that is wrong with it."""
    if row.problems:
        return list(row.problems)
    fields = dict(row.fields)
    key = fields.pop("key", None)
    problems: list[Problem] = []
    if key is not None and not isinstance(key, str):
        problems.append(Problem("key", f"expected text, got {type(key).__name__}"))
    elif key == "":
        problems.append(Problem("key", "is empty"))
    for name in _IMAGES:
        value = fields.get(name)
        if isinstance(value, str) and not _URL.match(value):
            try:
                fields[name] = _file(value, root)
            except ValueError as error:
                problems.append(Problem(name, str(error)))
                # So that the other fields are looked at.
                fields[name] = root
    try:
        job = Job(**cast("JobFields", fields))
    except InvalidJobError as error:
        return problems + list(error.problems)
    return problems or (cast("str | None", key), job)


def _file(text: str, root: Path) -> Path:
    """The file that a row names.

    Raises:
        ValueError: There is none, or it is not below the root.
    """
    if not text.strip():
        raise ValueError("is empty")
    try:
        # Resolved, so that neither `..` nor a symbolic link leads out.
        path = (root / text).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"{text[:120]!r} leads out of {root}")
        if not path.is_file():
            raise ValueError(f"{text[:120]!r} is {'not a file' if path.exists() else 'not there'} (in {root})")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{text[:120]!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return path


def _chunk(items: Iterator[Keyed]) -> list[Keyed]:
    """Some more rows; few when they carry their images within them."""
    chunk: list[Keyed] = []
    size = 0
    for item in itertools.islice(items, _CHUNK_ROWS):
        chunk.append(item)
        size += sum(len(image) for image in (item[1].image, item[1].end_image) if isinstance(image, str))
        if size > _CHUNK_BYTES:
            break
    return chunk


def _rows(path: Path) -> Generator[_Row, None, None]:
    """The rows of a file in any of the formats."""
    with path.open("rb") as file:
        if file.peek(2)[:2] in {b"\xff\xfe", b"\xfe\xff"}:
            yield _Row(1, problems=(Problem("", "the file is UTF-16; save it as UTF-8"),))
            return
        yield from _READERS[path.suffix.lower()](file)


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


def _json_rows(file: Iterable[bytes]) -> Iterator[_Row]:
    for number, line, undecoded in _lines(file):
        if undecoded is not None:
            yield _Row(number, problems=(undecoded,))
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
                yield _Row(number, value)
                continue
            problem = Problem("", f"expected one JSON object per line, got {type(value).__name__}")
        yield _Row(number, problems=(problem,))


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


def _csv_rows(file: Iterable[bytes]) -> Iterator[_Row]:
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
            yield _Row(line, problems=(*decoded.taken(), Problem("", f"is not CSV: {error}")))
            if header is None:
                return
            continue
        problems = decoded.taken()
        if header is None:
            header = [name.strip() for name in row]
            problems += _header_problems(header)
            if problems:
                yield _Row(line, problems=problems)
        elif problems:
            yield _Row(line, problems=problems)
        elif any(cell.strip() for cell in row):
            yield _csv_row(line, header, row)


def _header_problems(header: list[str]) -> tuple[Problem, ...]:
    problems = [
        Problem(name, "is the name of two columns") for name, times in Counter(header).items() if name and times > 1
    ]
    try:
        Job(**cast("JobFields", dict.fromkeys((name for name in header if name and name != "key"), None)))
    except InvalidJobError as error:
        # Said once, not in every row; the rows pass these columns over.
        problems += (problem for problem in error.problems if problem.path in header and _unknown(problem.path))
    return tuple(problems)


def _unknown(name: str) -> bool:
    return name != "key" and name not in JobFields.__annotations__


def _csv_row(line: int, header: list[str], row: list[str]) -> _Row:
    fields: dict[str, object] = {}
    problems: list[Problem] = []
    for place, cell in enumerate(row):
        name = header[place] if place < len(header) else ""
        if not cell.strip() or (name and _unknown(name)):
            continue
        if not name:
            problems.append(Problem("", f"column {place + 1} has no name in the header"))
            continue
        try:
            fields[name] = _cell(name, cell)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
    return _Row(line, fields, tuple(problems))


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
        case "extra" | "multi_prompt" | "element_list" | "voice_list":
            try:
                return _JSON.decode(text)
            except (ValueError, RecursionError):
                kind = "object" if name == "extra" else "list"
                raise ValueError(f"expected a JSON {kind}, got {text[:40]!r}") from None
        case "prompt" | "negative_prompt":
            return cell
        case _:
            return text


_TRUTH: Final[Mapping[str, bool]] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class _Reader(Protocol):
    def __call__(self, file: IO[bytes], /) -> Iterator[_Row]: ...


_READERS: Final[Mapping[str, _Reader]] = {**dict.fromkeys(sorted(_JSON_SUFFIXES), _json_rows), ".csv": _csv_rows}
