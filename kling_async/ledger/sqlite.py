"""The embedded ledger: one SQLite file, one writer, any number of readers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar

import attrs

from kling_async._core.errors import LedgerError
from kling_async._core.states import MOVES, Row, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kling_async._core.states import Entry

APPLICATION_ID = 0x4B4C4E47
"""`KLNG`, in the header of every ledger file."""
VERSION = 1
GROUP = 512
"""Steps that are committed together at most."""

T = TypeVar("T")

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE job(
  batch TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, model TEXT NOT NULL,
  state TEXT NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, fingerprint TEXT, token_hash TEXT,
  intent_at REAL, submitted_at REAL, ended_at REAL, updated_at REAL NOT NULL,
  prediction_id TEXT UNIQUE, output TEXT, code INTEGER, error TEXT, cost TEXT,
  path TEXT, bytes INTEGER, sha256 TEXT,
  PRIMARY KEY(batch, key)) WITHOUT ROWID;
CREATE INDEX job_state ON job(state) WHERE state IN ('intent', 'submitted', 'uncertain', 'completed');
CREATE TABLE step(
  batch TEXT NOT NULL, key TEXT NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, detail TEXT);
"""

_COLUMNS = tuple(attrs.fields_dict(Row))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM job"  # noqa: S608 -- names of our own fields
