"""From rows to jobs, with all that is wrong with them."""

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
from kling_async._core.job import Job, JobFields
from kling_async._images.preflight import preflight
from kling_async.errors import InvalidJobError, Problem, RowProblem

from ._row import NOTE, about

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._row import Row, Source

Keyed: TypeAlias = tuple[str | None, Job]
"""A row: its key if it has one, and its job."""
Look: TypeAlias = "Callable[[Path | bytes], tuple[str, tuple[str, ...]]]"
"""What is wrong with an image, and what may be."""

_IMAGES: Final = ("image", "end_image")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_SOME_FILE: Final = Path()
_LOOKS_REMEMBERED: Final = 4096


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


@attrs.define
class Findings:
    """What the rows of a source are.

    Attributes:
        problems: What is wrong with them.
        warnings: What the service may not like.
        kinds: How many there are of each kind.
        models: The rows of their models, by id.
    """

    problems: list[RowProblem] = attrs.field(factory=list)
    warnings: list[RowProblem] = attrs.field(factory=list)
    kinds: Counter[Kind] = attrs.field(factory=Counter)
    models: dict[str, Model] = attrs.field(factory=dict)


def examined(source: Source, root: Path | None, common: Mapping[str, object], *, fit: bool) -> Findings:
    """Every row checked, each image file looked at.

    Raises:
        OSError: The source cannot be read.
    """
    findings = Findings()
    keys = _Keys()
    look = functools.lru_cache(_LOOKS_REMEMBERED)(functools.partial(_look, fit=fit))
    with closing(source.rows()) as rows:
        for row in rows:
            key = row.fields.get("key")
            if isinstance(key, str) and key:
                keys.add(key, row.line)
            warnings: list[Problem] = []
            found = keyed(row, root, common, fit=fit, look=look, warnings=warnings)
            findings.warnings += (about(source, row, warning) for warning in warnings)
            if isinstance(found, tuple):
                _, job = found
                findings.kinds[Kind(job.model, job.duration, bool(job.sound))] += 1
                findings.models.setdefault(job.model, job.row)
            else:
                findings.problems += (about(source, row, problem) for problem in found)
    findings.problems += _repeated(source, keys)
    # A folder's have no lines, and come in its order already.
    findings.problems.sort(key=lambda problem: problem.line or 0)
    return findings


def keyed(
    row: Row,
    root: Path | None,
    common: Mapping[str, object],
    *,
    fit: bool,
    look: Look | None = None,
    warnings: list[Problem] | None = None,
) -> Keyed | list[Problem]:
    """The row's key and job, or all that is wrong with it.

    Args:
        row: The row.
        root: Where its files lie; None when it has none.
        common: Fields that it has unless it says otherwise.
        fit: Whether images that it has within it are made to fit.
        look: Looks at its images, and then none is made to fit.
        warnings: Takes what is not wrong and may be.
    """
    if row.problems:
        return list(row.problems)
    fields = {**common, **{name: value for name, value in row.fields.items() if value is not None}}
    key = fields.pop("key", None)
    fields.pop(NOTE, None)
    problems: list[Problem] = []
    if key is not None and not isinstance(key, str):
        problems.append(Problem("key", f"expected text, got {type(key).__name__}"))
    elif key == "":
        problems.append(Problem("key", "is empty"))
    elif key is not None and not _encodable(key):
        problems.append(Problem("key", "has a lone surrogate, which is no text"))
    for name in _IMAGES:
        try:
            fields[name], doubtful = _image(fields.get(name), root, fit=fit, look=look)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
            # So that the other fields are looked at.
            fields[name] = _SOME_FILE
        else:
            if warnings is not None:
                warnings += (Problem(name, warning) for warning in doubtful)
    try:
        job = Job(**cast("JobFields", fields))
    except InvalidJobError as error:
        return problems + list(error.problems)
    return problems or (cast("str | None", key), job)


def _image(value: object, root: Path | None, *, fit: bool, look: Look | None) -> tuple[object, tuple[str, ...]]:
    """The image for the job, and what may be wrong with it.

    Raises:
        ValueError: Something is.
    """
    if isinstance(value, str) and root is not None and not _URL.match(value):
        value = _file(value, root)
    if not isinstance(value, (Path, bytes)):
        return value, ()
    if look is not None:
        wrong, doubtful = look(value)
        if wrong:
            raise ValueError(wrong)
        # What is to be made to fit is not looked at as it is.
        return _SOME_FILE, doubtful
    if fit and isinstance(value, bytes):
        try:
            value = _fitted(value)
        except InvalidJobError as error:
            raise ValueError(error.problems[0].message) from None
    return value, ()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _look(image: Path | bytes, *, fit: bool) -> tuple[str, tuple[str, ...]]:
    try:
        facts = preflight(image, fit=fit)
    except InvalidJobError as error:
        return error.problems[0].message, ()
    return "", (attrs.evolve(facts, turned=False) if fit else facts).warnings


def _fitted(content: bytes) -> bytes:
    if not preflight(content, fit=True).unfit:
        return content
    # Imported here: Pillow is an extra.
    from kling_async._images.convert import fitted  # noqa: PLC0415

    return fitted(content)


def _file(text: str, root: Path) -> Path:
    """The file that a row names.

    Raises:
        ValueError: There is none, or it is not below the root.
    """
    if not text.strip():
        raise ValueError("is empty")
    # As text: path objects take most of the time where rows are many.
    whole = str(root)
    # Resolved, so that neither `..` nor a symbolic link leads out.
    path = os.path.realpath(os.path.join(whole, text))  # noqa: PTH118 -- see above
    if not path.startswith(whole.rstrip(os.sep) + os.sep):
        raise ValueError(f"{text[:120]!r} leads out of {root}")
    try:
        found = os.stat(path)  # noqa: PTH116 -- see above
    except FileNotFoundError:
        raise ValueError(f"{text[:120]!r} is not there (in {root})") from None
    except OSError as error:
        raise ValueError(f"{text[:120]!r} cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{text[:120]!r} is not a file (in {root})")
    return Path(path)


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


def _repeated(source: Source, keys: _Keys) -> Iterator[RowProblem]:
    suspects = keys.suspects()
    if not suspects:
        return
    first: dict[str, str] = {}
    with closing(source.rows()) as rows:
        for row in rows:
            key = row.fields.get("key")
            if row.line not in suspects or not isinstance(key, str) or not key:
                continue
            place = row.file or f"{source.unit} {row.line}"
            earlier = first.setdefault(key, place)
            if earlier != place:
                yield about(source, row, Problem("key", f"{key[:80]!r} is the key of {earlier} already"))
