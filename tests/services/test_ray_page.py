"""The class of docs/applications/ray.md, called twice with one block of rows, as Ray Data may call it."""

from __future__ import annotations

from typing import Any

import pytest

from kling_async.emulator import Emulator
from support import pages

pytestmark = pytest.mark.anyio


async def test_mapper_pays_once_for_block_run_twice(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(pages.block("applications/ray.md", "class KlingMapper"), names)
    async with Emulator(level="silver", profile="tiny", speed=200, downloads=False) as emulator:
        monkeypatch.setenv("WAVESPEED_API_KEY", emulator.api_key)
        monkeypatch.setenv("WAVESPEED_BASE_URL", emulator.base_url)
        monkeypatch.setenv("KLING_LEDGER", database)
        monkeypatch.setattr("kling_async._session.session.SystemClock", lambda: emulator.clock)
        mapper = names["KlingMapper"]()
        rows = {"key": ["a", "b"], "prompt": ["A", "B"], "image": ["https://p.example/a.png"] * 2}
        for _ in range(2):
            videos = [row["video"][0] async for row in mapper(rows)]
            assert all(url.endswith(".mp4") for url in videos)
        await mapper.kling.aclose()
        assert len(emulator.charges()) == 2
