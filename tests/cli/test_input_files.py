"""Files of any kind on the command line: frames, sound, and a finished video that is extended."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kling_async import Job, Model, ServiceModel
from kling_async._core.content import content_of
from kling_async.cli.app import app
from kling_async.cli.sources import without_price
from support.cli import jobs
from support.media import video
from support.pictures import png

EXTEND = "kwaivgi/kling-v4.0/video-extend"
REHEARSAL = ("--emulator", "--speed", "1000", "--profile", "tiny", "--level", "gold", "--quiet")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WAVESPEED_API_KEY", raising=False)
    log = logging.getLogger("kling_async")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "TERM": "dumb", "KLING_WATCH": "eager"})


def manifest(folder: Path) -> str:
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(colour=(50 * number, 0, 0)))
    (folder / "walk.mp4").write_bytes(video())
    return jobs(
        folder,
        {"key": "frames", "model": "kling-v4.0", "image": "0.png", "keyframes": ["1.png", "2.png", "3.png"],
         "end_image": "4.png"},
        {"key": "sound", "model": "kling-o3-std", "image": "0.png", "sound": True},
        {"key": "on", "model": EXTEND, "image": None, "extra": {"video": "file:walk.mp4"}},
    )  # fmt: skip


def test_rehearsal_with_models_of_the_service(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    done = run("run", path, "--out", "v", "--duration", "3", "--from-service", *REHEARSAL)
    assert done.exit_code == 0, done.output
    assert {file.stem for file in Path("v/rehearsal").glob("*.mp4")} == {"frames", "sound", "on"}
    rows = [json.loads(line) for line in Path("v/rehearsal/results.jsonl").read_text().splitlines()]
    assert {row["key"]: row["cost_usd"] for row in rows} == {"frames": 0.471, "sound": None, "on": 0.471}


def test_new_price_of_the_service_makes_no_other_job() -> None:
    contents, prices = set[str](), list[Decimal | None]()
    for base_price in (Decimal("0.157"), Decimal("0.2")):
        schema = {"properties": {"prompt": {"type": "string"}, "duration": {"type": "integer", "enum": [3, 5]}}}
        entry = ServiceModel(id=EXTEND, base_price=base_price, formula="base_price * duration", schema=schema)
        job = Job(model=without_price(Model.from_service(entry)), prompt="x", duration=3)
        contents.add(content_of(job, str).digest)
        prices.append(job.price().usd)
    assert len(contents) == 1
    assert prices == [Decimal("0.471"), Decimal("0.6")]


def test_models_that_only_the_service_has_are_named_with_the_option(tmp_path: Path) -> None:
    done = run("run", manifest(tmp_path), "--out", "v", "--duration", "3", *REHEARSAL)
    assert done.exit_code != 0
    assert f"jobs.jsonl:3 model: unknown model '{EXTEND}'" in done.stderr
    assert "others of the service: Model.from_service, or --from-service" in done.stderr


def test_command_that_runs_them_again_asks_the_service_too(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    wrong = json.dumps({"model": EXTEND, "prompt": "x", "extra": {"video": 7}})
    Path(path).write_text(f"{Path(path).read_text()}{wrong}\n")
    done = run("run", path, "--out", "v", "--duration", "3", "--from-service", "--skip-invalid", *REHEARSAL[:-1])
    assert "kling-async run v/rehearsal/errors.jsonl" in done.output
    (command,) = [line for line in done.output.splitlines() if "kling-async run v/rehearsal/errors.jsonl" in line]
    assert command.endswith("--from-service")
