"""The tables of the shared ledger, and its statements.

Besides the job itself, a line of `kling_job` has the worker that claimed it (`worker_id`) and whether it occupies one
of the account's slots (`slot`): the lines are the semaphore, because a prediction outlives the worker that started it.
A line of `kling_worker` is a lease: until it ends, by the database's clock, the jobs of the worker are its own.
"""

# The statements are put together of our own names.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.prediction import RETRYABLE_CODES
from kling_async._core.states import ENDED, OPEN, RELEASED, WAITING, Row, State
from kling_async.ledger import _sentences as sentences

from ._columns import quoted, restore, stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kling_async._core.content import Content

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
"""What version 2 kept in texts."""

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
)
"""From nothing to the newest tables, one step each, all of them in one transaction. A released step is never changed.

Every transaction of a worker reads `kling_version` first, and thereby holds its table until it ends; a migration locks
that table before anything else (`LOCK_VERSION`). So a migration waits for running transactions, and a worker of an
older version that is still open finds the new version in its next one, and is refused.

Workers of the first release, which knows the tables up to version 2, read the version only when they open. Version 3
renames the column `kling_job.owner`, which each of their statements that reads rows or writes any of them names: the
database refuses these, their leases end, and what they had sent is in doubt until a worker of this version settles it.
"""

LOCK_VERSION = "LOCK TABLE kling_version IN ACCESS EXCLUSIVE MODE"
VERSION = "SELECT version FROM kling_version"
VERSIONED = "SELECT to_regclass('kling_version') IS NOT NULL"
VERSIONS = """
CREATE TABLE IF NOT EXISTS kling_version(version bigint NOT NULL);
INSERT INTO kling_version SELECT 0 WHERE NOT EXISTS (SELECT FROM kling_version)
"""


def as_newest(version: int) -> str:
    """Return the WITH clause under which queries for the newest tables read those of a version."""
    if version >= len(MIGRATIONS):
        return ""
    same = ", ".join(name for name in _FIELDS if name not in {"state", "doubt", "candidates"})
    return f"""
WITH kling_job AS (
  SELECT id, account, owner AS worker_id, slot, {same}, {_OLD_STATE} AS state, {_OLD_DOUBT} AS doubt,
    {_OLD_CANDIDATES} AS candidates FROM kling_job),
kling_step AS (
  SELECT id, job, {_OLD_STATE} AS state, at, attempt, prediction_id, error FROM kling_step)
"""


_TYPES: dict[str, str] = {
    "state": "text",
    "updated_at": "float8",
    "attempt": "bigint",
    "fingerprint": "text",
    "token_hash": "text",
    "intent_at": "float8",
    "submitted_at": "float8",
    "prediction_id": "text",
    "cost": "numeric",
    "spent": "numeric",
    "refunded": "numeric",
    "failures": "bigint",
    "output": "text",
    "code": "bigint",
    "error": "text",
    "doubt": "text",
    "candidates": "text",
    "path": "text",
    "bytes": "bigint",
    "sha256": "text",
}
"""What of a row changes."""
_FIXED = ("batch", "key", "digest", "model")
_FIELDS = (*_FIXED, *_TYPES)
_WITH_CONTENT = (*_FIELDS, "job", "files")

LINE = ", ".join(f"j.{name}" for name in ("id", "worker_id", "slot", *_FIELDS))
"""The columns of a line."""

INSERT = """
WITH given AS (
  SELECT * FROM unnest(%(batch)s::text[], %(key)s::text[], %(digest)s::text[], %(model)s::text[], %(at)s::float8[],
    %(text)s::text[], %(files)s::text[]) AS g(batch, key, digest, model, at, text, files)),
made AS (
  INSERT INTO kling_job(account, batch, key, digest, model, state, updated_at, worker_id)
  SELECT %(account)s, batch, key, digest, model, 'pending', at, %(owner)s FROM given
  ON CONFLICT (account, batch, key) DO NOTHING RETURNING id, batch, key),
put AS (INSERT INTO kling_content SELECT made.id, text, files FROM made JOIN given USING (batch, key)),
noted AS (
  INSERT INTO kling_step(job, state, at, attempt, worker)
  SELECT made.id, 'pending', at, 0, '' FROM made JOIN given USING (batch, key))
SELECT id, batch, key FROM made
"""
"""New jobs; those that are there already stay as they are."""

IDENTITY = "SELECT identity FROM kling_batch WHERE account = %s AND batch = %s"
"""The version of a batch's identity rule."""
BEGIN_BATCH = """
INSERT INTO kling_batch(account, batch, identity) VALUES (%s, %s, %s)
ON CONFLICT (account, batch) DO UPDATE SET identity = kling_batch.identity RETURNING identity
"""
"""Record the identity rule of a new batch; returns the rule of the worker that was first."""

OTHERS = """
SELECT g.key FROM unnest(%(batch)s::text[], %(key)s::text[], %(digest)s::text[]) AS g(batch, key, digest)
JOIN kling_job j ON j.account = %(account)s AND j.batch = g.batch AND j.key = g.key WHERE j.digest <> g.digest LIMIT 1
"""
"""A key that names a job with other content."""

READ = f"""
SELECT {LINE} FROM unnest(%s::text[], %s::text[]) AS g(batch, key)
JOIN kling_job j ON j.account = %s AND j.batch = g.batch AND j.key = g.key ORDER BY j.id FOR UPDATE OF j
"""
"""Lines by their names, locked."""

_ARRAYS = ", ".join(f"%({name})s::{kind}[]" for name, kind in _TYPES.items())
_NAMES = ", ".join(_TYPES)
_SET = ", ".join(f"{name} = n.{name}" for name in _TYPES)

WRITE = f"""
UPDATE kling_job AS j SET {_SET}, worker_id = n.owner, slot = n.slot,
  started_at = CASE WHEN n.state = 'intent' AND j.state <> 'intent' THEN clock_timestamp() ELSE j.started_at END,
  due_at = CASE WHEN n.wait > 0 THEN clock_timestamp() + n.wait * interval '1 second' ELSE j.due_at END
FROM unnest(%(id)s::bigint[], %(was_owner)s::text[], %(was_attempt)s::bigint[], %(was_state)s::text[],
  %(owner)s::text[], %(slot)s::bool[], %(wait)s::float8[], {_ARRAYS})
  AS n(id, was_owner, was_attempt, was_state, owner, slot, wait, {_NAMES})
WHERE j.id = n.id AND j.worker_id IS NOT DISTINCT FROM n.was_owner
AND ((j.attempt, j.state) = (n.was_attempt, n.was_state)
  OR (j.attempt, j.state, j.prediction_id) IS NOT DISTINCT FROM (n.attempt, n.state, n.prediction_id))
RETURNING j.id
"""
"""What became of lines; fenced: a line that is somebody else's by now, or at another attempt, is left alone.

As it is to be it may be already: the answer to the commit was lost.
"""

STEPS = """
INSERT INTO kling_step(job, state, at, attempt, prediction_id, error, worker)
SELECT s.*, %s FROM unnest(%s::bigint[], %s::text[], %s::float8[], %s::bigint[], %s::text[], %s::text[]) AS s
"""

REGISTER = """
INSERT INTO kling_worker(id, account, name, lease_until)
VALUES (%s, %s, %s, clock_timestamp() + %s * interval '1 second')
"""
ALIVE = """
SELECT (SELECT version FROM kling_version), lease_until > clock_timestamp() FROM kling_worker WHERE id = %s
FOR KEY SHARE
"""
"""The version of the tables, and whether a worker's lease runs. Its jobs cannot be claimed by others until the
transaction ends."""
RENEW = """
UPDATE kling_worker SET lease_until = clock_timestamp() + %s * interval '1 second' WHERE id = %s
RETURNING (SELECT version FROM kling_version)
"""
LEFT = """
SELECT id FROM kling_worker WHERE account = %s AND lease_until < clock_timestamp() FOR UPDATE SKIP LOCKED
"""
"""The workers that are gone."""
_RELEASED = " ".join(f"WHEN {quoted([before])} THEN {quoted([after])}" for before, after in RELEASED.items())
_FREE = f"""
freed AS (
  UPDATE kling_job SET worker_id = NULL, slot = state IN ({quoted(OPEN)}),
    state = CASE state {_RELEASED} ELSE state END,
    updated_at = CASE WHEN state = 'intent' THEN extract(epoch FROM clock_timestamp()) ELSE updated_at END,
    error = CASE state WHEN 'intent' THEN 'its worker ended while it was being submitted' ELSE error END
  WHERE """
_FREED = """ RETURNING id, state, updated_at, attempt, error)
INSERT INTO kling_step(job, state, at, attempt, error, worker)
SELECT id, state, updated_at, attempt, error, %(worker)s FROM freed WHERE state = 'uncertain'
"""
FREE = (
    "WITH gone AS (DELETE FROM kling_worker WHERE id = ANY(%(workers)s)),"
    + _FREE
    + "worker_id = ANY(%(workers)s)"
    + _FREED
)
"""The jobs of workers that are gone: what was not sent is free, what may have been sent is in doubt."""
OWNED = "SELECT id FROM kling_job WHERE worker_id = %s"
FREE_STRAYS = "WITH" + _FREE + "id = ANY(%(ids)s) AND worker_id = %(owner)s" + _FREED
"""Jobs that a worker owns and does not know of."""

GATE = "SELECT pg_advisory_xact_lock(hashtextextended('kling_async ' || %s, 0))"
"""One at a time. A statement of its own: the snapshot of one that waits in it would be older than the wait."""
_ROOM = f"""
WITH held AS MATERIALIZED (
  SELECT count(*) FILTER (WHERE (state <> 'uncertain' AND worker_id IS NOT NULL)
      OR started_at > statement_timestamp() - %(runs)s * interval '1 second') AS taken,
    count(*) FILTER (WHERE state IN ({quoted(WAITING)})) AS starting
  FROM kling_job WHERE account = %(account)s AND slot),
started AS MATERIALIZED (
  SELECT count(*) AS starts FROM kling_job
  WHERE account = %(account)s AND started_at > statement_timestamp() - %(per)s * interval '1 second'
  AND NOT (slot AND state IN ({quoted(WAITING)}))),
room AS MATERIALIZED (
  SELECT greatest(0, least(%(limit)s, %(in_flight)s - taken, %(starts)s - starting - starts)) AS n FROM held, started)
"""
"""How many jobs the account lets start now: running ones, those of the window, and those about to start count."""
ROOM = _ROOM + "SELECT n FROM room"
# `= ANY(ARRAY(...))`: written as a join with a computed LIMIT, the planner reads the whole table.
CLAIM = (
    _ROOM
    + f"""
UPDATE kling_job AS j SET state = 'claimed', worker_id = %(owner)s, slot = true, cost = NULL
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND state = 'pending' AND worker_id IS NULL AND due_at <= statement_timestamp()
  ORDER BY due_at, id LIMIT (SELECT n FROM room) FOR UPDATE SKIP LOCKED))
RETURNING {LINE}
"""
)
"""Jobs that may start now, for a worker."""
ADOPT = f"""
UPDATE kling_job AS j SET worker_id = %(owner)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND slot AND worker_id IS NULL AND due_at <= statement_timestamp()
  ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING {LINE}
"""
"""Jobs that were left running or in doubt, for a worker."""
ADOPT_UNSAVED = f"""
UPDATE kling_job AS j SET worker_id = %(owner)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND state = 'completed' AND worker_id IS NULL AND due_at <= statement_timestamp()
  ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING {LINE}
"""
"""Jobs whose videos nobody has saved, for a worker that saves."""
_RETRIED = ", ".join(map(str, sorted(RETRYABLE_CODES)))
ADOPT_FAILED = f"""
UPDATE kling_job AS j SET worker_id = %(owner)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND state = 'failed' AND worker_id IS NULL AND code IN ({_RETRIED})
  AND failures <= %(failures)s AND due_at <= statement_timestamp()
  ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING {LINE}
"""
"""Jobs that the service failed by its own fault, for a worker that pays for them again."""
TAKE_OVER = f"""
UPDATE kling_job AS j SET worker_id = %(owner)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND slot AND worker_id IS NULL AND due_at <= statement_timestamp()
  AND state = ANY(%(states)s) AND batch = coalesce(%(batch)s, batch) FOR UPDATE SKIP LOCKED))
RETURNING {LINE}
"""
"""What was left in some states, all of it, for a session."""
ADMIT = """
UPDATE kling_job AS j SET slot = true, cost = coalesce(n.cost, j.cost)
FROM unnest(%s::bigint[], %s::numeric[]) AS n(id, cost) WHERE j.id = n.id AND j.worker_id = %s RETURNING j.id
"""
MONEY = f"""
SELECT coalesce(sum(coalesce(spent, 0) - coalesce(refunded, 0)), 0),
  coalesce(sum(cost) FILTER (WHERE slot AND state = 'uncertain'), 0),
  coalesce(sum(cost) FILTER (WHERE slot AND state IN ({quoted(WAITING)}, 'intent')), 0)
FROM kling_job WHERE account = %s AND (%s::text[] IS NULL OR batch = ANY(%s))
"""
"""USD that was spent, that may have been, and that is on its way. What is to start has its price in its line."""

KNOWN = """
SELECT prediction_id, fingerprint, model FROM kling_job WHERE account = %(account)s AND prediction_id = ANY(%(ids)s)
UNION ALL SELECT s.prediction_id, NULL, j.model FROM kling_step s JOIN kling_job j ON j.id = s.job
WHERE s.state = 'failed' AND s.prediction_id = ANY(%(ids)s) AND j.account = %(account)s
AND s.prediction_id IS DISTINCT FROM j.prediction_id
"""
"""Ids that a job has, or had before it was paid for again."""
CONTENT = "SELECT job, text, files FROM kling_content WHERE job = ANY(%s)"


TOLD = ENDED | {State.SUBMITTED}
"""States that others may wait for."""


@attrs.frozen
class Line:
    """A job's line: its row, and what workers agree on by.

    Attributes:
        id: The line's number.
        owner: The worker that has it in hand, if one has.
        slot: Whether it takes one of the account's slots.
        row: The job.
        wait: Seconds until workers may take it again; only in what is to be written.
    """

    id: int
    owner: str | None
    slot: bool
    row: Row
    wait: float = 0.0


def line_of(values: Sequence[Any]) -> Line:
    """A line as it was read, with the job's content when that was selected too."""
    id_, owner, slot, *fields = values
    named: dict[str, Any] = dict(zip(_WITH_CONTENT, fields, strict=False))
    return Line(id_, owner, slot, Row(**restore(named)))


def written(lines: Iterable[tuple[Line, Line]]) -> dict[str, list[Any]]:
    """The parameters of `WRITE`, of lines as they were and as they are to be."""
    given: dict[str, list[Any]] = {
        name: [] for name in ("id", "was_owner", "was_attempt", "was_state", "owner", "slot", "wait", *_TYPES)
    }
    for was, line in lines:
        given["id"].append(line.id)
        given["was_owner"].append(was.owner)
        given["was_attempt"].append(was.row.attempt)
        given["was_state"].append(was.row.state.value)
        given["owner"].append(line.owner)
        given["slot"].append(line.slot)
        given["wait"].append(line.wait)
        for name in _TYPES:
            given[name].append(stored(name, getattr(line.row, name)))
    return given


def columns(new: dict[tuple[str, str], tuple[Content, str, float]]) -> dict[str, list[Any]]:
    """The parameters of `INSERT`, of jobs with their content, model and time."""
    return {
        "batch": [batch for batch, _ in new],
        "key": [key for _, key in new],
        "digest": [content.digest for content, _, _ in new.values()],
        "model": [model for _, model, _ in new.values()],
        "at": [at for _, _, at in new.values()],
        "text": [content.text for content, _, _ in new.values()],
        "files": [content.files for content, _, _ in new.values()],
    }


def keeps_slot(line: Line, state: State) -> bool:
    """Whether a job takes a slot in its new state: what may run does, and what was just refused keeps it.

    What was in doubt for long had lost its slot, and asks for one again.
    """
    return state.open or (line.slot and state.waiting and line.row.state is not State.UNCERTAIN)


TALLY = """
SELECT batch, state, count(*), sum(coalesce(spent, 0) - coalesce(refunded, 0)) FROM kling_job WHERE account = %s
GROUP BY batch, state
"""
WORKERS = """
SELECT w.name, extract(epoch FROM w.lease_until - clock_timestamp())::float8, count(j.id)
FROM kling_worker w LEFT JOIN kling_job j ON j.worker_id = w.id
WHERE w.account = %s AND w.id <> %s GROUP BY w.id ORDER BY w.since
"""
