"""Check rows and make jobs of them."""

from __future__ import annotations

import functools
import os
import re
import stat
from array import array
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import attrs

from kling_async._core.catalogue import Model
from kling_async._core.input_files import HEAD_BYTES, MEDIA, media_type, replaced
from kling_async._core.job import IMAGES, TREES, Job, JobFields
from kling_async._core.job_key import key_or_problem
from kling_async._core.job_validation import IMAGE_LISTS
from kling_async._core.media import ImageFacts
from kling_async._core.prices import Kind
from kling_async._images.inspection import inspect
from kling_async._images.preflight import preflight
from kling_async.errors import InvalidJobError, Problem, RowProblem

from ._row import NOTE, located

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._row import Row, Source

Keyed: TypeAlias = tuple[str | None, Job]
"""Key of a row, None if it has none, and its job."""
FileCheck: TypeAlias = "Callable[[Path | bytes, str], tuple[str, tuple[str, ...]]]"
"""Returns the problem of a file at a place in a job, empty if it has none, and its warnings."""

FILE_PREFIX: Final = "file:"
"""Beginning of a text in a JSON value of a row that names a file."""
_MEDIA_SUFFIX = re.compile(r"[^\n]{1,4096}\.(jpe?g|png|webp|gif|mp4|mov|webm|mp3|wav)", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_PLACEHOLDER: Final = Path()
_MAX_CACHED_FILE_CHECKS: Final = 4096
_MAX_TEXT_IN_MESSAGE: Final = 120
_KEY_BUCKETS: Final = 256


@attrs.define
class Findings:
    """Result of checking every row.

    Attributes:
        problems: Reasons to refuse the manifest.
        warnings: Properties of images that the service may not accept.
        kinds: Number of rows of each kind.
        models: Catalogue entries of the models, by id.
        cautions: Number of rows for which something may not be as expected at a provider, by provider and message.
    """

    problems: list[RowProblem] = attrs.field(factory=list)
    warnings: list[RowProblem] = attrs.field(factory=list)
    kinds: Counter[Kind] = attrs.field(factory=Counter)
    models: dict[str, Model] = attrs.field(factory=dict)
    cautions: Counter[tuple[str, Problem]] = attrs.field(factory=Counter)


MAX_PROBLEMS: Final = 10_000
"""Problems after which the rest of a source is not checked, since each takes memory."""


def check_rows(
    source: Source, root: Path | None, common: Mapping[str, object], *, fit: bool, models: Mapping[str, Model]
) -> Findings:
    """Check every row and every file.

    Args:
        source: The rows.
        root: Folder of their files; None if strings are URLs only.
        common: Fields used where a row has none.
        fit: Convert images that the service would not accept.
        models: Models outside of the catalogue that rows may name, by name.

    Raises:
        OSError: The source cannot be read.
    """
    findings = Findings()
    keys = _Keys()
    check = functools.lru_cache(_MAX_CACHED_FILE_CHECKS)(functools.partial(_check_file, fit=fit))
    with closing(source.rows()) as rows:
        for row in rows:
            key = _key_of(row)
            if key is not None:
                keys.add(key, row.line)
            warnings: list[Problem] = []
            found = job_of_row(row, root, common, fit=fit, models=models, check=check, warnings=warnings)
            findings.warnings += (located(source, row, warning) for warning in warnings)
            if isinstance(found, tuple):
                _, job = found
                findings.kinds[job.kind] += 1
                findings.models.setdefault(job.model, job.row)
                findings.cautions.update(
                    (provider, caution) for provider in job.row.providers for caution in job.cautions(provider)
                )
            else:
                findings.problems += (located(source, row, problem) for problem in found)
            if len(findings.problems) >= MAX_PROBLEMS:
                end = Problem("", f"the check ended here, after {len(findings.problems):,} problems")
                findings.problems.append(located(source, row, end))
                break
    findings.problems += _repeated_keys(source, keys)
    # Problems of a folder have no lines and are in its order already.
    findings.problems.sort(key=lambda problem: problem.line or 0)
    return findings


def job_of_row(
    row: Row,
    root: Path | None,
    common: Mapping[str, object],
    *,
    fit: bool,
    models: Mapping[str, Model],
    check: FileCheck | None = None,
    warnings: list[Problem] | None = None,
) -> Keyed | list[Problem]:
    """Return the key and the job of a row, or its problems.

    Args:
        row: The row.
        root: Folder of its files; None if strings are URLs only.
        common: Fields used where the row has none.
        fit: Convert image bytes that the service would not accept.
        models: Models outside of the catalogue that it may name, by name.
        check: Checks the files, whose place in the job a placeholder takes; None leaves them as they are.
        warnings: Receives the warnings about files.
    """
    if row.problems:
        return list(row.problems)
    fields = {**common, **{name: value for name, value in row.fields.items() if value is not None}}
    key = fields.pop("key", None)
    fields.pop(NOTE, None)
    problems: list[Problem] = []
    if key is not None:
        key = key_or_problem(key)
        if isinstance(key, Problem):
            problems.append(key)

    def take(place: str, value: object) -> object:
        try:
            taken, messages = _file(value, root, place, fit=fit, check=check)
        except ValueError as error:
            problems.append(Problem(place, str(error)))
            # Lets the job check its other fields.
            return _PLACEHOLDER
        if warnings is not None:
            warnings.extend(Problem(place, message) for message in messages)
        return taken

    for name in IMAGES:
        fields[name] = take(name, fields.get(name))
    for name in (*IMAGE_LISTS, *TREES):
        if fields.get(name):
            try:
                fields[name] = replaced(fields[name], name, take)
            except RecursionError:
                problems.append(Problem(name, "is nested too deeply"))
    fields["model"] = _model(fields.get("model"), models)
    try:
        job = Job(**cast("JobFields", fields))
    except InvalidJobError as error:
        return problems + list(error.problems)
    return problems or (cast("str | None", key), job)


def _model(name: object, models: Mapping[str, Model]) -> object:
    return models.get(name, name) if isinstance(name, str) else name


def _file(
    value: object, root: Path | None, place: str, *, fit: bool, check: FileCheck | None
) -> tuple[object, tuple[str, ...]]:
    """Return a file for the job, or any other value as it is, and its warnings.

    Raises:
        ValueError: The file has a problem.
    """
    in_tree = place.startswith(TREES)
    if isinstance(value, str):
        if in_tree:
            value = _named_file(value, root)
        elif root is not None and not _URL.match(value):
            value = _resolve_file(value, root)
    if not isinstance(value, (Path, bytes)):
        return value, ()
    if check is not None:
        problem, messages = check(value, place)
        if problem:
            raise ValueError(problem)
        # The job would check the original, which may still have to be converted.
        return value if isinstance(value, Path) else _placeholder(value), messages
    if fit and isinstance(value, bytes) and media_type(value[:HEAD_BYTES]) is None:
        try:
            value = _converted(value)
        except InvalidJobError as error:
            raise ValueError(error.problems[0].message) from None
    return value, ()


def _placeholder(content: bytes) -> Path:
    """Return a file that stands for bytes; its suffix tells the kind, which may determine the price."""
    return Path(f"file{MEDIA[kind][2]}") if (kind := media_type(content[:HEAD_BYTES])) else _PLACEHOLDER


def _named_file(text: str, root: Path | None) -> str | Path:
    """Return the file that a text in a JSON value names, or the text.

    Raises:
        ValueError: There is no such file, or the text is the name of one without saying so.
    """
    if text.startswith(FILE_PREFIX):
        if root is None:
            raise ValueError("expected a Path for a file, because these rows have no folder")
        return _resolve_file(text.removeprefix(FILE_PREFIX).removeprefix("//"), root)
    if root is not None and _MEDIA_SUFFIX.fullmatch(text) and not _URL.match(text):
        try:
            _resolve_file(text, root)
        except ValueError:
            return text
        # It would be sent as a text, and charged.
        raise ValueError(
            f"{text[:_MAX_TEXT_IN_MESSAGE]!r} is a file here: to send it, write {FILE_PREFIX + text!r:.200}"
        )
    return text


def _check_file(file: Path | bytes, place: str, *, fit: bool) -> tuple[str, tuple[str, ...]]:
    try:
        facts = inspect(file, field=place, fit=fit)
    except InvalidJobError as error:
        return error.problems[0].message, ()
    return "", (attrs.evolve(facts, turned=False) if fit and isinstance(facts, ImageFacts) else facts).warnings


def _converted(content: bytes) -> bytes:
    if not preflight(content, fit=True).unfit:
        return content
    from kling_async._images.convert import convert  # noqa: PLC0415 -- Pillow is an extra

    return convert(content)


def _resolve_file(text: str, root: Path) -> Path:
    """Return the file that a row names.

    Raises:
        ValueError: It does not exist, is no regular file, or is outside of the root.
    """
    if not text.strip():
        raise ValueError("is empty")
    shown = repr(text[:_MAX_TEXT_IN_MESSAGE])
    # As strings: with many rows, path objects would take most of the time.
    base = str(root)
    # Resolved, so that neither `..` nor a symbolic link leads out of the root.
    path = os.path.realpath(os.path.join(base, text))  # noqa: PTH118 -- see above
    if not path.startswith(base.rstrip(os.sep) + os.sep):
        raise ValueError(f"{shown} is outside of {root}")
    try:
        found = os.stat(path)  # noqa: PTH116 -- see above
    except FileNotFoundError:
        raise ValueError(f"{shown} does not exist (in {root})") from None
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{shown} is not a file (in {root})")
    return Path(path)


def _key_of(row: Row) -> str | None:
    """Return the key of a row; None if it has none, or an invalid one."""
    key = row.fields.get("key")
    text = None if key is None else key_or_problem(key)
    return text if isinstance(text, str) else None


class _Keys:
    """Hashes of keys with their lines, in 16 bytes per key: a manifest may have millions.

    Equal hashes only suggest equal keys, so these lines have to be compared. The hashes are spread over many buckets,
    which are searched one at a time.
    """

    def __init__(self) -> None:
        self._buckets = [(array("q"), array("Q")) for _ in range(_KEY_BUCKETS)]

    def add(self, key: str, line: int) -> None:
        """Add a key."""
        digest = hash(key)
        digests, lines = self._buckets[digest % _KEY_BUCKETS]
        digests.append(digest)
        lines.append(line)

    def suspects(self) -> set[int]:
        """Return the lines whose keys may be repeated."""
        suspects: set[int] = set()
        for digests, lines in self._buckets:
            first: dict[int, int] = {}
            for digest, line in zip(digests, lines, strict=True):
                earlier = first.setdefault(digest, line)
                if earlier != line:
                    suspects |= {earlier, line}
        return suspects


def _repeated_keys(source: Source, keys: _Keys) -> Iterator[RowProblem]:
    """Read the source again and yield a problem for every repeated key."""
    suspects = keys.suspects()
    if not suspects:
        return
    first: dict[str, str] = {}
    with closing(source.rows()) as rows:
        for row in rows:
            key = _key_of(row)
            if row.line not in suspects or key is None:
                continue
            place = row.file or f"{source.unit} {row.line}"
            earlier = first.setdefault(key, place)
            if earlier != place:
                shown = repr(key[:_MAX_TEXT_IN_MESSAGE])
                yield located(source, row, Problem("key", f"{shown} is already the key of {earlier}"))
