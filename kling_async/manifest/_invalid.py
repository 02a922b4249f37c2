"""Rows that are left out, as rows of a manifest that can be corrected and run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kling_async._core.input_files import replaced
from kling_async._core.job import IMAGES, TREES
from kling_async._core.job_validation import IMAGE_LISTS
from kling_async.errors import Problem

from ._check import FILE_PREFIX, check_file, job_of_row
from ._files import URL, find_file
from ._row import NOTE, with_labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kling_async._core.catalogue import Model

    from ._row import Row, Source


def problems_of_row(
    row: Row, root: Path | None, common: Mapping[str, object], *, fit: bool, models: Mapping[str, Model]
) -> list[Problem]:
    """Return the problems of a row that is not valid by itself."""
    check = functools.partial(check_file, fit=fit)
    found = job_of_row(row, root, common, fit=fit, models=models, check=check)
    return found if isinstance(found, list) else [Problem("row", "was not valid when it was checked, and is now")]


def as_line(source: Source, row: Row, problems: list[Problem], root: Path | None) -> dict[str, object]:
    """Return a row as a row of a manifest, with its problems."""
    fields = {name: value for name, value in row.fields.items() if value is not None and name != NOTE}
    for name in (*IMAGES, *IMAGE_LISTS, *TREES):
        with contextlib.suppress(RecursionError):
            fields[name] = replaced(fields.get(name), name, functools.partial(_placed, root=root))
    fields = with_labels({name: value for name, value in fields.items() if value is not None}, row.labels)
    where = row.file or (f"{source.name}:{row.line}" if row.line else source.name)
    note = {"status": "invalid", "code": None, "message": f"{where}: {'; '.join(map(str, problems))}"}
    return {name: value for name, value in fields.items() if _is_json(value)} | {NOTE: note}


def _placed(place: str, value: object, *, root: Path | None) -> object:
    """Return a value at a place in a job with the path of a file made absolute."""
    prefix = FILE_PREFIX if place.startswith(TREES) else ""
    if isinstance(value, Path):
        return prefix + _absolute(value, root)
    named = isinstance(value, str) and root is not None and value.startswith(prefix)
    if not named or (not prefix and URL.match(str(value))):
        return value
    return prefix + _absolute(str(value).removeprefix(prefix), root)


def _absolute(image: str | Path, root: Path | None) -> str:
    """Return the absolute path of an image file, which may not be there."""
    if root is not None:
        try:
            return str(find_file(str(image), root))
        except ValueError:
            pass
    return os.path.abspath(os.path.join(root or "", image))  # noqa: PTH100, PTH118 -- a path may be anything


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
