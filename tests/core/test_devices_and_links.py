"""Files that never end or wait for ever are refused, and nothing is written through a link that somebody laid."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from kling_async import ManifestError
from kling_async.cli.hints import recorded_run
from kling_async.cli.ledgers import LedgerName
from kling_async.gallery.cards import Deck
from kling_async.gallery.page import freeze
from kling_async.ledger import Content, SQLiteLedger
from kling_async.ledger._sqlite.connection import closed_by
from kling_async.manifest import _check, _text, read_manifest
from kling_async.manifest._columns import Columns
from kling_async.results import Format, export
from support.pictures import png

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have neither pipes nor devices as files")

ROW = json.dumps({"prompt": "x", "image": "https://pictures.example/a.png"}) + "\n"


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [device, os.mkfifo], ids=["device", "pipe"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".parquet"])
def test_manifest_that_is_no_ordinary_file_is_refused(
    suffix: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / f"jobs{suffix}"
    make(path)
    with pytest.raises(ManifestError, match="expected an ordinary file, got a device or a pipe"):
        read_manifest(path)


@pytest.mark.parametrize("make", [device, os.mkfifo], ids=["device", "pipe"])
def test_prompt_file_that_is_no_ordinary_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    make(tmp_path / "a.txt")
    with pytest.raises(ManifestError, match="prompt: cannot be read: expected an ordinary file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_line_without_an_end_is_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text, "MAX_LINE_BYTES", 1000)
    path = tmp_path / f"jobs{suffix}"
    path.write_text("prompt,image\n" + "x" * 1001 + "\n" + "y\n" * 1000 if suffix == ".csv" else "x" * 1001)
    with pytest.raises(ManifestError, match="expected a line of at most 1,000 bytes") as caught:
        read_manifest(path)
    assert len(caught.value.problems) <= 2


def test_longest_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text, "MAX_LINE_BYTES", len(ROW))
    (tmp_path / "jobs.jsonl").write_text(ROW)
    assert len(read_manifest(tmp_path / "jobs.jsonl")) == 1


def test_file_that_grows_while_it_is_read_ends(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(ROW * 3)
    found = 0
    with path.open("rb") as file, path.open("a") as growing:
        for _ in _text.json_rows(file, Columns()):
            found += 1
            growing.write(ROW)
            growing.flush()
            assert found < 10
    assert found == 3


def test_problems_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_check, "MAX_PROBLEMS", 50)
    (tmp_path / "jobs.jsonl").write_text("nonsense\n" * 10_000)
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "jobs.jsonl")
    assert len(caught.value.problems) == 51
    assert "the check ended here, after 50 problems" in str(caught.value.problems[-1])


# ---- links laid beforehand ----


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


async def exported(folder: Path, kind: Format) -> None:
    ledger = SQLiteLedger(folder.parent / "run.db")
    await ledger.open()
    content = Content('{"prompt": "She turns", "image": "https://pictures.example/a.png"}')
    await ledger.claim("", "one", content=content, model="kling-v2.1-pro", at=1.0)
    await ledger.aclose()
    await run_sync(lambda: export(ledger.path, folder, [kind]))


@pytest.mark.anyio
@pytest.mark.parametrize("dangling", [False, True], ids=["to a file", "to nothing"])
@pytest.mark.parametrize(
    ("kind", "part", "made"),
    [
        (Format.RESULTS, ".results.jsonl.part", "results.jsonl"),
        (Format.ERRORS, ".errors.jsonl.part", "errors.jsonl"),
        (Format.STATS, ".stats.json.part", "stats.json"),
        (Format.PARQUET, "results/part-00000.part", "results/part-00000.parquet"),
    ],
)
async def test_export_is_not_written_through_a_link(
    kind: Format, part: str, made: str, tmp_path: Path, victim: Path, *, dangling: bool
) -> None:
    folder = tmp_path / "out"
    (folder / part).parent.mkdir(parents=True)
    (folder / part).symlink_to(tmp_path / "new" if dangling else victim)
    await exported(folder, kind)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()
    assert (folder / made).is_file()
    assert not (folder / made).is_symlink()


@pytest.mark.parametrize("dangling", [False, True], ids=["to a file", "to nothing"])
def test_gallery_is_not_written_through_a_link(tmp_path: Path, victim: Path, *, dangling: bool) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / ".index.html.part").symlink_to(tmp_path / "new" if dangling else victim)
    page = freeze(Deck("run"), [], folder)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()
    assert page.is_file()
    assert not page.is_symlink()


@pytest.mark.parametrize("make", [device, os.mkfifo], ids=["device", "pipe"])
def test_files_beside_a_ledger_are_read_to_a_bound(make: Callable[[Path], None], tmp_path: Path) -> None:
    ledger = tmp_path / "run.db"
    make(tmp_path / "run.db.options")
    make(tmp_path / "run.db.closed")
    assert recorded_run(LedgerName(ledger), None) is None
    assert closed_by(ledger) == ""


def test_deeply_nested_options_are_none(tmp_path: Path) -> None:
    (tmp_path / "run.db.options").write_text("[" * 100_000)
    assert recorded_run(LedgerName(tmp_path / "run.db"), None) is None
