"""Rows of a ledger by their labels, in a file and in a database, and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kling_async import ConfigurationError
from kling_async.ledger import Content, Ledger, SQLiteLedger, page_reader, read_ledger
from kling_async.ledger.postgres import PostgresLedger
from support.cli import Cli

pytestmark = pytest.mark.anyio

LABELS = [
    {"order": "1742", "sku": "A7"},
    {"order": 1742, 'a "quoted" name': 'and $."value"'},
    {"order": 1743, "rush": True, "weight": 1.5, "sum": 0.1 + 0.2, "tiny": 1e-7},
    {},
    # No database of JSON can hold it; it is not to be in the way of others.
    {"nul": "\0"},
]
WANTED: list[tuple[dict[str, object], list[str]]] = [
    ({"order": "1742"}, ["a/0", "a/1"]),
    ({"order": 1742, "sku": "A7"}, ["a/0"]),
    ({"rush": True}, ["b/2"]),
    ({"sum": 0.1 + 0.2}, ["b/2"]),
    ({"rush": "true", "weight": 1.5}, ["b/2"]),
    ({'a "quoted" name': 'and $."value"'}, ["a/1"]),
    ({"order": "1742' OR 1=1 --"}, []),
    ({"": "x"}, []),
    ({}, ["a/0", "a/1", "b/2", "b/3", "c/4"]),
]


async def fill(ledger: Ledger) -> None:
    await ledger.open()
    for number, labels in enumerate(LABELS):
        key = f"{'abc'[number // 2]}/{number}"
        content = Content(f'{{"n": {number}}}', labels=json.dumps(labels) if labels else None)
        await ledger.claim("web", key, content=content, model="m", at=100.0 + number)


def check_pages(ledger: Ledger) -> None:
    read = page_reader(ledger)
    assert read is not None

    def keys(prefix: str, after: str = "", limit: int = 10, **labels: str) -> list[str]:
        return [row.key for row in read("web", prefix=prefix, after=after or prefix, labels=labels, limit=limit)]

    assert keys("") == ["a/0", "a/1", "b/2", "b/3", "c/4"]
    assert keys("a/") == ["a/0", "a/1"]
    assert keys("a/", limit=1) == ["a/0"]
    assert keys("a/", after="a/0") == ["a/1"]
    assert keys("", after="a/1", limit=1) == ["b/2"]
    assert keys("", order="1743") == ["b/2"]
    assert keys("a/", order="1743") == []


@pytest.mark.parametrize(("labels", "found"), WANTED)
async def test_rows_of_a_file(tmp_path: Path, labels: dict[str, object], found: list[str]) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await fill(ledger)
    assert [row.key for row in read_ledger(tmp_path / "run.db", labels=labels)] == found
    check_pages(ledger)
    await ledger.aclose()


async def test_rows_of_a_database(database: str) -> None:
    ledger = PostgresLedger(database)
    await fill(ledger)
    for labels, found in WANTED:
        assert [row.key for row in read_ledger(database, labels=labels)] == found, labels
    check_pages(ledger)
    await ledger.aclose()


async def test_labels_without_a_value_to_compare_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected names with a text"):
        read_ledger(tmp_path / "run.db", labels={"order": ["1742"]})


async def test_status_counts_the_jobs_with_a_label(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await fill(ledger)
    await ledger.aclose()
    cli = Cli(tmp_path)
    shown = json.loads(cli("status", "run.db", "--json", "--label", "order=1742").stdout)
    assert shown["batches"][0]["jobs"] == 2
    refused = cli("status", "run.db", "--label", "order")
    assert refused.returncode != 0
    assert "expected NAME=VALUE" in refused.stderr
