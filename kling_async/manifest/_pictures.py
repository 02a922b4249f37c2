"""Pictures as a list: a folder, files by name, or a pattern."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kling_async._files import open_file
from kling_async.errors import Problem

from ._row import Row

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".jpg_large", ".png", ".webp", ".gif", ".bmp"}
    | {".tif", ".tiff", ".avif", ".heic", ".heif"}
)
"""Suffixes of files that are rows of a folder; the content is checked later."""
SIDECARS: Final = ("{stem}.txt", "{name}.txt", "{stem}.prompt.txt", "{stem}.prompt", "{stem}.caption", "{stem}.md")
"""Names of the text files with the prompt of a picture, by its name and its name without suffix; the first counts."""
_RESULTS: Final = frozenset({"run.db", "results.jsonl"})
_MAX_PROMPT_BYTES: Final = 2**16


@attrs.define(eq=False)
class Pictures:
    """One row per picture of a folder, in the order of their names; hidden files are ignored.

    The key is the file's name without its suffix, with the names of the subfolders in front. Pictures that differ only
    in the suffix have none, and are told apart like rows without a key. A text file beside a picture has its prompt.

    Attributes:
        path: The folder.
        recursive: Whether pictures in subfolders are rows, too.
    """

    path: Path
    recursive: bool = False
    unit: str = attrs.field(default="file", init=False)
    _left_out: Counter[str] = attrs.field(factory=Counter, init=False)

    @property
    def name(self) -> str:
        """Path as given."""
        return str(self.path)

    @property
    def left_out(self) -> Mapping[str, int]:
        """Files and folders that are no rows, by their suffix or kind."""
        return self._left_out

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        self._left_out.clear()
        numbers = iter(range(1, 2**62))
        for folder, names, other in _folders(self.path, self._left_out, recursive=self.recursive):
            prefix = "" if folder == self.path else folder.relative_to(self.path).as_posix() + "/"
            yield from _rows(folder, names, other, numbers, self._left_out, prefix=prefix)


@attrs.define(eq=False)
class NamedPictures:
    """One row per picture that was named, in this order; each once. Keys and prompts are as in a folder.

    Attributes:
        paths: The pictures.
        name: Name of the source.
    """

    paths: tuple[Path, ...]
    name: str
    unit: str = attrs.field(default="file", init=False)
    left_out: Mapping[str, int] = attrs.field(factory=dict, init=False)

    def rows(self) -> Generator[Row, None, None]:
        """Yield all rows."""
        stems = Counter(path.stem.casefold() for path in self.paths)
        beside: dict[Path, dict[str, str]] = {}
        for number, path in enumerate(self.paths, 1):
            folder = path.parent
            if folder not in beside:
                beside[folder] = _texts_in(folder)
            fields: dict[str, object] = {"image": path}
            if stems[path.stem.casefold()] == 1:
                fields["key"] = path.stem
            sidecar = _sidecar(path.name, beside[folder])
            yield _with_prompt(Row(number, fields, file=str(path)), path, sidecar)


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern such as `photos/*.jpg`, and not the name of something that exists."""
    return glob.has_magic(text) and not os.path.lexists(text)


def matches(pattern: str) -> list[Path]:
    """Return the pictures whose paths match a pattern, in the order of their names."""
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- a path's own takes no absolute patterns
    return [path for path in map(Path, found) if is_picture(path) and not path.is_dir()]


def is_picture(path: Path) -> bool:
    """Return whether a path has the suffix of a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _folders(top: Path, left_out: Counter[str], *, recursive: bool) -> Iterator[tuple[Path, list[str], dict[str, str]]]:
    """Yield folders with the names of their pictures, sorted, and of their other files (`_by_name`)."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        names: list[str] = []
        rest: list[str] = []
        below: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # Links to folders are not followed: they may lead back.
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.is_dir():  # noqa: PTH122 -- far faster for a million
                    names.append(entry.name)
                else:
                    rest.append(entry.name)
        other = _by_name(rest)
        if not _RESULTS.isdisjoint(other):
            # Where a run wrote its videos, there are pictures of its own.
            below = [name for name in below if name not in {"gallery", "rehearsal"}]
            if folder != top:
                left_out["folders of an earlier run"] += 1
                continue
        if recursive:
            waiting += (folder / name for name in sorted(below, reverse=True))
        else:
            left_out.update({"subfolders": len(below)} if below else {})
        yield folder, sorted(names), other


def _rows(
    folder: Path,
    names: list[str],
    other: dict[str, str],
    numbers: Iterator[int],
    left_out: Counter[str],
    *,
    prefix: str,
) -> Iterator[Row]:
    stems = Counter(Path(name).stem for name in names)
    used: set[str] = set()
    for name in names:
        image = folder / name
        # An absolute path is found from any root, and refused outside of it.
        fields: dict[str, object] = {"image": str(image.absolute())}
        if stems[image.stem] == 1:
            fields["key"] = prefix + image.stem
        sidecar = _sidecar(name, other)
        if sidecar:
            used.add(sidecar)
        row = Row(next(numbers), fields, file=str(image))
        yield _with_prompt(row, image, sidecar)
    for left in set(other.values()) - used:
        left_out[os.path.splitext(left)[1].lower() or "no suffix"] += 1  # noqa: PTH122 -- as above


def _by_name(names: Iterable[str]) -> dict[str, str]:
    """Return the names of files by themselves, and by their lower case where one file alone has it."""
    names = list(names)
    counts = Counter(map(str.lower, names))
    return {lower: name for name in names if counts[lower := name.lower()] == 1} | {name: name for name in names}


def _sidecar(name: str, others: Mapping[str, str]) -> str:
    """Return the name of the text file with the prompt of a picture; empty if there is none.

    `Anna.txt` goes with `Anna.png`, and with `anna.png` only where there is no `anna.txt`.
    """
    stem = os.path.splitext(name)[0]  # noqa: PTH122 -- as above
    for form in SIDECARS:
        beside = form.format(stem=stem, name=name)
        found = others.get(beside) or others.get(beside.lower())
        if found:
            return found
    return ""


def _texts_in(folder: Path) -> dict[str, str]:
    try:
        with os.scandir(folder) as entries:
            return _by_name(entry.name for entry in entries)
    except OSError:
        # The picture is not there either, and its check says so.
        return {}


def _with_prompt(row: Row, image: Path, sidecar: str) -> Row:
    """Return a row with the prompt of a text file, if there is one."""
    if not sidecar:
        return row
    text = image.with_name(sidecar)
    try:
        with open_file(text) as file:
            prompt = file.read(_MAX_PROMPT_BYTES).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8; save it as UTF-8"
        return attrs.evolve(row, problems=(Problem("prompt", f"cannot be read: {reason}"),), file=str(text))
    return attrs.evolve(row, fields={**row.fields, "prompt": prompt})
