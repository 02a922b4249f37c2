"""The examples run as their docstrings say, against the emulator."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from time import time

import aiohttp
import anyio
import pytest
from aiohttp.test_utils import TestClient, TestServer
from anyio.to_thread import run_sync

from kling_async import examples
from kling_async.emulator import Emulator, faults
from kling_async.examples import webhooks
from support.cli import Cli
from support.pages import DOCS
from support.patience import PATIENCE_S
from support.pictures import png
from support.web import served
from support.webhooks import body_of, signed

pytestmark = pytest.mark.anyio

HERE = Path(examples.__file__).parent


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        yield emulator


def environment(folder: Path, emulator: Emulator) -> dict[str, str]:
    return Cli(folder).env | {
        "WAVESPEED_API_KEY": emulator.api_key,
        "WAVESPEED_BASE_URL": emulator.base_url,
        "NO_PROXY": "127.0.0.1",
    }


async def ended(folder: Path, emulator: Emulator, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    command = [sys.executable, "-m", f"kling_async.examples.{name}", *words]
    return await run_sync(
        partial(
            subprocess.run,
            command,
            cwd=folder,
            env=environment(folder, emulator),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    )


async def run(folder: Path, emulator: Emulator, name: str, *words: str) -> str:
    """Run an example to its end and return what it printed."""
    done = await ended(folder, emulator, name, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_script_saves_a_video(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "face.png").write_bytes(png())
    printed = await run(tmp_path, emulator, "script", "face.png", "She turns and smiles")
    (video,) = (tmp_path / "out").glob("*.mp4")
    assert printed.startswith(f"out/{video.name}: ")
    assert [charge.prompt for charge in emulator.charges()] == ["She turns and smiles"]


async def test_folder_is_paid_for_once(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a.png", "b.PNG")):
        (tmp_path / "photos" / name).write_bytes(png(colour=(number, 2, 3)))
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    for _ in range(2):
        printed = await run(tmp_path, emulator, "folder", "photos")
        assert {"a out/a.mp4", "b out/b.mp4"} <= set(printed.splitlines())
    assert len(emulator.charges()) == 2


async def test_spreadsheet_names_videos_and_joins_results(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "lamp.png").write_bytes(png())
    (tmp_path / "products.csv").write_text(
        "Article;Photo;Prompt;Shop\nA17;lamp.png;It lights up;Berlin\nA18;missing.png;It glows;Bonn\n"
    )
    printed = await run(tmp_path, emulator, "spreadsheet", "products.csv")
    assert "left out: " in printed
    assert (tmp_path / "out" / "A17.mp4").is_file()
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["labels"] == {"Shop": "Berlin"}
    assert len(emulator.charges()) == 1


@pytest.mark.repeats
async def test_film_is_joined_and_paid_for_once(tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(png())
    async with Emulator(level="gold", speed=200) as emulator:
        for _ in range(2):
            printed = await run(tmp_path, emulator, "film", "face.png")
            # Three clips of 5 s; at each cut, one of two equal frames is left out.
            assert printed.splitlines()[-1] == "out/bay.mp4: 14.9 s"
        assert [charge.prompt for charge in emulator.charges()] == [
            "Mist lifts over the bay",
            "A boat crosses, pan right",
            "Lights come on",
        ]
    assert {path.name for path in (tmp_path / "out").glob("*.mp4")} == {"dawn.mp4", "sail.mp4", "night.mp4", "bay.mp4"}


async def test_film_without_a_clip_names_its_error(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "face.png").write_bytes(png())
    emulator.faults.add("submit", faults.FailTask(), when=lambda exchange: "boat" in str(exchange.body), times=1)
    for _ in range(2):
        done = await ended(tmp_path, emulator, "film", "face.png")
        assert done.returncode == 1, done.stdout
        assert "no film without sail: the prediction ended as failed" in done.stderr, done.stderr
    assert len(emulator.charges()) == 2, "what has failed stays so"


async def test_receiver_takes_genuine_deliveries_once(capsys: pytest.CaptureFixture[str]) -> None:

    body = body_of("1" * 32)
    headers = signed("whsec_secret", body, at=time())
    async with TestClient(TestServer(webhooks.application("whsec_secret"))) as client:
        for given in (headers, headers):
            assert (await client.post("/hooks/kling", data=body, headers=given)).status < 300
        forged = signed("whsec_other", body, at=time(), webhook_id="w2")
        assert (await client.post("/hooks/kling", data=body, headers=forged)).status >= 400
    assert capsys.readouterr().out == f"{'1' * 32} completed https://outputs.example/a.mp4\n"


@pytest.mark.timeout(180)
async def test_worker_makes_what_the_web_process_enqueues(
    tmp_path: Path, emulator: Emulator, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLING_LEDGER", database)
    web = importlib.import_module("kling_async.examples.pool.web")
    worker = await anyio.open_process(
        [sys.executable, "-m", "kling_async", "worker", "--level", "gold", "--out", "videos", "--budget", "500"],
        cwd=tmp_path,
        env=environment(tmp_path, emulator) | {"KLING_LEDGER": database},
        stdout=subprocess.DEVNULL,
    )
    try:
        async with served(web.app) as url, aiohttp.ClientSession(url) as http:
            asked = {"prompt": "Waves", "image": "https://pictures.example/a.png"}
            async with http.post("/videos", json=asked | {"prompt": ""}) as response:
                assert response.status == 422
            async with http.get("/videos/none") as response:
                assert response.status == 404
            async with http.post("/videos", json=asked) as response:
                assert response.status == 202
                key = (await response.json())["key"]
            await web.app.state.ledger.outcome("web", key)
            async with http.get(f"/videos/{key}") as response:
                found = await response.json()
            assert found["state"] in {"saved", "unsaved"}
            assert found["output"].startswith("http")
    finally:
        worker.terminate()
        with anyio.fail_after(PATIENCE_S):
            assert await worker.wait() in {0, 130, 143}
    assert len(emulator.charges()) == 1


def test_compose_file_is_valid() -> None:
    """The schema comes with the checker."""
    file = HERE / "pool" / "compose.yaml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_file_with_mistake_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((HERE / "pool" / "compose.yaml").read_text().replace("healthcheck:", "health_check:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*command, str(wrong)], capture_output=True, check=False, timeout=PATIENCE_S).returncode == 1


def test_compose_file_uses_commands_and_modules_that_exist() -> None:
    text = (HERE / "pool" / "compose.yaml").read_text()
    (module,) = re.findall(r'"(kling_async[\w.]*):app"', text)
    assert importlib.util.find_spec(module)
    assert "kling-async, worker," in text


def test_every_example_has_a_page() -> None:
    files = {path.relative_to(HERE.parents[1]).as_posix() for path in HERE.rglob("*.py") if path.name != "__init__.py"}
    text = "".join(page.read_text() for page in (DOCS / "examples").glob("*.md"))
    assert {name for name in files if name not in text} == set()
