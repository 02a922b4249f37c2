"""`kling-async run --out s3://...` as a process, with an S3 server."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import obstore
import pytest
from anyio.to_thread import run_sync

from kling_async.emulator import Emulator, faults
from support.cli import Cli, jobs
from support.object_stores import BUCKET, rclone
from support.pictures import jpeg

pytestmark = pytest.mark.anyio


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


async def test_run_saves_to_store_and_keeps_results_locally(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    path = jobs(cli.folder, *({"key": key, "prompt": key, "image": "face.jpg"} for key in "abc"), name="spring.jsonl")
    out = f"s3://{BUCKET}/videos"
    with rclone(cli.folder / "server") as server:
        async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
            env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key}
            env |= server.environment() | {"NO_PROXY": "127.0.0.1"}
            emulator.faults.add("submit", faults.Status(400), when=lambda exchange: exchange.body.get("prompt") == "c")
            call = partial(run_sync, abandon_on_cancel=False)
            done = await call(partial(cli, "run", path, "--out", out, "--level", "gold", "--gallery", "--yes", **env))
            assert (done.returncode, "Traceback" in done.stderr) == (1, False)
            assert f"2 of 3 videos in {out}, 1 rejected" in done.stdout
            home = cli.folder / "kling-spring"
            rows = {row["key"]: row for row in map(json.loads, (home / "results.jsonl").read_text().splitlines())}
            assert {key: row["file"] for key, row in rows.items()} == {
                "a": f"{out}/a.mp4",
                "b": f"{out}/b.mp4",
                "c": None,
            }
            assert (home / "gallery" / "index.html").is_file()
            assert not list(cli.folder.glob("s3:*"))

            (command,) = [line.split() for line in done.stdout.splitlines() if line.startswith("  kling-async run")]
            again = await call(partial(cli, *command[1:], "--yes", **env))
            assert (again.returncode, len(emulator.charges())) == (0, 3)
            results = [json.loads(line) for line in (home / "results.jsonl").read_text().splitlines()]
            assert {row["key"]: row["status"] for row in results} == dict.fromkeys("abc", "saved")
            paid = results[-1]["prediction_id"]
            fetched = await call(partial(cli, "fetch", paid, "--out", f"{out}/fetched", **env))
            assert (fetched.returncode, f"{out}/fetched/{paid}.mp4" in fetched.stdout) == (0, True)
        found = obstore.list(server.store("videos")).collect()
    assert {entry["path"]: entry["size"] > 1000 for entry in found} == {
        "a.mp4": True,
        "b.mp4": True,
        "c.mp4": True,
        f"fetched/{paid}.mp4": True,
    }


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://bucket/videos", "pip install 'kling-async[storage]'"),
        ("ftp://host/videos", "outputs cannot be saved at ftp://"),
    ],
)
async def test_invalid_out_is_refused_before_sending(cli: Cli, out: str, message: str) -> None:
    hidden = cli.folder / "hidden" / "obstore"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('No module named obstore', name='obstore')")
    env = {"PYTHONPATH": f"{hidden.parent}:{cli.env['PYTHONPATH']}", "WAVESPEED_API_KEY": "none"}
    env["WAVESPEED_BASE_URL"] = "http://127.0.0.1:9"
    path = jobs(cli.folder, {"key": "a"})
    for words in (("run", path), ("fetch", "0" * 32)):
        done = await run_sync(partial(cli, *words, "--out", out, **env))
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    assert {path.name for path in cli.folder.iterdir()} == {"hidden", "jobs.jsonl"}
