"""Names of columns as people write them, and the fields of a job that they mean."""

from __future__ import annotations

import difflib
import functools
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import attrs

from kling_async._core.job import Job, JobFields
from kling_async.errors import ConfigurationError, InvalidJobError, Problem

from ._row import CONTINUES, FIELDS, INPUT, NOTE, Row
from ._values import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "key": ("id",),
    "image": (
        "image_url",
        "image_file",
        "image_path",
        "image_name",
        "img",
        "picture",
        "photo",
        "filename",
        "file_name",
        "start_image",
        "first_frame",
    ),
    "end_image": ("last_image", "tail_image", "last_frame", "end_frame"),
    "prompt": ("text", "caption"),
    "guidance_scale": ("cfg_scale",),
    "duration": ("seconds", "duration_s", "duration_seconds"),
}
"""Other names of fields, as columns are called; a field's own name goes first."""
_FIELD_OF_ALIAS: Final = {alias: field for field, aliases in ALIASES.items() for alias in aliases}
_OF_SERVICES: Final = frozenset(
    {"seed", "fps", "frames", "num_frames", "steps", "num_inference_steps", "mode", "camera", "camera_control"}
    | {"strength", "cfg", "webhook", "webhook_url", "callback_url"}
)
"""Names of inputs that no field has: as columns that travel along they would be taken for heeded, and paid for."""
_INDEX: Final = re.compile(r"__index_level_\d+__|Unnamed: 0")
"""Columns that pandas makes of a row's number."""
_NAMES: Final = sorted(FIELDS - {NOTE})
_MAIN: Final = ("prompt", "image", "duration", "model")
_MAX_LISTED: Final = 12
_MAX_SHAPES: Final = 256
_PLAIN: Final = frozenset({str, int, bool, bytes, type(None)})


@attrs.frozen
class Resolved:
    """Meaning of the columns of a row.

    Attributes:
        fields: Fields by the names of their columns.
        labels: Names under which the other columns travel along, by the names of the columns.
        problems: Problems of single columns.
        exact: True if every column has the name of its field.
        nested: True if columns are single inputs of `extra`.
        meant: Fields that misspelt columns may mean, which are problems.
    """

    fields: Mapping[str, str]
    labels: Mapping[str, str]
    problems: tuple[Problem, ...]
    exact: bool
    nested: bool = False
    meant: frozenset[str] = frozenset()

    def row(
        self, line: int, fields: dict[str, object], labels: dict[str, object], problems: tuple[Problem, ...]
    ) -> Row:
        """Return a row of values by fields and labels; single inputs of `extra` become one field."""
        if self.nested:
            problems += _nest(fields)
        return Row(line, fields, problems, labels=labels)


class Columns:
    """Finds the fields that columns mean.

    Args:
        given: Names of columns by fields; by any other name for columns that travel along under it.
        common: Fields for rows that do not have them.

    Raises:
        ConfigurationError: A name in `given` is nearly that of a field.
    """

    def __init__(self, given: Mapping[str, str] | None = None, common: Mapping[str, object] | None = None) -> None:
        self._given = dict(given or {})
        self._common = common or {}
        for field, column in self._given.items():
            near = None if _is_field(field) or field == column else _near(field)
            if near is not None:
                raise ConfigurationError(
                    f"columns: expected FIELD=COLUMN, got {field}={column}; did you mean {near}={column}?",
                    advice="correct the name of the field",
                )
        self.resolve = functools.lru_cache(_MAX_SHAPES)(self._resolve)

    def header(self, names: Sequence[str]) -> tuple[Resolved, tuple[Problem, ...]]:
        """Return the meaning of a header, and its problems: repeated, misspelt and missing columns."""
        problems = [Problem(name, "is the name of two columns") for name, times in Counter(names).items() if times > 1]
        resolved = self.resolve(tuple(dict.fromkeys(names)))
        problems += resolved.problems
        found = "the columns are " + ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
        if len(names) == 1:
            found = f"the only column is {names[0]}; the first row has to be the header"
        problems += (
            Problem(field, f"there is no column {column!r}; {found}")
            for field, column in self._given.items()
            if _normal(column) not in {_normal(name) for name in names}
        )
        named = {*resolved.fields.values(), *resolved.meant, *self._given}
        problems += (
            Problem(field, f"no column is {field}; {found}: name it, as in --column {field}=COLUMN")
            for field in self._missing(named)
        )
        return resolved, tuple(problems)

    def row(self, line: int, values: Mapping[str, object]) -> Row:
        """Return the row of a mapping: a JSON object, or what a library of tables yields."""
        resolved = self.resolve(tuple(values))
        if resolved.exact:
            if _PLAIN.issuperset(map(type, values.values())):
                return Row(line, values)
            return Row(line, {name: plain(name, value) for name, value in values.items()})
        fields = {field: plain(field, values[name]) for name, field in resolved.fields.items()}
        labels = {
            label: value
            for name, label in resolved.labels.items()
            if (value := plain("", values[name])) is not None and value != ""
        }
        return resolved.row(line, fields, labels, resolved.problems)

    def _resolve(self, names: tuple[str, ...]) -> Resolved:
        columns = {name: _normal(name) for name in names if name and not _INDEX.fullmatch(name)}
        given = {
            column: field
            for field, wanted in self._given.items()
            for column in columns
            if column == wanted or (wanted not in columns and columns[column] == _normal(wanted))
        }
        fields = {column: field for column, field in given.items() if _is_field(field)}
        labels = {column: field for column, field in given.items() if not _is_field(field)}
        for name in columns:
            if name not in given and len(name) > len(INPUT) and name.lower().startswith(INPUT):
                fields[name] = INPUT + name[len(INPUT) :]
        # First the fields' own names, then their own names as people write them, then their other names.
        for meaning in (dict(zip(columns, columns, strict=True)), columns, _aliases(columns)):
            taken = set(fields.values())
            for column, name in meaning.items():
                if column not in fields and column not in labels and name in FIELDS and name not in taken:
                    fields[column] = name
        problems = [
            Problem(
                field,
                f"two columns may be it: {' and '.join(same)}; say which, as in --column {_option(field, same[0])}",
            )
            for field, same in _grouped(fields)
            if len(same) > 1
        ]
        meant: set[str] = set()
        for column, name in columns.items():
            if column in fields or column in labels:
                continue
            near = None if name in _OF_SERVICES else _near(name, set(fields.values()))
            problem = _unknown(column, name, near)
            if problem:
                problems.append(Problem(column, problem))
                meant.update([near] if near else [])
            else:
                labels[column] = column
        exact = not problems and not labels and len(fields) == len(names) and all(c == f for c, f in fields.items())
        nested = any(field.startswith(INPUT) for field in fields.values())
        return Resolved(fields, labels, tuple(problems), exact and not nested, nested, frozenset(meant))

    def _missing(self, present: Iterable[str]) -> list[str]:
        """Return the fields that every row lacks, as far as the header tells."""
        mapped = set(present)
        if "model" in mapped:
            return []
        probe: dict[str, object] = {**self._common}
        probe |= {name: Path() for name in ("image", "end_image") if name in mapped}
        probe |= {"image": Path()} if CONTINUES in mapped else {}
        probe |= {name: "x" for name in ("prompt",) if name in mapped}
        if mapped & {"multi_prompt", "images", "keyframes", "extra"} or any(one.startswith(INPUT) for one in mapped):
            return []
        try:
            Job(**cast("JobFields", probe))
        except InvalidJobError as error:
            needed = {problem.path for problem in error.problems} & {"prompt", "image", "end_image"}
            return [name for name in ("image", "prompt", "end_image") if name in needed - mapped - probe.keys()]
        return []


def _is_field(name: str) -> bool:
    """Return whether a name is that of a field, or of a single input of `extra`."""
    return name in FIELDS or (name.startswith(INPUT) and len(name) > len(INPUT))


def _nest(fields: dict[str, object]) -> tuple[Problem, ...]:
    """Move single inputs into `extra`; return the problems of those that it has already."""
    inputs = {name: fields.pop(name) for name in [*fields] if name.startswith(INPUT)}
    given = fields.get("extra")
    if given is not None and not isinstance(given, Mapping):
        # The check of the job says so.
        return ()
    extra: dict[str, object] = dict(cast("Mapping[str, object]", given or {}))
    problems: list[Problem] = []
    for name, value in inputs.items():
        if value is None:
            continue
        *folders, last = name.split(".")[1:]
        place: object = extra
        for folder in folders:
            place = place.setdefault(folder, {}) if isinstance(place, dict) else None
        if isinstance(place, dict) and last not in place:
            place[last] = value
        else:
            problems.append(Problem(name, "is given twice: by two columns, or in extra, too"))
    if extra:
        fields["extra"] = extra
    return tuple(problems)


def _normal(name: str) -> str:
    """Return the name of a column in the form of a field's: `Negative Prompt` is `negative_prompt`."""
    return name if name in FIELDS else re.sub(r"[\W_]+", "_", name.strip().casefold()).strip("_") or name


def _aliases(columns: Mapping[str, str]) -> dict[str, str]:
    return {column: _FIELD_OF_ALIAS[name] for column, name in columns.items() if name in _FIELD_OF_ALIAS}


def _grouped(fields: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for column, field in fields.items():
        groups.setdefault(field, []).append(column)
    return list(groups.items())


def _near(name: str, taken: Collection[str] = ()) -> str | None:
    """Return the field that a misspelt name means; None if it means none.

    Args:
        name: The name.
        taken: Fields that other columns mean.
    """
    normal = _normal(name)
    # The motion prompt of a table is its prompt, if it has no other.
    words = normal.split("_")
    whole = next((field for field in _MAIN if field in words and field not in taken), None)
    if whole is not None:
        return whole
    near = difflib.get_close_matches(normal, _NAMES, n=1, cutoff=0.7)
    return near[0] if near and near[0] not in taken else None


def _unknown(column: str, name: str, near: str | None) -> str:
    """Return the problem of a column that is no field; empty if it may travel along.

    Args:
        column: The column.
        name: Its name in the form of a field's.
        near: The field that it may mean.
    """
    keep = f"to keep it for the results alone, --column {_option(column, column)}"
    if name in _OF_SERVICES:
        return (
            "unknown field: the service would ignore it and charge; inputs of your model that no field has go into "
            f"extra; {keep}"
        )
    if near is None:
        return ""
    return (
        f"unknown field: the service would ignore it and charge; did you mean {near}? Then say "
        f"--column {_option(near, column)}; {keep}"
    )


def _option(field: str, column: str) -> str:
    return shlex.quote(f"{field}={column}")
