"""The blocks of the README that need a database, run against one and an emulator."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import anyio
import procrastinate
import pytest
from sybil import Document
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

from kling_async import KlingSession, Worker
from kling_async.emulator import Emulator

pytestmark = pytest.mark.anyio

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    def keep(example: Example) -> None:
        raise AssertionError("collected, not evaluated here")

    document = Document.parse(str(README), CodeBlockParser(language="py", evaluator=keep))
    return [str(example.parsed) for example in document.examples()]


async def execute(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    code = compile(block, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result
    return names


async def test_every_block_that_needs_a_database_runs(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    web, queue, mapper = blocks()
    async with Emulator(level="silver", profile="tiny", speed=200, downloads=False) as emulator:
        monkeypatch.setenv("WAVESPEED_API_KEY", emulator.api_key)
        monkeypatch.setenv("WAVESPEED_BASE_URL", emulator.base_url)
        monkeypatch.setenv("KLING_LEDGER", database)
        monkeypatch.setattr("kling_async._session.SystemClock", lambda: emulator.clock)
        async with KlingSession(level="silver", ledger=database) as kling, anyio.create_task_group() as tasks:
            tasks.start_soon(Worker(kling).run)
            names = await execute(web)
            assert names["row"].state.value == "completed"
            tasks.cancel_scope.cancel()
        assert len(emulator.charges()) == 1
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database))
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
        names = await execute(queue)
        assert len(emulator.charges()) == 2
        made = (await execute(mapper))["KlingMapper"]()
        rows = {"key": ["a", "b"], "prompt": ["A", "B"], "image": ["https://p.example/a.png"] * 2}
        for _ in range(2):
            videos = [row["video"][0] async for row in made(rows)]
            assert all(url.endswith(".mp4") for url in videos)
        await made.kling.aclose()
        assert len(emulator.charges()) == 4
