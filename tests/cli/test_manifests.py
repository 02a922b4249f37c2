"""Manifests of `run`, and how their problems are reported."""

from __future__ import annotations

import json

from kling_async.ledger import read_ledger
from support.cli import Cli, jobs
from support.pictures import encoded, png

REHEARSAL = ("--emulator", "--speed", "500", "--profile", "tiny", "--level", "gold", "--quiet")


def test_folder_with_one_prompt_needs_fit_for_gif(cli: Cli) -> None:
    photos = cli.folder / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(png())
    (photos / "b.gif").write_bytes(encoded("GIF"))
    (photos / "b.txt").write_text("She smiles")
    words = ("run", "photos/", "--out", "videos", "--prompt", "Waves", "--model", "kling-v2.1-pro", "--duration", "10")
    refused = cli(*words, *REHEARSAL)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "photos/b.gif image: expected a JPEG or PNG, got GIF; the option fit converts it" in refused.stderr
    done = cli(*words, "--fit", *REHEARSAL)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (cli.folder / "videos" / "rehearsal").glob("*.mp4")} == {"a.mp4", "b.mp4"}
    found = {row.key: row for row in read_ledger(cli.folder / "videos" / "rehearsal" / "rehearsal.db", batch="photos")}
    assert {row.model for row in found.values()} == {"kwaivgi/kling-v2.1-i2v-pro"}
    assert {str(row.cost) for row in found.values()} == {"0.90"}


def test_json_option_prints_problems_as_json_lines(cli: Cli) -> None:
    path = jobs(cli.folder, {"key": "a"}, {"key": "a", "duration": 15}, {"image": "über.png"})
    done = cli("run", path, "--out", "videos", "--json", *REHEARSAL)
    assert done.returncode == 2
    problems = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(problem["file"], problem["line"], problem["field"]) for problem in problems] == [
        ("jobs.jsonl", 2, "duration"),
        ("jobs.jsonl", 2, "key"),
        ("jobs.jsonl", 3, "image"),
    ]
    assert problems[0]["message"] == "expected 5 or 10, got 15"
    assert problems[1]["message"] == "'a' is already the key of line 1"
    assert not (cli.folder / "videos").exists()


def test_root_option_and_warnings(cli: Cli) -> None:
    (cli.folder / "lists").mkdir()
    (cli.folder / "long.png").write_bytes(png(900, 300))
    path = "lists/" + jobs(cli.folder / "lists", {"image": "long.png"})
    assert "does not exist" in cli("run", path, "--out", "videos", *REHEARSAL).stderr
    done = cli("run", path, "--out", "videos", "--root", ".", *REHEARSAL[:-1])
    assert done.returncode == 0, done.stderr
    assert "warning: lists/jobs.jsonl:1 image: 900x300 is longer than 2.5:1" in done.stdout
