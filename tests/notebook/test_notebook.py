"""A notebook, executed by a kernel, and how sessions, batches and results show themselves in it."""

from __future__ import annotations

import base64
import os
import re
from decimal import Decimal
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kling_async import Job, KlingError, KlingSession, Outcome, SavedFile
from kling_async._core.html import MAX_EMBEDDED_BYTES
from kling_async.blocking import KlingSession as BlockingSession
from kling_async.testing import EmulatorThread
from support.pages import DOCS, blocks
from support.patience import PATIENCE_S
from support.pictures import png

HOSTILE = "<script>alert(1)</script>\"'&"


def html_of(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


# Of the kernel's client and its sockets, when their collection closes them.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_notebook_of_the_guide_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anna", "face", "lake"):
        (tmp_path / f"{name}.png").write_bytes(png())
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / ".jupyter"))
    cells = [
        nbformat.v4.new_code_cell(one.text)  # type: ignore[no-untyped-call]  # nbformat's
        for one in blocks(DOCS / "guides/notebooks.md")
        if one.language == "python"
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]  # nbformat's
    with EmulatorThread(profile="tiny", level="gold", speed=200) as server:
        for name, value in {**server.environment, "KLING_WATCH": "eager"}.items():
            monkeypatch.setenv(name, value)
        client = NotebookClient(
            notebook, timeout=int(PATIENCE_S), kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute(env=dict(os.environ))
        assert len(server.charges()) == 3 + 1
    opening, running, shown, outcome = map(html_of, cells[:4])
    assert "wavespeed" in opening
    assert re.search(r"✓ 3 done", running)
    assert shown.count("<video") == 3
    assert 'src="out/anna.mp4"' in shown
    assert '<progress value="3" max="3"' in shown
    assert outcome.count("<video") == 1


def test_text_is_escaped() -> None:
    job = Job(prompt="x", image="https://e.com/a.png")
    outcome = Outcome(job=job, key=HOSTILE, index=0, error=KlingError(HOSTILE), cost=Decimal(1))
    shown = outcome._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 2
    assert "<script" not in SavedFile(location=f"s3://bucket/{HOSTILE}.mp4", bytes=1, sha256="")._repr_html_()


def test_video_is_played_from_the_folder_or_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "notebooks"
    here.mkdir()
    monkeypatch.chdir(here)

    def shown(file: Path, size: int = 5) -> str:
        return SavedFile(location=file, bytes=size, sha256="")._repr_html_()

    inside = here / 'a "b" <c>#?.mp4'
    inside.write_bytes(b"video")
    assert 'src="a%20%22b%22%20%3Cc%3E%23%3F.mp4"' in shown(inside)
    outside = tmp_path / "other.mp4"
    outside.write_bytes(b"video")
    assert f'src="data:video/mp4;base64,{base64.b64encode(b"video").decode()}"' in shown(outside)
    assert "<video" not in shown(outside, MAX_EMBEDDED_BYTES + 1)
    assert "<video" not in shown(here / "gone.mp4")
    assert "other.mp4" in shown(outside, MAX_EMBEDDED_BYTES + 1)


def test_session_shows_its_state_without_its_key() -> None:
    for kling in (KlingSession("secret-key"), BlockingSession("secret-key")):
        shown = kling._repr_html_()
        assert "not open yet" in shown
        assert "bronze" in shown
        assert "secret" not in shown
