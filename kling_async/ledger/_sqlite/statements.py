"""Statements of the embedded ledger, and rows as its columns hold them."""

# The statements are put together of names of our own.
# ruff: noqa: S608

from __future__ import annotations

from decimal import Decimal
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.states import Row
from kling_async.errors import LedgerError
from kling_async.ledger._columns import restore, stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kling_async._core.states import Entry, State

_CONTENT = ("job", "files")
"""Attributes of a row that are in the table `content`."""
_COLUMNS = tuple(name for name in attrs.fields_dict(Row) if name not in _CONTENT)

SELECT = f"SELECT {', '.join(_COLUMNS)} FROM job "
SELECT_WITH_CONTENT = (
    f"SELECT {', '.join(f'job.{name}' for name in _COLUMNS)}, content.job, content.files "
    "FROM job LEFT JOIN content ON content.batch = job.batch AND content.key = job.key "
)
INSERT = (
    "INSERT INTO job(batch, key, digest, model, updated_at, state, attempt, failures) "
    "VALUES (?, ?, ?, ?, ?, 'pending', 0, 0) ON CONFLICT(batch, key) DO NOTHING"
)
INSERT_STEP = "INSERT INTO step(batch, key, state, at, attempt, prediction_id, error)"
# REPLACE: content left behind by a row that somebody deleted must not undo the whole group.
INSERT_CONTENT = "INSERT OR REPLACE INTO content(batch, key, job, files)"
INSERT_BATCH = "INSERT INTO batch(name, identity) VALUES (?, ?) ON CONFLICT DO NOTHING"
PUT_UPLOAD = "INSERT OR REPLACE INTO upload(digest, url, expires_at) VALUES (?, ?, ?)"
# Sums of decimals would become floats in SQLite; there are few different amounts.
AMOUNTS = "SELECT spent, refunded, count(*) FROM job WHERE batch = coalesce(?, batch) GROUP BY spent, refunded"
# The prediction of an earlier attempt, which failed, is still the job's own.
KNOWN = """
SELECT fingerprint, model FROM job WHERE prediction_id = :id UNION ALL
SELECT NULL, job.model FROM step JOIN job USING (batch, key)
WHERE step.prediction_id = :id AND step.state = 'failed' LIMIT 1
"""
STEPS = """
SELECT batch, key, state, at, attempt, prediction_id, error FROM step
WHERE batch = coalesce(?, batch) AND key = coalesce(?, key) ORDER BY batch, key, rowid
"""


def is_in(states: Iterable[State]) -> tuple[str, list[str]]:
    """Return the condition that the state is one of these, and its values."""
    words = [state.value for state in states]
    return f"state IN ({', '.join('?' * len(words))})", words


@cache
def values_of(insert: str, rows: int, width: int) -> str:
    """Return an INSERT statement with so many rows of so many columns."""
    row = f"({', '.join('?' * width)})"
    return f"{insert} VALUES {', '.join([row] * rows)}"


@cache
def update(names: tuple[str, ...]) -> str:
    """Return the UPDATE of some columns of a row: the indexes of the others are not touched."""
    return f"UPDATE job SET {', '.join(f'{name} = ?' for name in names)} WHERE batch = ? AND key = ?"


def columns(changes: Mapping[str, object]) -> list[object]:
    """Return attributes of a row as their columns hold them; amounts are texts, so that they stay exact."""
    return [value if value.__class__ in _PLAIN else _column(name, value) for name, value in changes.items()]


_PLAIN = frozenset({str, int, float, type(None)})


def _column(name: str, value: object) -> object:
    return str(value) if isinstance(value, Decimal) else stored(name, value)


_AMOUNTS = tuple(_COLUMNS.index(name) for name in ("cost", "spent", "refunded"))


def read_row(values: tuple[Any, ...]) -> Row:
    """Return a row, with its content when that was selected too."""
    fields = dict(zip((*_COLUMNS, *_CONTENT), values, strict=False))
    for place in _AMOUNTS:
        if values[place] is not None:
            fields[_COLUMNS[place]] = Decimal(values[place])
    return Row(**restore(fields))


def check_names(*names: str) -> None:
    """Check that names can be stored.

    Raises:
        LedgerError: One has a lone surrogate.
    """
    for name in names:
        if not _is_encodable(name):
            raise LedgerError(f"{name!r} is no text that a file can hold", key=ascii(name))


def encodable(text: str) -> str:
    """Return the text with lone surrogates replaced."""
    return text.encode("utf-8", "replace").decode()


def storable(entry: Entry) -> Entry:
    """Return the step with lone surrogates and too large numbers, as a service may send them, replaced."""
    texts = _texts(entry)
    for text in texts:
        if text is not None and not text.isascii():
            break
    else:
        if entry.code is None or abs(entry.code) <= _LARGEST:
            return entry
    changed: dict[str, Any] = {
        name: encodable(text) for name, text in zip(_TEXTS, texts, strict=True) if text is not None
    }
    changed["code"] = None if entry.code is None or abs(entry.code) > _LARGEST else entry.code
    return attrs.evolve(entry, **changed)


_TEXTS = ("prediction_id", "output", "error", "path")
_texts = attrgetter(*_TEXTS)
_LARGEST = 2**62


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
