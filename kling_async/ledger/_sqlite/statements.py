"""Statements of the embedded ledger, and rows as its columns hold them."""

# The statements are put together of names of our own.
# ruff: noqa: S608

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.states import PAID, Row
from kling_async.ledger._columns import quoted, restore, stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kling_async._core.states import State

_CONTENT = ("job", "files", "labels", "frames")
"""Attributes of a row that are in the table `content`."""
_ENQUEUED = ("seen",)
"""Attributes of a row that only shared ledgers have."""
_COLUMNS = tuple(name for name in attrs.fields_dict(Row) if name not in (*_CONTENT, *_ENQUEUED))

SELECT = f"SELECT {', '.join(_COLUMNS)} FROM job "
SELECT_WITH_CONTENT = (
    f"SELECT {', '.join(f'job.{name}' for name in _COLUMNS)}, {', '.join(f'content.{name}' for name in _CONTENT)} "
    "FROM job LEFT JOIN content ON content.batch = job.batch AND content.key = job.key "
)
# The table `label` may have more than there is: what was replaced stays in it. `label_text` is a function of ours.
HAS_LABEL = (
    "(job.batch, job.key) IN (SELECT batch, key FROM label WHERE name = ? AND value = ?) "
    "AND label_text(content.labels, ?) = ?"
)
"""Condition that a job has a label: its values are name, value, name and value."""
INSERT = (
    "INSERT INTO job(batch, key, digest, model, updated_at, caller, priority, state, attempt, failures) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', 0, 0) ON CONFLICT(batch, key) DO NOTHING"
)
INSERT_STEP = "INSERT INTO step(batch, key, state, at, attempt, prediction_id, error)"
# REPLACE: content left behind by a row that somebody deleted must not undo the whole group.
INSERT_CONTENT = f"INSERT OR REPLACE INTO content(batch, key, {', '.join(_CONTENT)})"
LABELS = "SELECT labels FROM content WHERE batch = ? AND key = ?"
INSERT_LABEL = "INSERT OR IGNORE INTO label(name, value, batch, key)"
RENEW_LABELS = "UPDATE content SET labels = ? WHERE batch = ? AND key = ? AND labels IS NOT ?"
INSERT_BATCH = "INSERT INTO batch(name, identity, ignored) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
IDENTITY = "SELECT identity, ignored FROM batch WHERE name = ?"
IGNORED = "SELECT DISTINCT ignored FROM batch WHERE ignored IS NOT NULL"
SENDERS = "SELECT id, provider, origin, salt, same_as FROM sender"
PUT_SENDER = "INSERT OR REPLACE INTO sender(id, provider, origin, salt, same_as) VALUES (?, ?, ?, ?, ?)"
MARKS = "SELECT prediction_id, mark, at FROM mark"
PUT_MARK = "INSERT OR REPLACE INTO mark(prediction_id, mark, at) VALUES (?, ?, ?)"
REMOVE_MARK = "DELETE FROM mark WHERE prediction_id = ?"
RENAME = tuple(f"UPDATE {table} SET key = ? WHERE batch = ? AND key = ?" for table in ("job", "content", "step"))
"""Give a job another key."""
PUT_UPLOAD = "INSERT OR REPLACE INTO upload(digest, url, expires_at) VALUES (?, ?, ?)"
# Sums of decimals would become floats in SQLite; there are few different amounts.
AMOUNTS = "SELECT spent, refunded, count(*) FROM job WHERE batch = coalesce(?, batch) GROUP BY spent, refunded"
AMOUNTS_OF = (
    "SELECT spent, refunded, count(*) FROM job WHERE caller = ? AND batch = coalesce(?, batch) GROUP BY spent, refunded"
)
# The prediction of an earlier attempt, which failed, is still the job's own.
KNOWN = """
SELECT fingerprint, model, sender FROM job WHERE prediction_id = :id UNION ALL
SELECT NULL, job.model, NULL FROM step JOIN job USING (batch, key)
WHERE step.prediction_id = :id AND step.state = 'failed' LIMIT 1
"""
# INDEXED BY: an error, instead of a scan of the table, should the planner want one.
PAID_ELSEWHERE = f"""{SELECT} INDEXED BY job_sent
WHERE digest = :digest AND intent_at IS NOT NULL AND batch <> :batch AND key = coalesce(:key, key)
AND state IN ({quoted(PAID)})
"""
STEPS = """
SELECT batch, key, state, at, attempt, prediction_id, error FROM step
WHERE batch = coalesce(?, batch) AND key = coalesce(?, key) ORDER BY batch, key, rowid
"""
# The table of jobs has no numbers; that of steps has.
ORDER = "SELECT key FROM step WHERE batch = ? GROUP BY key ORDER BY min(rowid)"

# Each step is written together with its row, so that another one shows pages of different moments.
MISMATCHED = """
SELECT job.key FROM job LEFT JOIN (
  SELECT batch, key, state, at, attempt, prediction_id, max(rowid) FROM step GROUP BY batch, key) AS last
USING (batch, key)
WHERE last.state IS NOT job.state OR last.at IS NOT job.updated_at OR last.attempt IS NOT job.attempt
  OR last.prediction_id IS NOT job.prediction_id LIMIT 1
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


def read_row(values: tuple[Any, ...]) -> Row:
    """Return a row, with its content when that was selected too."""
    return Row(**restore(dict(zip((*_COLUMNS, *_CONTENT), values, strict=False))))


def storable_text(text: str) -> str:
    """Return the text with lone surrogates, which a file cannot hold, replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
