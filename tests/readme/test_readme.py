"""The README is run: every Python block, in order and one namespace, against the emulator; only time is scaled."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sybil import Document
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

from kling_async import LEVELS, MODELS, Job, KlingSession, testing
from kling_async.emulator import Emulator
from support.pictures import png
from support.pytests import run_pytest
from support.redis import RedisServer

pytestmark = pytest.mark.anyio

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    def keep(example: Example) -> None:
        raise AssertionError("collected, not evaluated here")

    document = Document.parse(str(README), CodeBlockParser(language=language, evaluator=keep))
    return [str(example.parsed) for example in document.examples()]


async def execute(block: str, names: dict[str, Any]) -> None:
    code = compile(block, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


@pytest.mark.timeout(120)
async def test_every_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "face.png").write_bytes(png())
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(colour=(50 * number, 80, 120)))
    monkeypatch.chdir(tmp_path)
    python = blocks("python")
    assert len(python) >= 10
    said = []
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator, RedisServer() as redis:
        monkeypatch.setenv("REDIS_URL", redis.url)
        monkeypatch.setenv("WAVESPEED_API_KEY", emulator.api_key)
        monkeypatch.setenv("WAVESPEED_BASE_URL", emulator.base_url)
        monkeypatch.setenv("GPTPROTO_API_KEY", emulator.gptproto_key)
        monkeypatch.setenv("GPTPROTO_BASE_URL", emulator.gptproto_url)
        monkeypatch.setattr("kling_async._session.SystemClock", lambda: emulator.clock)
        names: dict[str, Any] = {"__name__": "readme"}
        for block in python:
            capsys.readouterr()
            await execute(block, names)
            said.append(capsys.readouterr().out)
        charged = len(emulator.charges())
    assert charged == 1 + 3 + 3 + 1 + 1 + 1 + 1
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1 + 3
    problems = next(out for block, out in zip(python, said, strict=True) if "error.problems" in block)
    assert problems.strip() in [text.strip() for text in blocks("text")]
    assert any(out.count("downloaded") == 3 for out in said), "the ledger was read back"


def test_the_test_of_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("python") if "pytest_plugins" in block]
    (tmp_path / "test_it.py").write_text(block)
    ran = run_pytest(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_the_checks_that_the_readme_names_are_all_there_are() -> None:
    checks = {name for name in testing.__all__ if name.startswith("check_")}
    assert set(re.findall(r"`(check_\w+)`", README.read_text())) == checks


def test_the_manifest_of_the_readme_is_one(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in blocks("json")[0].splitlines()]
    for row in rows:
        row.pop("key")
        Job(**{**row, "image": Path(row["image"])})


def test_the_tables_say_what_the_data_say() -> None:
    text = README.read_text()
    for level in LEVELS.values():
        assert f'`"{level.name}"`' in text
        assert f"| {level.in_flight:,} | {level.starts:,} |" in text
    for model in MODELS[:4]:
        assert model.price_per_5s is not None
        five, ten = model.price(5), model.price(10)
        assert f"| `{model.name}` | `{model.id}` | 5, 10 | {five} / {ten} |".replace("$", "") in text
    parameters = inspect.signature(KlingSession.__init__).parameters
    for word in ("level", "ledger", "max_in_flight", "rate_limiter", "provider", "transport", "observers"):
        assert word in parameters
        assert f"{word}=" in text
