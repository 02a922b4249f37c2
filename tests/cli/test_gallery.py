"""`run --gallery` and `gallery`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from support.cli import Cli, jobs
from support.patience import PATIENCE_S
from support.pictures import jpeg


def cards(page: Path) -> dict[str, dict[str, Any]]:
    (data,) = re.findall(r'id="data">(.*?)</script>', page.read_text("utf-8"))
    return {card["key"]: card for card in json.loads(data)["cards"]}


def manifest(folder: Path, *keys: str) -> str:
    (folder / "face.jpg").write_bytes(jpeg())
    return jobs(folder, *({"key": key, "image": "face.jpg", "prompt": f"Waves {key}"} for key in keys))


QUICK = ("--emulator", "--speed", "500", "--profile", "tiny", "--level", "gold")


def test_page_of_run_and_page_from_ledger_match(cli: Cli) -> None:
    path = manifest(cli.folder, "a", "b", "c/d")
    done = cli("run", path, "--out", "videos", "--gallery", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^Gallery: http://127\.0\.0\.1:\d+/[\w-]{20,}/$", done.stdout, re.MULTILINE)
    page = cli.folder / "videos" / "rehearsal" / "gallery" / "index.html"
    assert f"Gallery: {page}" in done.stdout
    found = cards(page)
    assert set(found) == {"a", "b", "c/d"}
    for card in found.values():
        assert card["state"] == "saved"
        assert (page.parent / card["video"]).is_file()
        assert (page.parent / card["image"]["poster"]).is_file()
    page.unlink()
    made = cli("gallery", "videos/rehearsal/rehearsal.db")
    assert (made.returncode, made.stderr) == (0, "")
    assert "videos/rehearsal/gallery/index.html" in made.stdout
    again = cards(page)
    assert {key: (card["prompt"], card["video"], card["image"]) for key, card in again.items()} == {
        key: (card["prompt"], card["video"], card["image"]) for key, card in found.items()
    }


def test_interrupted_run_writes_page(cli: Cli) -> None:
    path = manifest(cli.folder, *(str(number) for number in range(40)))
    process = cli.start("run", path, "--out", "videos", "--gallery", "--emulator", "--speed", "2", "--profile", "tiny")
    try:
        Cli.wait_for(process, "accepted")
        Cli.stop(process)
        printed, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in printed
    states = [card["state"] for card in cards(cli.folder / "videos" / "rehearsal" / "gallery" / "index.html").values()]
    assert states.count("running") >= 1
    assert "waiting" in states


def test_missing_jinja_is_reported_before_run(cli: Cli) -> None:
    hidden = cli.folder / "hidden" / "jinja2"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('No module named jinja2', name='jinja2')")
    path = manifest(cli.folder, "a")
    env = {"PYTHONPATH": f"{hidden.parent}:{cli.env['PYTHONPATH']}"}
    done = cli("run", path, "--out", "videos", "--gallery", *QUICK, **env)
    assert done.returncode == 2
    assert "pip install 'kling-async[gallery]'" in done.stderr
    assert done.stdout == ""


def test_gallery_reports_invalid_ledger(cli: Cli) -> None:
    (cli.folder / "x.db").write_text("no ledger")
    done = cli("gallery", "x.db")
    assert done.returncode != 0
    assert "x.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (cli.folder / "gallery").exists()
