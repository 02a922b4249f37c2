"""Tables of a ledger file, and the migrations that lead to them."""

# The statements are put together of names of our own.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kling_async.ledger import _sentences as sentences
from kling_async.ledger._labels import label_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

APPLICATION_ID: Final = 0x4B4C4E47
"""`KLNG`, in the header of every ledger file."""


_WITH_SENDERS: Final = 3
"""Version whose jobs have senders, and no labels."""
_WITH_MARKS: Final = 5
"""Version whose videos have marks, and whose jobs have neither frames nor callers."""
_NO_CALLERS: Final = "'' AS caller, 0 AS priority"
_CONTENT: Final = "content AS (SELECT *, NULL AS labels, NULL AS frames FROM main.content)\n"
_JOBS: Final = f"job AS (SELECT *, {_NO_CALLERS} FROM main.job)\n"


_LABELS: Final = """label AS (
  SELECT own.key AS name, label_text(content.labels, own.key) AS value, content.batch AS batch, content.key AS key
  FROM main.content AS content, json_each(content.labels) AS own WHERE own.atom IS NOT NULL)
"""
_NO_LABELS: Final = "label AS (SELECT NULL AS name, NULL AS value, NULL AS batch, NULL AS key WHERE 0)\n"
_LABELLED_CONTENT: Final = "content AS (SELECT *, NULL AS frames FROM main.content)\n"


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables of version 1."""
    _run(
        connection,
        """
CREATE TABLE job(
  batch TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL,
  updated_at REAL NOT NULL, attempt INTEGER NOT NULL, fingerprint TEXT, token_hash TEXT, intent_at REAL,
  submitted_at REAL, prediction_id TEXT UNIQUE, cost TEXT, spent TEXT, refunded TEXT, failures INTEGER NOT NULL,
  output TEXT, code INTEGER, error TEXT, path TEXT, bytes INTEGER, sha256 TEXT,
  PRIMARY KEY(batch, key)) WITHOUT ROWID;
-- Apart, because it is long and never changes.
CREATE TABLE content(
  batch TEXT NOT NULL, key TEXT NOT NULL, job TEXT NOT NULL, files TEXT, PRIMARY KEY(batch, key)) WITHOUT ROWID;
CREATE TABLE upload(digest TEXT PRIMARY KEY, url TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX job_open ON job(state) WHERE state IN ('intent', 'submitted', 'uncertain');
CREATE TABLE step(
  batch TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL, at REAL NOT NULL, attempt INTEGER NOT NULL,
  prediction_id TEXT, error TEXT);
CREATE INDEX step_failed ON step(prediction_id) WHERE state = 'failed';
""",
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _separate_state_from_text(connection: sqlite3.Connection) -> None:
    """Move state out of error texts into columns, and record the identity rule of every batch."""
    _define_functions(connection)
    _run(
        connection,
        """
ALTER TABLE job ADD COLUMN doubt TEXT;
-- A JSON array.
ALTER TABLE job ADD COLUMN candidates TEXT;
UPDATE job SET doubt = old_doubt(state, error), candidates = old_candidates(state, error) WHERE state = 'uncertain';
UPDATE job SET state = old_state(state, error) WHERE state = 'rejected';
UPDATE step SET state = old_state(state, error) WHERE state = 'rejected';
CREATE TABLE batch(name TEXT PRIMARY KEY, identity INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO batch SELECT DISTINCT batch, 1 FROM job;
""",
    )


def _add_senders_and_writer(connection: sqlite3.Connection) -> None:
    """Add who sent each job, what was reused for it, an index of what was sent, what batches ignore, and the writer."""
    _run(
        connection,
        """
ALTER TABLE job ADD COLUMN sender TEXT;
ALTER TABLE job ADD COLUMN reused TEXT;
CREATE TABLE sender(
  id TEXT PRIMARY KEY, provider TEXT NOT NULL, origin TEXT NOT NULL, salt TEXT NOT NULL, same_as TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX job_sent ON job(digest) WHERE intent_at IS NOT NULL;
-- Names of query parameters: a JSON array; NULL for none.
ALTER TABLE batch ADD COLUMN ignored TEXT;
-- A row while the file is open for writing, and after a crash.
CREATE TABLE writer(token TEXT NOT NULL, process INTEGER NOT NULL, host TEXT NOT NULL, journal TEXT NOT NULL);
""",
    )


def _add_labels(connection: sqlite3.Connection) -> None:
    """Add the caller's own values of each job, a JSON object."""
    _run(connection, "ALTER TABLE content ADD COLUMN labels TEXT")


def _add_marks(connection: sqlite3.Connection) -> None:
    """Add marks of videos."""
    _run(
        connection,
        "CREATE TABLE mark(prediction_id TEXT PRIMARY KEY, mark TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID",
    )


def _index_labels(connection: sqlite3.Connection) -> None:
    """Add a table of labels by name and value."""
    define_label_text(connection)
    _run(
        connection,
        f"""
CREATE TABLE label(
  name TEXT NOT NULL, value TEXT NOT NULL, batch TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY(name, value, batch, key)
) WITHOUT ROWID;
WITH {_LABELS} INSERT OR IGNORE INTO main.label SELECT name, value, batch, key FROM label;
""",
    )


def _add_callers(connection: sqlite3.Connection) -> None:
    """Add who asked for each job, and its priority among that caller's jobs."""
    _run(
        connection,
        """
ALTER TABLE job ADD COLUMN caller TEXT NOT NULL DEFAULT '';
ALTER TABLE job ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
CREATE INDEX job_caller ON job(caller) WHERE caller <> '';
""",
    )


def _add_frames(connection: sqlite3.Connection) -> None:
    """Add the keys of the jobs that the pictures of each job are frames of, a JSON object by their places."""
    _run(connection, "ALTER TABLE content ADD COLUMN frames TEXT")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _create,
    _separate_state_from_text,
    _add_senders_and_writer,
    _add_labels,
    _add_marks,
    _add_callers,
    _index_labels,
    _add_frames,
)
"""From an empty file to the newest tables, one step each, all of them in one transaction.

A released step is never changed. A file of an older version that is opened for writing is migrated at once, and is
refused by older versions of the package from then on; `read_ledger` and `read_steps` read it as it is.
"""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables of a file up to date, within the transaction of the connection."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for step in MIGRATIONS[version:]:
        step(connection)
    # Even when it is the same: a file that cannot be written is found out before money is spent.
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def as_newest(connection: sqlite3.Connection, version: int) -> str:
    """Return the WITH clause under which queries for the newest tables read those of a version."""
    if version >= len(MIGRATIONS):
        return ""
    if version == _WITH_MARKS:
        return f"WITH {_JOBS}, {_LABELLED_CONTENT}, {_LABELS}"
    marks = "WITH mark AS (SELECT NULL AS prediction_id, NULL AS mark, NULL AS at WHERE 0)"
    if version > _WITH_SENDERS:
        return f"{marks}, {_JOBS}, {_LABELLED_CONTENT}, {_LABELS}"
    if version == _WITH_SENDERS:
        return f"{marks}, {_JOBS}, {_CONTENT}, {_NO_LABELS}"
    if version > 1:
        return f"""{marks},
{_CONTENT}, {_NO_LABELS},
job AS (SELECT *, NULL AS sender, NULL AS reused, {_NO_CALLERS} FROM main.job),
batch AS (SELECT *, NULL AS ignored FROM main.batch)
"""
    _define_functions(connection)
    return f"""{marks},
{_CONTENT}, {_NO_LABELS},
job AS (
  SELECT batch, key, digest, model, old_state(state, error) AS state, updated_at, attempt, fingerprint, token_hash,
    intent_at, submitted_at, prediction_id, cost, spent, refunded, failures, output, code, error,
    old_doubt(state, error) AS doubt, old_candidates(state, error) AS candidates, NULL AS sender, NULL AS reused,
    path, bytes, sha256, {_NO_CALLERS} FROM main.job),
step AS (
  SELECT rowid, batch, key, old_state(state, error) AS state, at, attempt, prediction_id, error FROM main.step),
batch AS (SELECT DISTINCT batch AS name, 1 AS identity, NULL AS ignored FROM main.job)
"""


def _run(connection: sqlite3.Connection, script: str) -> None:
    """Run statements within the transaction, which `executescript` would commit before."""
    for statement in script.split(";\n"):
        connection.execute(statement)


def define_label_text(connection: sqlite3.Connection) -> None:
    """Define the SQL function that reads labels as Python writes them: SQLite writes some numbers otherwise."""
    connection.create_function(label_text.__name__, 2, label_text, deterministic=True)


def _define_functions(connection: sqlite3.Connection) -> None:
    """Define the SQL functions that read the texts of version 1."""
    for function in (sentences.old_state, sentences.old_doubt, sentences.old_candidates):
        connection.create_function(function.__name__, 2, function, deterministic=True)
