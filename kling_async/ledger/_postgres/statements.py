"""Statements of the shared ledger, and lines of its table of jobs."""

# The statements are put together of names of our own.
# ruff: noqa: S608

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.prediction import RETRYABLE_CODES
from kling_async._core.states import (
    ACCEPTED,
    ENDED,
    OF_ATTEMPT,
    OF_REUSE,
    OPEN,
    PAID,
    RELEASED,
    SENDABLE,
    UNSENT,
    WITH_VIDEO,
    WITHOUT_VIDEO,
    Row,
    State,
)
from kling_async.ledger._columns import quoted, restore, stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kling_async._core.content import Content
    from kling_async._core.seen import Seen

_TYPES: dict[str, str] = {
    "state": "text",
    "updated_at": "float8",
    "attempt": "bigint",
    "fingerprint": "text",
    "token_hash": "text",
    "intent_at": "float8",
    "submitted_at": "float8",
    "prediction_id": "text",
    "reused": "text",
    "cost": "numeric",
    "spent": "numeric",
    "refunded": "numeric",
    "failures": "bigint",
    "output": "text",
    "code": "bigint",
    "error": "text",
    "doubt": "text",
    "candidates": "text",
    "sender": "text",
    "path": "text",
    "bytes": "bigint",
    "sha256": "text",
}
"""Columns of a row that change, with their types."""
_FIXED = ("batch", "key", "digest", "model", "seen", "caller", "priority")
_FIELDS = (*_FIXED, *_TYPES)
_WITH_CONTENT = (*_FIELDS, "job", "files", "labels", "frames")


_LINE = ", ".join(f"j.{name}" for name in ("id", "worker_id", "slot", *_FIELDS))
"""Columns of a line."""

INSERT = """
WITH given AS (
  SELECT * FROM unnest(%(batch)s::text[], %(key)s::text[], %(digest)s::text[], %(model)s::text[], %(at)s::float8[],
    %(text)s::text[], %(files)s::text[], %(labels)s::text[], %(frames)s::text[], %(caller)s::text[],
    %(priority)s::integer[])
    AS g(batch, key, digest, model, at, text, files, labels, frames, caller, priority)),
made AS (
  INSERT INTO kling_job(account, batch, key, digest, model, state, updated_at, worker_id, seen, caller, priority)
  SELECT %(account)s, batch, key, digest, model, 'pending', at, %(worker_id)s, %(seen)s, caller, priority FROM given
  ON CONFLICT (account, batch, key) DO NOTHING RETURNING id, batch, key),
put AS (
  INSERT INTO kling_content(job, text, files, labels, frames)
  SELECT made.id, text, files, labels, frames FROM made JOIN given USING (batch, key)),
noted AS (
  INSERT INTO kling_step(job, state, at, attempt, worker)
  SELECT made.id, 'pending', at, 0, '' FROM made JOIN given USING (batch, key))
SELECT id, batch, key FROM made
"""
"""Insert new jobs and return them; existing ones are not changed."""

_HAS_VIDEO = (
    f"(p.state IN ({quoted(WITH_VIDEO)}) "
    f"OR p.state = '{State.REUSED.value}' AND coalesce(p.output, p.path) IS NOT NULL)"
)
"""`Row.has_video` of the job p."""
_IS_OVER = f"(p.worker_id IS NULL AND p.state IN ({quoted(WITHOUT_VIDEO)}))"
UNLINK = "DELETE FROM kling_parent WHERE job = ANY(%s)"
LOCK_PARENTS = """
SELECT p.id FROM kling_job p
WHERE p.account = %(account)s AND (p.batch, p.key) IN (
  SELECT * FROM unnest(%(batches)s::text[], %(parents)s::text[]))
ORDER BY p.id FOR SHARE OF p
"""
"""Lock the parents of jobs: their ends are recorded before their children are linked to them, or after."""
LINK = """
INSERT INTO kling_parent(job, parent)
SELECT g.id, p.id FROM unnest(%(ids)s::bigint[], %(batches)s::text[], %(parents)s::text[]) AS g(id, batch, parent)
JOIN kling_job p ON p.account = %(account)s AND p.batch = g.batch AND p.key = g.parent
ON CONFLICT DO NOTHING
"""
RELINK = f"""
UPDATE kling_parent o SET parent = %(new)s FROM kling_job c
WHERE o.parent = %(old)s AND c.id = o.job AND c.state IN ({quoted(SENDABLE)}) RETURNING c.id
"""
"""Link jobs that are yet to be sent to another parent; those that were sent stay with the one they begin with."""
HOLD = f"""
UPDATE kling_job c SET due_at = 'infinity' WHERE c.id = ANY(%(ids)s) AND EXISTS (
  SELECT FROM kling_parent o JOIN kling_job p ON p.id = o.parent WHERE o.job = c.id AND NOT {_HAS_VIDEO})
"""
"""Let no worker claim jobs whose parents have no videos yet: by their time, so that claims read nothing more."""
LOCK_CHILDREN = """
SELECT c.id FROM kling_job c
WHERE c.id IN (SELECT job FROM kling_parent WHERE parent = ANY(%s)) AND c.due_at = 'infinity'
ORDER BY c.id FOR UPDATE
"""
"""Lock what continues jobs, so that of two parents that end at the same moment the second one sees the first."""
WAKE = f"""
WITH ready AS (
  SELECT c.id, c.state FROM kling_job c
  WHERE c.id IN (SELECT job FROM kling_parent WHERE parent = ANY(%(ids)s)) AND c.due_at = 'infinity'
  AND NOT EXISTS (
    SELECT FROM kling_parent o JOIN kling_job p ON p.id = o.parent WHERE o.job = c.id AND NOT {_HAS_VIDEO})
  FOR UPDATE),
woken AS (
  UPDATE kling_job c SET
    due_at = least(clock_timestamp(), (
      SELECT min(p.due_at) FROM kling_parent o JOIN kling_job p ON p.id = o.parent WHERE o.job = c.id)),
    state = CASE WHEN ready.state = 'skipped' AND c.worker_id IS NULL THEN 'pending' ELSE c.state END,
    updated_at = CASE WHEN ready.state = 'skipped' AND c.worker_id IS NULL
      THEN extract(epoch FROM clock_timestamp()) ELSE c.updated_at END,
    error = CASE WHEN ready.state = 'skipped' AND c.worker_id IS NULL THEN NULL ELSE c.error END
  FROM ready WHERE c.id = ready.id RETURNING c.id, c.state, c.updated_at, c.attempt, ready.state AS was)
INSERT INTO kling_step(job, state, at, attempt, worker)
SELECT id, state, updated_at, attempt, %(worker)s FROM woken WHERE state <> was
"""
"""Let workers claim the jobs all of whose parents have videos now: before films that were added later, as they are due
since their films began."""
SKIP = f"""
WITH RECURSIVE below AS (
  SELECT o.job, o.parent FROM kling_parent o JOIN kling_job p ON p.id = o.parent
  WHERE o.parent = ANY(%(ids)s) AND {_IS_OVER}
  UNION SELECT o.job, o.parent FROM kling_parent o JOIN below ON o.parent = below.job),
first AS (SELECT DISTINCT ON (job) job, parent FROM below),
skipped AS (
  UPDATE kling_job c SET state = 'skipped', updated_at = extract(epoch FROM clock_timestamp()),
    error = concat('never submitted: it continues the job ', quote_literal(p.key), ', which has no video')
  FROM first JOIN kling_job p ON p.id = first.parent
  WHERE c.id = first.job AND c.state = 'pending' AND c.worker_id IS NULL AND c.due_at = 'infinity'
  RETURNING c.id, c.state, c.updated_at, c.attempt, c.error)
INSERT INTO kling_step(job, state, at, attempt, error, worker)
SELECT id, state, updated_at, attempt, error, %(worker)s FROM skipped
"""
"""Skip what continues jobs that have ended without a video. It stays due at infinity, and is woken by a video."""
OVER = f"""
SELECT DISTINCT o.parent FROM kling_parent o JOIN kling_job p ON p.id = o.parent
JOIN kling_job c ON c.id = o.job AND c.state = 'pending' AND c.due_at = 'infinity'
WHERE p.account = %s AND {_IS_OVER}
"""
"""Jobs without videos whose children still wait, after their worker has died."""

IDENTITY = "SELECT identity, ignored FROM kling_batch WHERE account = %s AND batch = %s"
BEGIN_BATCH = """
INSERT INTO kling_batch(account, batch, identity, ignored) VALUES (%s, %s, %s, %s)
ON CONFLICT (account, batch) DO UPDATE SET identity = kling_batch.identity RETURNING identity, ignored
"""
"""Record the identity of a new batch; return that of the worker that was first."""
IGNORED = "SELECT DISTINCT ignored FROM kling_batch WHERE account = %s AND ignored IS NOT NULL"
"""The sets of parameters that batches ignore."""

CONFLICTS = """
SELECT g.key FROM unnest(%(batch)s::text[], %(key)s::text[], %(digest)s::text[]) AS g(batch, key, digest)
JOIN kling_job j ON j.account = %(account)s AND j.batch = g.batch AND j.key = g.key WHERE j.digest <> g.digest LIMIT 1
"""
"""A key that names a job with other content."""

RENEW_TEXTS = f"""
UPDATE kling_content c SET text = g.text
FROM unnest(%(batch)s::text[], %(key)s::text[], %(digest)s::text[], %(text)s::text[]) AS g(batch, key, digest, text)
JOIN kling_job j ON j.account = %(account)s AND j.batch = g.batch AND j.key = g.key AND j.digest = g.digest
WHERE c.job = j.id AND c.text <> g.text AND j.state NOT IN ({quoted(ACCEPTED)})
"""
"""Replace the texts of jobs that were not accepted by others of equal jobs, whose signatures are newer."""
RENEW_LABELS = """
UPDATE kling_content c SET labels = g.labels
FROM unnest(%(batch)s::text[], %(key)s::text[], %(digest)s::text[], %(labels)s::text[])
  AS g(batch, key, digest, labels)
JOIN kling_job j ON j.account = %(account)s AND j.batch = g.batch AND j.key = g.key AND j.digest = g.digest
WHERE c.job = j.id AND g.labels IS NOT NULL AND c.labels IS DISTINCT FROM g.labels
"""
"""Replace the callers' own values of jobs by the latest."""
RENEW_CALLERS = """
UPDATE kling_job j SET
  caller = CASE WHEN j.spent IS NULL AND g.caller <> '' THEN g.caller ELSE j.caller END,
  priority = coalesce(nullif(g.priority, 0), j.priority)
FROM unnest(%(batch)s::text[], %(key)s::text[], %(digest)s::text[], %(caller)s::text[], %(priority)s::integer[])
  AS g(batch, key, digest, caller, priority)
WHERE j.account = %(account)s AND j.batch = g.batch AND j.key = g.key AND j.digest = g.digest
AND (g.caller <> '' OR g.priority <> 0) AND (j.caller, j.priority) <> (g.caller, g.priority)
"""
"""Replace callers and priorities of jobs by the latest that were given; who has paid stays."""

LOCK_LINES = f"""
SELECT {_LINE} FROM unnest(%s::text[], %s::text[]) AS g(batch, key)
JOIN kling_job j ON j.account = %s AND j.batch = g.batch AND j.key = g.key ORDER BY j.id FOR UPDATE OF j
"""
"""Lines by their names, locked."""
SELECT = f"SELECT {_LINE} FROM kling_job j WHERE account = %s AND "
LOCK_CONTENTS = """
SELECT pg_advisory_xact_lock(id) FROM (
  SELECT DISTINCT hashtextextended('kling_async ' || %s || ' ' || digest, 0) AS id FROM unnest(%s::text[]) AS d(digest)
  ORDER BY id) AS locks
"""
"""Lock contents of an account, until the transaction ends."""
PAID_ELSEWHERE = f"""
SELECT {_LINE} FROM kling_job j
WHERE account = %(account)s AND digest = ANY(%(digests)s) AND (intent_at IS NOT NULL OR cleared)
AND batch <> %(batch)s AND (%(any_key)s OR key = %(key)s)
AND (state IN ({quoted(PAID)}) OR (cleared AND state IN ({quoted(SENDABLE)})))
"""
"""Lines of other batches that are paid for, or may be, or that a worker is about to send."""
PAID_AMONG = f"""
SELECT g.key, min(j.batch)
FROM unnest(%(keys)s::text[], %(digests)s::text[], %(any_key)s::bool[]) AS g(key, digest, any_key)
JOIN kling_job j ON j.account = %(account)s AND j.digest = g.digest AND (j.intent_at IS NOT NULL OR j.cleared)
  AND j.batch <> %(batch)s AND (g.any_key OR j.key = g.key) AND j.state IN ({quoted(PAID)})
WHERE NOT EXISTS (
  SELECT FROM kling_job own WHERE own.account = %(account)s AND own.batch = %(batch)s AND own.key = g.key
  AND own.state NOT IN ({quoted(UNSENT)}))
GROUP BY g.key
"""
"""Keys of those jobs that are not sent and that other batches have paid for, each with such a batch."""
CLEAR = "UPDATE kling_job SET cleared = true WHERE account = %s AND batch = %s AND key = %s AND worker_id = %s"
SPENT = """
SELECT sum(coalesce(spent, 0) - coalesce(refunded, 0)) FROM kling_job
WHERE account = %s AND batch = coalesce(%s, batch) AND caller = coalesce(%s, caller)
"""
UPLOAD = "SELECT url FROM kling_upload WHERE account = %s AND digest = %s AND expires_at > %s"
SENDERS = "SELECT id, provider, origin, salt, same_as FROM kling_sender WHERE account = %s"
PUT_SENDER = """
INSERT INTO kling_sender(account, id, provider, origin, salt, same_as) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (account, id) DO UPDATE SET same_as = excluded.same_as
"""
MARKS = "SELECT prediction_id, mark, at FROM kling_mark WHERE account = %s"
PUT_MARK = """
INSERT INTO kling_mark VALUES (%s, %s, %s, %s)
ON CONFLICT (account, prediction_id) DO UPDATE SET mark = excluded.mark, at = excluded.at
"""
REMOVE_MARK = "DELETE FROM kling_mark WHERE account = %s AND prediction_id = %s"
KEYS_BELOW = "SELECT key FROM kling_job WHERE account = %s AND batch = %s AND starts_with(key, %s)"
RENAME = "UPDATE kling_job SET key = %s WHERE id = %s"
_OF_PREDICTION = tuple(
    name for name in ("fingerprint", "intent_at", "doubt", "candidates", *OF_ATTEMPT, *OF_REUSE) if name in _TYPES
)
NEW_CONTENT = f"""
WITH renewed AS (
  UPDATE kling_job SET digest = %(digest)s, model = %(model)s, state = 'pending', updated_at = %(at)s,
    {", ".join(f"{name} = NULL" for name in dict.fromkeys(_OF_PREDICTION))}, slot = false, cleared = false,
    caller = %(caller)s, priority = %(priority)s, due_at = clock_timestamp()
  WHERE id = %(id)s RETURNING id, attempt),
put AS (UPDATE kling_content SET text = %(text)s, files = %(files)s, labels = %(labels)s,
    frames = %(frames)s WHERE job = %(id)s)
INSERT INTO kling_step(job, state, at, attempt, worker) SELECT id, 'pending', %(at)s, attempt, '' FROM renewed
"""
"""Give a job other content; what it has cost and how often it was sent stay."""
PUT_UPLOAD = """
INSERT INTO kling_upload VALUES (%s, %s, %s, %s)
ON CONFLICT (account, digest) DO UPDATE SET url = excluded.url, expires_at = excluded.expires_at
"""
KEYS = """
SELECT key FROM kling_job WHERE account = %s AND batch = %s AND state = ANY(%s)
ORDER BY submitted_at NULLS LAST, updated_at, id
"""
_SELECT_WITH_CONTENT = (
    f"SELECT {_LINE}, c.text, c.files, c.labels, c.frames FROM kling_job j LEFT JOIN kling_content c ON c.job = j.id "
)
FIND = _SELECT_WITH_CONTENT + "WHERE j.account = %s AND j.batch = %s AND j.key = %s"
READ_ROWS = f"""
{_SELECT_WITH_CONTENT}
WHERE j.account = %s AND j.batch = coalesce(%s, j.batch) AND j.state = ANY(%s) ORDER BY j.updated_at, j.id
"""
HAVE_LABELS = "c.labels IS NOT NULL AND position('\\u0000' IN c.labels) = 0"
"""Condition of the index `kling_content_labels`: jsonb cannot hold NUL."""
# OFFSET: a fence, without which the planner reads all jobs in their order until enough have the labels.
_SELECT_LABELLED = f"""
SELECT {_LINE}, c.text, c.files, c.labels, c.frames FROM (
  SELECT * FROM kling_content c
  WHERE {HAVE_LABELS} AND (c.labels::jsonb @> %(first)s::jsonb OR c.labels::jsonb @> %(also)s::jsonb)
  AND NOT EXISTS (
    SELECT FROM unnest(%(names)s::text[], %(values)s::text[]) AS w(name, value)
    WHERE (c.labels::jsonb ->> w.name) IS DISTINCT FROM w.value) OFFSET 0) AS c
JOIN kling_job j ON j.id = c.job
"""
"""Jobs with labels; by the first of these, as a text and as JSON, they are found in an index."""
READ_LABELLED = f"""
{_SELECT_LABELLED}
WHERE j.account = %(account)s AND j.batch = coalesce(%(batch)s, j.batch) AND j.state = ANY(%(states)s)
ORDER BY j.updated_at, j.id
"""
_PAGE = """
WHERE j.account = %(account)s AND j.batch = %(batch)s AND j.key COLLATE "C" > %(after)s
AND (%(before)s::text IS NULL OR j.key COLLATE "C" < %(before)s) ORDER BY j.key COLLATE "C" LIMIT %(limit)s
"""
READ_PAGE = _SELECT_WITH_CONTENT + _PAGE
READ_LABELLED_PAGE = _SELECT_LABELLED + _PAGE
BATCHES = "SELECT DISTINCT batch FROM kling_job WHERE account = %s"
ORDER = "SELECT key FROM kling_job WHERE account = %s AND batch = %s ORDER BY id"
READ_STEPS = """
SELECT j.batch, j.key, s.state, s.at, s.attempt, s.prediction_id, s.error
FROM kling_step s JOIN kling_job j ON j.id = s.job
WHERE j.account = %s AND j.batch = coalesce(%s, j.batch) AND j.key = coalesce(%s, j.key) ORDER BY s.job, s.id
"""

_ARRAYS = ", ".join(f"%({name})s::{kind}[]" for name, kind in _TYPES.items())
_NAMES = ", ".join(_TYPES)
_SET = ", ".join(f"{name} = n.{name}" for name in _TYPES)

WRITE = f"""
UPDATE kling_job AS j SET {_SET}, worker_id = n.worker, slot = n.slot,
  cleared = j.cleared AND n.worker IS NOT NULL,
  started_at = CASE WHEN n.state = 'intent' AND j.state <> 'intent' THEN clock_timestamp() ELSE j.started_at END,
  due_at = CASE WHEN n.state = 'intent' AND j.due_at = 'infinity' THEN clock_timestamp()
    WHEN n.wait > 0 AND j.due_at < 'infinity' THEN clock_timestamp() + n.wait * interval '1 second'
    ELSE j.due_at END
FROM unnest(%(id)s::bigint[], %(was_worker)s::text[], %(was_attempt)s::bigint[], %(was_state)s::text[],
  %(worker)s::text[], %(slot)s::bool[], %(wait)s::float8[], {_ARRAYS})
  AS n(id, was_worker, was_attempt, was_state, worker, slot, wait, {_NAMES})
WHERE j.id = n.id AND j.worker_id IS NOT DISTINCT FROM n.was_worker
AND ((j.attempt, j.state) = (n.was_attempt, n.was_state)
  OR (j.attempt, j.state, j.prediction_id) IS NOT DISTINCT FROM (n.attempt, n.state, n.prediction_id))
RETURNING j.id
"""
"""Write lines and return their ids; fenced: a line that another worker has claimed, or at another attempt, is skipped.

A line that is already as it is to be is returned too: the answer to an earlier commit was lost.
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
"""Version of the tables, and whether a worker's lease runs; others cannot claim its jobs until the transaction ends."""
RENEW = "UPDATE kling_worker SET lease_until = clock_timestamp() + %s * interval '1 second' WHERE id = %s RETURNING id"
EXPIRED_WORKERS = """
SELECT id FROM kling_worker WHERE account = %s AND lease_until < clock_timestamp() FOR UPDATE SKIP LOCKED
"""
_RELEASED_STATES = " ".join(f"WHEN {quoted([before])} THEN {quoted([after])}" for before, after in RELEASED.items())
_RELEASE = f"""
released AS (
  UPDATE kling_job SET worker_id = NULL, cleared = false, slot = state IN ({quoted(OPEN)}),
    state = CASE state {_RELEASED_STATES} ELSE state END,
    updated_at = CASE WHEN state = 'intent' THEN extract(epoch FROM clock_timestamp()) ELSE updated_at END,
    error = CASE state WHEN 'intent' THEN 'its worker ended while it was being submitted' ELSE error END
  WHERE """
_RELEASED_STEPS = """ RETURNING id, state, updated_at, attempt, error)
INSERT INTO kling_step(job, state, at, attempt, error, worker)
SELECT id, state, updated_at, attempt, error, %(worker)s FROM released WHERE state = 'uncertain'
"""
RELEASE = (
    "WITH ended AS (DELETE FROM kling_worker WHERE id = ANY(%(workers)s)),"
    + _RELEASE
    + "worker_id = ANY(%(workers)s)"
    + _RELEASED_STEPS
)
"""Release the jobs of workers, and end their leases. A job that may have been sent is in doubt."""
OWNED = "SELECT id FROM kling_job WHERE worker_id = %s"
RELEASE_STRAYS = "WITH" + _RELEASE + "id = ANY(%(ids)s) AND worker_id = %(worker_id)s" + _RELEASED_STEPS
"""Release jobs that a worker owns without knowing: the answer to its claim was lost."""

LOCK_ACCOUNT = "SELECT pg_advisory_xact_lock(hashtextextended('kling_async ' || %s, 0))"
"""Lock an account's slots. Not part of other statements, as these would count by a snapshot from before the wait."""
_FREE_SLOTS = f"""
WITH held AS MATERIALIZED (
  SELECT count(*) FILTER (WHERE (state <> 'uncertain' AND worker_id IS NOT NULL)
      OR started_at > statement_timestamp() - %(runs)s * interval '1 second') AS taken,
    count(*) FILTER (WHERE state IN ({quoted(SENDABLE)})) AS starting
  FROM kling_job WHERE account = %(account)s AND slot),
started AS MATERIALIZED (
  SELECT count(*) AS starts FROM kling_job
  WHERE account = %(account)s AND started_at > statement_timestamp() - %(per)s * interval '1 second'
  AND NOT (slot AND state IN ({quoted(SENDABLE)}))),
room AS MATERIALIZED (
  SELECT greatest(0, least(%(limit)s, %(in_flight)s - taken, %(starts)s - starting - starts)) AS n FROM held, started)
"""
"""Number of jobs that may start now: running jobs, starts within the window, and jobs about to start count."""
FREE_SLOTS = _FREE_SLOTS + "SELECT n FROM room"
_CLAIMABLE = "account = %(account)s AND state = 'pending' AND worker_id IS NULL AND due_at < 'infinity'"
"""Condition of the index `kling_job_ready`."""
# From one caller to the next in the index: how many jobs each has makes no difference. The order in `ready` is that of
# the index, which the planner would leave for a scan of the table.
WAITING = f"""
WITH RECURSIVE callers(caller) AS (
  (SELECT caller FROM kling_job WHERE {_CLAIMABLE} ORDER BY caller LIMIT 1)
  UNION ALL
  SELECT (SELECT j.caller FROM kling_job j WHERE {_CLAIMABLE} AND j.caller > c.caller ORDER BY j.caller LIMIT 1)
  FROM callers c WHERE c.caller IS NOT NULL)
SELECT c.caller, t.start, ready.number, held.number
FROM callers c LEFT JOIN kling_caller t ON t.account = %(account)s AND t.caller = c.caller
CROSS JOIN LATERAL (
  SELECT count(*) AS number FROM (
    SELECT FROM kling_job j
    WHERE {_CLAIMABLE} AND j.caller = c.caller AND j.due_at <= statement_timestamp()
    ORDER BY j.priority DESC, j.due_at, j.id LIMIT %(limit)s) AS first) AS ready
CROSS JOIN LATERAL (
  SELECT count(*) AS number FROM kling_job j WHERE j.account = %(account)s AND j.slot AND j.caller = c.caller) AS held
WHERE c.caller IS NOT NULL
"""
"""Callers whose jobs wait: the start of their next turn, their jobs that are due (up to a limit), and their slots."""
VIRTUAL_TIME = "SELECT coalesce((SELECT virtual FROM kling_turn WHERE account = %s), 0)"
# `= ANY(ARRAY(...))`: written as a join with a computed LIMIT, the planner reads the whole table.
CLAIM = f"""
WITH shares AS (SELECT * FROM unnest(%(callers)s::text[], %(numbers)s::bigint[], %(started)s::float8[])
  AS s(caller, number, start)),
turns AS (
  INSERT INTO kling_caller(account, caller, start) SELECT %(account)s, caller, start FROM shares
  ON CONFLICT (account, caller) DO UPDATE SET start = excluded.start),
turn AS (
  INSERT INTO kling_turn(account, virtual) VALUES (%(account)s, %(virtual)s)
  ON CONFLICT (account) DO UPDATE SET virtual = excluded.virtual)
UPDATE kling_job AS j SET state = 'claimed', worker_id = %(worker_id)s, slot = true, cost = NULL
WHERE j.id = ANY(ARRAY(
  SELECT first.id FROM shares s CROSS JOIN LATERAL (
    SELECT id FROM kling_job j
    WHERE {_CLAIMABLE} AND j.caller = s.caller AND j.due_at <= statement_timestamp()
    ORDER BY j.priority DESC, j.due_at, j.id LIMIT s.number FOR UPDATE SKIP LOCKED) AS first))
RETURNING {_LINE}
"""
"""Claim so many jobs of each caller, those of the highest priority first, and record the turns that were taken."""
CLAIM_OPEN = f"""
UPDATE kling_job AS j SET worker_id = %(worker_id)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND slot AND worker_id IS NULL AND due_at <= statement_timestamp()
  AND (sender IS NULL OR sender = ANY(%(senders)s))
  ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING {_LINE}
"""
"""Claim unowned jobs that are running or in doubt, of these senders or of none that is known."""
CLAIM_UNSAVED = f"""
UPDATE kling_job AS j SET worker_id = %(worker_id)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND state = 'completed' AND worker_id IS NULL AND due_at <= statement_timestamp()
  ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING {_LINE}
"""
"""Claim unowned jobs whose videos are not saved."""
_RETRIED = ", ".join(map(str, sorted(RETRYABLE_CODES)))
CLAIM_FAILED = f"""
UPDATE kling_job AS j SET worker_id = %(worker_id)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND state = 'failed' AND worker_id IS NULL AND code IN ({_RETRIED})
  AND failures <= %(failures)s AND due_at <= statement_timestamp()
  ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING {_LINE}
"""
"""Claim unowned jobs that the service failed by its own fault."""
CLAIM_UNOWNED = f"""
UPDATE kling_job AS j SET worker_id = %(worker_id)s
WHERE j.id = ANY(ARRAY(
  SELECT id FROM kling_job
  WHERE account = %(account)s AND slot AND worker_id IS NULL AND due_at <= statement_timestamp()
  AND state = ANY(%(states)s) AND (sender IS NULL OR sender = ANY(%(senders)s)) FOR UPDATE SKIP LOCKED))
RETURNING {_LINE}
"""
"""Claim all unowned jobs in some states, of these senders or of none that is known."""
GIVE_SLOTS = """
UPDATE kling_job AS j SET slot = true, cost = coalesce(n.cost, j.cost)
FROM unnest(%s::bigint[], %s::numeric[]) AS n(id, cost) WHERE j.id = n.id AND j.worker_id = %s RETURNING j.id
"""
MONEY = f"""
SELECT coalesce(sum(coalesce(spent, 0) - coalesce(refunded, 0)), 0),
  coalesce(sum(cost) FILTER (WHERE slot AND state = 'uncertain'), 0),
  coalesce(sum(cost) FILTER (WHERE slot AND state IN ({quoted(SENDABLE | {State.INTENT})})), 0)
FROM kling_job
WHERE account = %(account)s AND (%(batches)s::text[] IS NULL OR batch = ANY(%(batches)s))
AND caller = coalesce(%(caller)s, caller)
"""
"""USD that was spent, may have been spent, and is reserved. A job that is to start has its price in its line."""

KNOWN = """
SELECT prediction_id, fingerprint, model, sender FROM kling_job
WHERE account = %(account)s AND prediction_id = ANY(%(ids)s)
UNION ALL SELECT s.prediction_id, NULL, j.model, NULL FROM kling_step s JOIN kling_job j ON j.id = s.job
WHERE s.state = 'failed' AND s.prediction_id = ANY(%(ids)s) AND j.account = %(account)s
AND s.prediction_id IS DISTINCT FROM j.prediction_id
"""
"""Those of the ids that a job has, or had in an earlier attempt."""
CONTENT = "SELECT job, text, files, labels, frames FROM kling_content WHERE job = ANY(%s)"


def is_over(line: Line) -> bool:
    """Return whether a job has ended without a video, and no worker is about to try it again."""
    return line.worker_id is None and line.row.state in WITHOUT_VIDEO


NOTIFIED = ENDED | {State.SUBMITTED}
"""States that other workers may wait for."""


@attrs.frozen
class Line:
    """A line of `kling_job`.

    Attributes:
        id: Its number.
        worker_id: Worker that has claimed it; None when it is unowned.
        slot: True when it occupies one of the account's slots.
        row: The job.
        wait: Seconds until workers may claim it; only in lines that are to be written.
    """

    id: int
    worker_id: str | None
    slot: bool
    row: Row
    wait: float = 0.0

    @property
    def name(self) -> tuple[str, str]:
        """Batch and key of the job."""
        return self.row.batch, self.row.key


def line_of(values: Sequence[Any]) -> Line:
    """Return a line as it was read, with the job's content when that was selected too."""
    id_, worker_id, slot, *fields = values
    named: dict[str, Any] = dict(zip(_WITH_CONTENT, fields, strict=False))
    return Line(id_, worker_id, slot, Row(**restore(named)))


def written_values(lines: Iterable[tuple[Line, Line]]) -> dict[str, list[Any]]:
    """Return the parameters of `WRITE`, from lines as they were and as they are to be."""
    given: dict[str, list[Any]] = {
        name: [] for name in ("id", "was_worker", "was_attempt", "was_state", "worker", "slot", "wait", *_TYPES)
    }
    for was, line in lines:
        given["id"].append(line.id)
        given["was_worker"].append(was.worker_id)
        given["was_attempt"].append(was.row.attempt)
        given["was_state"].append(was.row.state.value)
        given["worker"].append(line.worker_id)
        given["slot"].append(line.slot)
        given["wait"].append(line.wait)
        for name in _TYPES:
            given[name].append(stored(name, getattr(line.row, name)))
    return given


def inserted_values(new: dict[tuple[str, str], tuple[Content, str, float]], seen: Seen | None = None) -> dict[str, Any]:
    """Return the parameters of `INSERT`, from jobs with their content, model and time, and their common setting."""
    return {
        "seen": seen,
        "batch": [batch for batch, _ in new],
        "key": [key for _, key in new],
        "digest": [content.digest for content, _, _ in new.values()],
        "model": [model for _, model, _ in new.values()],
        "at": [at for _, _, at in new.values()],
        "text": [content.text for content, _, _ in new.values()],
        "files": [content.files for content, _, _ in new.values()],
        "labels": [content.labels for content, _, _ in new.values()],
        "frames": [content.frames for content, _, _ in new.values()],
        "caller": [content.caller for content, _, _ in new.values()],
        "priority": [content.priority for content, _, _ in new.values()],
    }


def label_values(labels: Mapping[str, str]) -> dict[str, object]:
    """Return the parameters of statements for jobs with labels; empty without any."""
    if not labels:
        return {}
    name, value = next(iter(labels.items()))
    try:
        other = json.loads(value)
    except ValueError:
        other = value
    return {
        "names": [*labels],
        "values": [*labels.values()],
        "first": json.dumps({name: value}),
        "also": json.dumps({name: other if isinstance(other, (int, float)) else value}),
    }


def keeps_slot(line: Line, state: State) -> bool:
    """Return whether a job occupies a slot in its new state: one that may run does, and one just refused keeps it.

    A job that was in doubt may have lost its slot by its age, and has to get one again.
    """
    return state.open or (line.slot and state.waiting and line.row.state is not State.UNCERTAIN)


WORKERS = """
SELECT w.name, extract(epoch FROM w.lease_until - clock_timestamp())::float8, count(j.id)
FROM kling_worker w LEFT JOIN kling_job j ON j.worker_id = w.id
WHERE w.account = %s AND w.lease_until > clock_timestamp() GROUP BY w.id ORDER BY w.since
"""
"""Name, seconds of lease, and number of jobs of the workers that are alive."""


def storable_text(text: str) -> str:
    """Return the text with lone surrogates and NUL, which the database cannot store, replaced."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
