"""The manifest of videos that are marked to be made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kling_async._core.content import Content
from kling_async._core.marks import Mark
from kling_async.ledger import Entry, SQLiteLedger, State
from kling_async.results import Exported, Format, export

pytestmark = pytest.mark.anyio

MODEL = "kwaivgi/kling-v2.1-i2v-pro"
IMAGE = "https://pictures.example/face.png"


async def _add(ledger: SQLiteLedger, batch: str, key: str, *, prompt: str, at: float) -> None:
    content = Content(json.dumps({"model": MODEL, "prompt": prompt, "image": IMAGE, "duration": 5}))
    await ledger.claim(batch, key, content=content, model=MODEL, at=at)
    await ledger.record(Entry(batch=batch, key=key, at=at, state=State.INTENT, attempt=1))
    await ledger.record(Entry(batch=batch, key=key, at=at, state=State.SUBMITTED, prediction_id=f"{batch}-{key}"))
    await ledger.record(Entry(batch=batch, key=key, at=at, state=State.COMPLETED))


def _exported(path: Path) -> tuple[str, list[str]]:
    made: Exported
    (made,) = export(path, path.parent, [Format.AGAIN])
    return made.path.name, [json.loads(line)["key"] for line in made.path.read_text().splitlines()]


async def test_marked_videos_are_listed_until_they_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    for key in "abc":
        await _add(ledger, "jobs", key, prompt=key, at=1.0)
    await ledger.put_mark("jobs-a", Mark.AGAIN, 5.0)
    await ledger.put_mark("jobs-b", Mark.AGAIN, 5.0)
    await ledger.put_mark("jobs-c", Mark.BAD, 5.0)
    assert _exported(path) == ("again.jsonl", ["a", "b"])
    await _add(ledger, "again", "a", prompt="edited", at=9.0)
    assert _exported(path) == ("again-2.jsonl", ["b"])
    # What was made again can be marked in its turn.
    await ledger.put_mark("again-a", Mark.AGAIN, 12.0)
    assert _exported(path) == ("again-2.jsonl", ["b", "a"])
    await _add(ledger, "again-2", "a", prompt="edited once more", at=15.0)
    assert _exported(path) == ("again-3.jsonl", ["b"])
    await ledger.aclose()
