"""Manifests of `run`, and how their problems are reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kling_async import ConfigurationError
from kling_async.cli.options import EstimateOptions
from kling_async.cli.output import make_console
from kling_async.cli.sources import print_warnings, read_source
from kling_async.ledger import read_ledger
from support.cli import Cli, jobs
from support.pictures import encoded, png
from support.sheets import write_xlsx

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


def test_spreadsheet_becomes_videos_named_after_its_articles(cli: Cli) -> None:
    """Wrong headers, a bad row, a picture in another script; told before it runs, and found in the results."""
    (cli.folder / "shots").mkdir()
    for name in ("SKU-1.png", "猫.png"):
        (cli.folder / "shots" / name).write_bytes(png())
    rows: list[list[object]] = [["Filename", "Motion prompt", "Seconds", "Article", "SKU"]]
    rows += [["shots\\SKU-1.png", "Waves", 5, "A-1", 1], ["shots/猫.png", "Wind", 10, "猫", 2]]
    rows += [["shots/gone.png", "Wind", 15, "A-3", 3]]
    write_xlsx(cli.folder / "products.xlsx", rows)
    words = ("run", "products.xlsx", "--out", "videos", *REHEARSAL[:-1])
    refused = cli(*words, "--budget", "1")
    assert refused.returncode == 2
    assert "did you mean prompt? Then say --column 'prompt=Motion prompt'" in refused.stderr
    done = cli(*words, "--column", "prompt=Motion prompt", "--column", "key=Article", "--skip-invalid")
    assert done.returncode == 0, done.stderr
    assert "products.xlsx:4 duration: expected 5 or 10, got 15" in done.stdout
    assert "1 row with problems left out: mend them, and give the list again" in done.stdout
    assert "Columns kept for the results, and not sent: SKU" in done.stdout
    assert "1 row was left out: mend them in videos/rehearsal/errors.jsonl, where _error says why." in done.stdout
    made = cli.folder / "videos" / "rehearsal"
    assert {path.name for path in made.glob("*.mp4")} == {"A-1.mp4", "猫.mp4"}
    results = [json.loads(line) for line in (made / "results.jsonl").read_text().splitlines()]
    assert {(row["file"], row["labels"]["SKU"]) for row in results} == {("A-1.mp4", 1), ("猫.mp4", 2)}
    (left_out,) = [json.loads(line) for line in (made / "errors.jsonl").read_text().splitlines()]
    assert left_out["labels"] == {"SKU": 3}
    assert "duration: expected 5 or 10, got 15" in left_out["_error"]["message"]
    assert cli(*words, "--column", "prompt=Motion prompt", "--skip-invalid").returncode == 0
    assert {path.name for path in made.glob("*.mp4")} == {"SKU-1.mp4", "猫.mp4"}, "without keys, after the pictures"


def test_options_of_lists_are_checked_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="--column: expected FIELD=COLUMN, each field once, got image"):
        read_source(EstimateOptions(manifest=[tmp_path], columns=["image"]), "wavespeed", as_json=False)
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "clip.mov").touch()
    (tmp_path / "below").mkdir()
    options = EstimateOptions(manifest=[tmp_path], prompt="x")
    manifest = read_source(options, "wavespeed", as_json=False)
    assert manifest is not None
    print_warnings(make_console(), manifest, "wavespeed", local=False)
    said = f"Left out of {tmp_path}: 1 x .mov, 1 x subfolders; --recursive takes the pictures in subfolders"
    assert said in capsys.readouterr().out.replace("\n", "")


def test_root_option_and_warnings(cli: Cli) -> None:
    (cli.folder / "lists").mkdir()
    (cli.folder / "long.png").write_bytes(png(900, 300))
    path = "lists/" + jobs(cli.folder / "lists", {"image": "long.png"})
    assert "does not exist" in cli("run", path, "--out", "videos", *REHEARSAL).stderr
    done = cli("run", path, "--out", "videos", "--root", ".", *REHEARSAL[:-1])
    assert done.returncode == 0, done.stderr
    assert "warning: lists/jobs.jsonl:1 image: 900x300 is longer than 2.5:1" in done.stdout


def test_picture_on_this_machine_is_no_caution_before_an_emulator_on_it(cli: Cli) -> None:
    path = jobs(cli.folder, {"key": "a", "prompt": "x", "image": "http://localhost:8000/a.jpg"})
    assert "where the service cannot fetch it" in cli("estimate", path).stdout
    local = {"WAVESPEED_BASE_URL": "http://127.0.0.1:9"}
    assert "cannot fetch it" not in cli("estimate", path, **local).stdout
    assert json.loads(cli("estimate", path, "--json", **local).stdout)["warnings"] == []
