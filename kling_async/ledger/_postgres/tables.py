"""Tables of the shared ledger, and the migrations that lead to them.

Besides the job itself, a line of `kling_job` has the worker that claimed it (`worker_id`) and whether it occupies one
of the account's slots (`slot`): the lines are the semaphore, because a prediction outlives the worker that started it.
`cleared` is true while the worker that has claimed a job is to send it, and no other batch has paid for the same job.
A line of `kling_worker` is a lease: until it ends, by the database's clock, the jobs of the worker are its own.
"""

# The statements are put together of names of our own.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async.errors import LedgerError
from kling_async.ledger import _sentences as sentences

from .connection import fetch

if TYPE_CHECKING:
    from .connection import Address, Connection

_IS_HELD = f"state = 'uncertain' AND position('{sentences.CANDIDATES}' in error) > 0"
_OLD_STATE = f"CASE WHEN state = 'rejected' AND error = '{sentences.GIVEN_UP}' THEN 'abandoned' ELSE state END"
_OLD_DOUBT = (
    f"CASE WHEN {_IS_HELD} THEN CASE split_part(error, '{sentences.CANDIDATES}', 1) "
    f"WHEN '{sentences.WHOSE}' THEN 'whose' ELSE 'whether' END END"
)
_OLD_IDS = f"split_part(error, '{sentences.CANDIDATES}', 2)"
_OLD_CANDIDATES = (
    f"CASE WHEN {_IS_HELD} AND {_OLD_IDS} NOT IN ('', 'none') THEN to_json(string_to_array({_OLD_IDS}, ', '))::text END"
)
"""Values that version 2 kept in texts."""

MIGRATIONS: tuple[str, ...] = (
    """
CREATE TABLE kling_job(
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account text NOT NULL, batch text NOT NULL, key text NOT NULL,
  digest text NOT NULL, model text NOT NULL, state text NOT NULL, updated_at double precision NOT NULL,
  attempt bigint NOT NULL DEFAULT 0, fingerprint text, token_hash text, intent_at double precision,
  submitted_at double precision, prediction_id text, cost numeric, spent numeric, refunded numeric,
  failures bigint NOT NULL DEFAULT 0, output text, code bigint, error text, path text, bytes bigint, sha256 text,
  owner text, slot boolean NOT NULL DEFAULT false, started_at timestamptz, due_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE(account, batch, key), UNIQUE(account, prediction_id)) WITH (fillfactor = 70);
-- Apart, because it is long and never changes.
CREATE TABLE kling_content(job bigint PRIMARY KEY, text text NOT NULL, files text);
CREATE INDEX kling_job_due ON kling_job(account, due_at, id) WHERE state = 'pending' AND owner IS NULL;
CREATE INDEX kling_job_slot ON kling_job(account) WHERE slot;
CREATE INDEX kling_job_left ON kling_job(account, due_at) WHERE slot AND owner IS NULL;
CREATE INDEX kling_job_unsaved ON kling_job(account, due_at) WHERE state = 'completed' AND owner IS NULL;
CREATE INDEX kling_job_started ON kling_job(account, started_at) WHERE started_at IS NOT NULL;
CREATE INDEX kling_job_owner ON kling_job(owner) WHERE owner IS NOT NULL;
CREATE TABLE kling_step(
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job bigint NOT NULL, state text NOT NULL,
  at double precision NOT NULL, attempt bigint NOT NULL, prediction_id text, error text, worker text NOT NULL);
CREATE TABLE kling_upload(
  account text, digest text, url text NOT NULL, expires_at double precision NOT NULL, PRIMARY KEY(account, digest));
CREATE TABLE kling_worker(
  id text PRIMARY KEY, account text NOT NULL, name text NOT NULL, since timestamptz NOT NULL DEFAULT now(),
  lease_until timestamptz NOT NULL);
""",
    """
CREATE INDEX kling_job_failed ON kling_job(account, failures, due_at)
  WHERE state = 'failed' AND owner IS NULL AND code IN (5000, 5003, 5004);
CREATE INDEX kling_step_failed ON kling_step(prediction_id) WHERE state = 'failed';
""",
    f"""
ALTER TABLE kling_job RENAME COLUMN owner TO worker_id;
ALTER TABLE kling_job ADD COLUMN doubt text, ADD COLUMN candidates text;
UPDATE kling_job SET doubt = {_OLD_DOUBT}, candidates = {_OLD_CANDIDATES} WHERE state = 'uncertain';
UPDATE kling_job SET state = {_OLD_STATE} WHERE state = 'rejected';
UPDATE kling_step SET state = {_OLD_STATE} WHERE state = 'rejected';
CREATE TABLE kling_batch(account text, batch text, identity bigint NOT NULL, PRIMARY KEY(account, batch));
INSERT INTO kling_batch SELECT DISTINCT account, batch, 1 FROM kling_job;
""",
    """
ALTER TABLE kling_job ADD COLUMN sender text, ADD COLUMN reused text, ADD COLUMN seen text,
  ADD COLUMN cleared boolean NOT NULL DEFAULT false;
CREATE TABLE kling_sender(
  account text, id text, provider text NOT NULL, origin text NOT NULL, salt text NOT NULL, same_as text NOT NULL,
  PRIMARY KEY(account, id));
CREATE INDEX kling_job_sent ON kling_job(account, digest) WHERE intent_at IS NOT NULL OR cleared;
-- Names of query parameters: a JSON array; NULL for none.
ALTER TABLE kling_batch ADD COLUMN ignored text;
CREATE INDEX kling_batch_ignored ON kling_batch(account, ignored) WHERE ignored IS NOT NULL;
""",
    """
-- The caller's own values of each job: a JSON object; NULL for none.
ALTER TABLE kling_content ADD COLUMN labels text;
""",
    """
CREATE TABLE kling_mark(
  account text, prediction_id text, mark text NOT NULL, at double precision NOT NULL,
  PRIMARY KEY(account, prediction_id));
""",
    """
-- Keys of the jobs that the pictures of each job are frames of: a JSON object; NULL for none.
ALTER TABLE kling_content ADD COLUMN frames text;
-- A job whose parents have no videos yet is due at infinity.
CREATE TABLE kling_parent(job bigint, parent bigint, PRIMARY KEY(job, parent));
CREATE INDEX kling_parent_of ON kling_parent(parent);
ALTER TABLE kling_job ADD COLUMN caller text NOT NULL DEFAULT '', ADD COLUMN priority integer NOT NULL DEFAULT 0;
CREATE INDEX kling_job_ready ON kling_job(account, caller, priority DESC, due_at, id)
  WHERE state = 'pending' AND worker_id IS NULL AND due_at < 'infinity';
DROP INDEX kling_job_due;
DROP INDEX kling_job_slot;
CREATE INDEX kling_job_slot ON kling_job(account, caller) WHERE slot;
CREATE INDEX kling_job_caller ON kling_job(account, caller, id) WHERE caller <> '';
CREATE INDEX kling_job_page ON kling_job(account, batch, key COLLATE "C");
-- jsonb cannot hold NUL. Without fastupdate: as long as much is pending, the planner reads the whole table instead.
CREATE INDEX kling_content_labels ON kling_content USING gin ((labels::jsonb) jsonb_path_ops)
  WITH (fastupdate = off) WHERE labels IS NOT NULL AND position('\\u0000' IN labels) = 0;
-- Turns of callers, as `FairTurns` counts them.
CREATE TABLE kling_caller(
  account text, caller text, start double precision NOT NULL, PRIMARY KEY(account, caller)) WITH (fillfactor = 50);
CREATE TABLE kling_turn(account text PRIMARY KEY, virtual double precision NOT NULL) WITH (fillfactor = 50);
""",
)
"""From nothing to the newest tables, one step each, all of them in one transaction. A released step is never changed.

Every transaction of a worker reads `kling_version` first, and thereby holds its table until it ends; a migration locks
that table before anything else (`LOCK_VERSION`). So a migration waits for running transactions, and a worker of an
older version that is still open finds the new version in its next one, and is refused.

Workers of the first release, which knows the tables up to version 2, read the version only when they open. Version 3
renames the column `kling_job.owner`, which each of their statements that reads rows or writes any of them names: the
database refuses these, their leases end, and what they had sent is in doubt until a worker of this version settles it.
"""

EXISTS = "SELECT to_regclass('kling_version') IS NOT NULL"
VERSION = "SELECT version FROM kling_version"
LOCK_VERSION = "LOCK TABLE kling_version IN ACCESS EXCLUSIVE MODE"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('kling_async tables', 0))"
# IF NOT EXISTS: another process may have made it while this one waited for the lock.
_MAKE_VERSION = """
CREATE TABLE IF NOT EXISTS kling_version(version bigint NOT NULL);
INSERT INTO kling_version SELECT 0 WHERE NOT EXISTS (SELECT FROM kling_version)
"""
_WITH_DOUBTS = 3
"""Version whose jobs have the columns of a doubt, and no sender."""
_WITH_SENDERS = 4
"""Version whose jobs have senders, and no labels."""
_WITH_LABELS = 5
"""Version whose jobs have labels, without marks of videos."""
_WITH_MARKS = 6
"""Version whose videos have marks, and whose jobs have neither frames nor callers."""
_NO_CALLERS = "''::text AS caller, 0 AS priority"
_JOBS = f"kling_job AS (SELECT *, {_NO_CALLERS} FROM kling_job)\n"
_CONTENT = "kling_content AS (SELECT *, NULL::text AS labels, NULL::text AS frames FROM kling_content)\n"
_LABELLED_CONTENT = "kling_content AS (SELECT *, NULL::text AS frames FROM kling_content) "
_UNCHANGED = (
    "id, account, slot, batch, key, digest, model, updated_at, attempt, fingerprint, token_hash, intent_at, "
    "submitted_at, prediction_id, cost, spent, refunded, failures, output, code, error, path, bytes, sha256"
)
"""Columns that version 3 has in common with those before."""
_ADDED = f"NULL::text AS sender, NULL::text AS reused, NULL::text AS seen, {_NO_CALLERS}"
"""Columns that versions up to 3 do not have."""


async def read_version(connection: Connection, address: Address) -> int:
    """Return the version of the tables, which does not change until the transaction ends.

    Raises:
        LedgerError: A later version of the package made them.
    """
    ((version,),) = await fetch(connection, VERSION)
    return check_version(version, address)


def check_version(version: int, address: Address) -> int:
    """Return the version of the tables.

    Raises:
        LedgerError: A later version of the package made them.
    """
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"the tables of the ledger {address} were made by a later version of kling_async",
            advice="upgrade kling_async, or name another database",
        )
    return version


async def is_current(connection: Connection, address: Address) -> bool:
    """Return whether the newest tables are there.

    Raises:
        LedgerError: A later version of the package made them.
    """
    if not (await fetch(connection, EXISTS))[0][0]:
        return False
    return await read_version(connection, address) == len(MIGRATIONS)


async def migrate(connection: Connection, address: Address) -> None:
    """Bring the tables up to date, one process at a time.

    Raises:
        LedgerError: A later version of the package made them.
    """
    await fetch(connection, _LOCK)
    await fetch(connection, _MAKE_VERSION)
    version = await read_version(connection, address)
    await fetch(connection, LOCK_VERSION)
    for step in MIGRATIONS[version:]:
        await fetch(connection, step)
    await fetch(connection, "UPDATE kling_version SET version = %s", [len(MIGRATIONS)])


def as_newest(version: int) -> str:
    """Return the WITH clause under which queries for the newest tables read those of a version."""
    if version >= len(MIGRATIONS):
        return ""
    if version == _WITH_MARKS:
        return f"WITH {_JOBS}, {_LABELLED_CONTENT}"
    marks = (
        "WITH kling_mark AS (SELECT NULL::text AS account, NULL::text AS prediction_id, NULL::text AS mark, "
        "NULL::float8 AS at WHERE false)"
    )
    if version >= _WITH_LABELS:
        return f"{marks}, {_JOBS}, {_LABELLED_CONTENT}"
    if version == _WITH_SENDERS:
        return f"{marks}, {_JOBS}, {_CONTENT}"
    if version >= _WITH_DOUBTS:
        return f"""{marks},
{_CONTENT},
kling_job AS (SELECT *, {_ADDED} FROM kling_job),
kling_batch AS (SELECT *, NULL::text AS ignored FROM kling_batch)
"""
    return f"""{marks},
{_CONTENT},
kling_job AS (
  SELECT {_UNCHANGED}, {_ADDED}, owner AS worker_id, {_OLD_STATE} AS state, {_OLD_DOUBT} AS doubt,
    {_OLD_CANDIDATES} AS candidates FROM kling_job),
kling_step AS (
  SELECT id, job, {_OLD_STATE} AS state, at, attempt, prediction_id, error FROM kling_step),
kling_batch AS (SELECT DISTINCT account, batch, 1 AS identity, NULL::text AS ignored FROM kling_job)
"""
