"""`run --gallery` and `gallery`."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from kling_async import ConfigurationError
from kling_async.cli.ledgers import LedgerName
from kling_async.cli.options import GalleryOptions
from kling_async.cli.page import page as page_of_ledger
from kling_async.ledger import SQLiteLedger
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


def test_run_without_page_leaves_no_stale_one(cli: Cli) -> None:
    page = cli.folder / "videos" / "rehearsal" / "gallery" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("of an earlier run")
    done = cli("run", manifest(cli.folder, "a"), "--out", "videos", *QUICK)
    assert (done.returncode, f"Gallery: {page}" in done.stdout) == (0, True), done.stdout
    assert {key: card["state"] for key, card in cards(page).items()} == {"a": "saved"}


def test_served_page_says_how_to_go_on(cli: Cli) -> None:
    asyncio.run(_empty_ledger(cli.folder / "run.db"))
    with cli.start("gallery", "run.db", "--serve") as process:
        printed = cli.wait_for(process, "Ctrl-C ends it")
        process.send_signal(signal.SIGINT)
        printed += process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0
    assert re.search(r"^Gallery: http://127\.0\.0\.1:\d+/[\w-]{20,}/$", printed, re.MULTILINE)
    assert "\n  kling-async export run.db --format again\n" in printed
    assert "Traceback" not in printed
    assert (cli.folder / "gallery" / "index.html").is_file()


def test_used_port_of_served_page_is_named(tmp_path: Path) -> None:
    asyncio.run(_empty_ledger(tmp_path / "run.db"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = GalleryOptions(ledger=LedgerName(tmp_path / "run.db"), serve=True, port=port)
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is in use"):
            page_of_ledger(options)


async def _empty_ledger(path: Path) -> None:
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.aclose()


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
