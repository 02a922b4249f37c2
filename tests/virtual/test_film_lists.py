"""A manifest with films, run as a batch."""

from __future__ import annotations

import pytest

from kling_async.manifest import read_rows
from support.films import pictures, take_ids
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


async def test_manifest_in_any_order_makes_whole_films(monkeypatch: pytest.MonkeyPatch) -> None:
    take_ids(monkeypatch)
    service = Service(seconds=30)
    rows = [
        {"key": "night", "prompt": "night", "continues": "sail", "film": "bay"},
        {"key": "sail", "prompt": "sail", "continues": "dawn", "film": "bay"},
        {"key": "dawn", "prompt": "dawn", "image": IMAGE, "film": "bay"},
        {"key": "alone", "prompt": "alone", "image": IMAGE},
    ]
    async with open_session(service) as kling, kling.batch(read_rows(rows), window=1) as batch:
        outcomes = [outcome async for outcome in batch]
    assert all(outcome.ok for outcome in outcomes)
    assert pictures(service) == {"sail": "dawn", "night": "sail"}
    assert {outcome.key: outcome.job.labels.get("film") for outcome in outcomes} == {
        "night": "bay",
        "sail": "bay",
        "dawn": "bay",
        "alone": None,
    }
