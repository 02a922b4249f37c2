"""`export`, and the way from a run with failures through its errors manifest to all videos."""

from __future__ import annotations

import json
from functools import partial

import pytest
from anyio.to_thread import run_sync

from kling_async.emulator import Emulator, faults
from kling_async.manifest import read_manifest
from support.cli import EAGER, Cli, asks_for, jobs
from support.pictures import jpeg


@pytest.mark.anyio
async def test_running_errors_manifest_completes_batch(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    rows = {key: {"prompt": prompt, "image": "face.jpg"} for key, prompt in zip("abcdef", "mmxmym", strict=True)}
    path = jobs(cli.folder, *({"key": key, **row} for key, row in rows.items()))
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        call = partial(
            run_sync,
            lambda *words: cli(*words, WAVESPEED_BASE_URL=emulator.base_url, WAVESPEED_API_KEY=emulator.api_key),
        )
        emulator.faults.add(
            "submit",
            faults.FailTask(code=5000, message="busy"),
            when=lambda exchange: exchange.body.get("prompt") == "x",
        )
        emulator.faults.add(
            "submit", faults.Status(400), when=lambda exchange: exchange.body.get("prompt") == "y", times=1
        )
        run = ("--out", "videos", "--level", "gold", "--quiet", "--yes")
        assert (await call("run", path, *run)).returncode == 1
        exported = await call("export", "videos/run.db")
        assert (exported.returncode, exported.stderr) == (0, "")
        assert "videos/results.jsonl: 6 jobs" in exported.stdout
        assert "videos/errors.jsonl: 2 jobs" in exported.stdout
        errors = cli.folder / "videos" / "errors.jsonl"
        assert {key for key, _ in read_manifest(errors, root=cli.folder)} == {"c", "e"}
        notes = {row["key"]: row["_error"] for row in map(json.loads, errors.read_text().splitlines())}
        assert (notes["c"]["status"], notes["c"]["code"], notes["e"]["status"]) == ("failed", 5000, "rejected")
        stats = json.loads((cli.folder / "videos" / "stats.json").read_text())
        assert stats["states"] == {"saved": 4, "failed": 1, "rejected": 1}
        assert set(stats["phases"]) >= {"submitting", "generating", "downloading", "whole"}

        (command,) = [line for line in exported.stdout.splitlines() if line.strip().startswith("kling-async run")]
        words = ["run", "videos/errors.jsonl", "--out", "videos", "--level", "gold", *EAGER, "--root", str(cli.folder)]
        assert command.split()[1:] == words
        again = await call(*words, "--quiet", "--yes")
        assert (again.returncode, again.stderr) == (0, "")
        charged = len(emulator.charges())
    assert {path.stem for path in (cli.folder / "videos").glob("*.mp4")} == set(rows)
    assert charged == 4 + 1 + 2, "no finished job was paid for again"
    metadata = cli("export", "videos/run.db", "--format", "metadata", "--format", "parquet")
    assert "videos/metadata.jsonl: 6 jobs" in metadata.stdout
    assert "videos/results: 6 jobs" in metadata.stdout


@pytest.mark.anyio
async def test_printed_rerun_commands_lead_to_complete_results(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    path = jobs(cli.folder, *({"key": key, "prompt": key, "image": "face.jpg"} for key in "abc"))
    videos = cli.folder / "videos"
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key}
        for failing, times in (("b", 2), ("c", 1)):
            fault = faults.FailTask(code=1200, message="refused")
            emulator.faults.add("submit", fault, when=asks_for(failing), times=times)
        outputs = []
        command = ["run", path, "--out", "videos", "--level", "gold"]
        left = []
        for _ in range(4):
            if not command:
                break
            done = await run_sync(partial(cli, *command, "--yes", **env))
            assert "Traceback" not in done.stderr
            outputs.append(done.stdout)
            found = [line.split() for line in done.stdout.splitlines() if line.startswith("  kling-async run")]
            command = found[0][1:] if found else []
            left.append(command[1] if command else "")
        charged = len(emulator.charges())
    assert left == ["videos/errors.jsonl", "videos/errors-2.jsonl", ""]
    assert "2 jobs have no video" in outputs[0]
    assert "1 job has no video" in outputs[1]
    assert "Results: videos (results.jsonl, stats.json)" in outputs[2]
    results = [json.loads(line) for line in (videos / "results.jsonl").read_text().splitlines()]
    assert sorted((row["key"], row["batch"], row["status"]) for row in results) == [
        ("a", "jobs", "saved"),
        ("b", "errors-2", "saved"),
        ("c", "errors", "saved"),
    ]
    assert (videos / "errors-3.jsonl").read_text() == ""
    stats = json.loads((videos / "stats.json").read_text())
    assert (stats["jobs"], stats["states"]) == (3, {"saved": 3})
    assert stats["spent_usd"] == pytest.approx(6 * 0.25)
    assert charged == 6, "no finished job was paid for again"


def test_results_options_redirect_or_disable_files(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    path = jobs(cli.folder, {"key": "a", "image": "face.jpg"})
    run = ("run", path, "--emulator", "--speed", "900", "--profile", "tiny", "--level", "gold")
    assert cli(*run, "--out", "one", "--results", "reports").returncode == 0
    assert {path.name for path in (cli.folder / "reports" / "rehearsal").iterdir()} == {
        "results.jsonl",
        "errors.jsonl",
        "stats.json",
    }
    assert not list((cli.folder / "one").rglob("*.json*"))
    done = cli(*run, "--out", "two", "--no-results")
    assert (done.returncode, "results.jsonl" in done.stdout) == (0, False)
    assert not list((cli.folder / "two").rglob("*.json*"))


def test_export_reports_unreadable_ledger(cli: Cli) -> None:
    assert cli("export", "none.db").returncode == 2
    (cli.folder / "text.db").write_text("no ledger" * 1000)
    failed = cli("export", "text.db", "--out", "videos")
    assert failed.returncode != 0
    assert "is no ledger" in failed.stderr
    assert not (cli.folder / "videos").exists()
