"""Temporary directories of killed emulators."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kling_async.emulator.scratch import Scratch
from support.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no file locks on Windows")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


HOLD = """
import sys, tempfile, time
from kling_async.emulator.scratch import Scratch
tempfile.tempdir = sys.argv[1]
scratch = Scratch.make()
(scratch.path / "x.mp4").write_bytes(b"x")
print(scratch.path, flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_make_removes_directories_of_dead_processes_only(folder: Path) -> None:
    killed, abandoned = hold(folder)
    running, in_use = hold(folder)
    try:
        assert abandoned.is_dir()
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=PATIENCE_S)
        assert abandoned.is_dir()
        scratch = Scratch.make()
        assert not abandoned.exists()
        assert (in_use / "x.mp4").exists()
        scratch.remove()
        assert list(folder.iterdir()) == [in_use]
    finally:
        running.kill()
        running.communicate(timeout=PATIENCE_S)


def test_make_keeps_links_and_directories_without_lock(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / ".lock").touch()
    (folder / "kling-async-emulator-link").symlink_to(elsewhere)
    older = folder / "kling-async-emulator-older"  # without a lock file, as while it is being created
    older.mkdir()
    odd = folder / "kling-async-emulator-odd"
    odd.mkdir()
    (odd / ".lock").symlink_to(elsewhere / ".lock")
    (folder / "kling-async-emulator-file").touch()
    other = folder / "somebody-elses"
    other.mkdir()
    (other / ".lock").touch()
    before = sorted(folder.iterdir())
    scratch = Scratch.make()
    scratch.remove()
    assert sorted(folder.iterdir()) == before
    assert (elsewhere / ".lock").exists()


def test_make_keeps_directories_of_other_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = folder / "kling-async-emulator-theirs"
    theirs.mkdir()
    (theirs / ".lock").touch()
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    scratch = Scratch.make()
    assert theirs.exists()
    monkeypatch.setattr(os, "getuid", lambda: real)
    Scratch.make().remove()
    assert not theirs.exists()
    assert scratch.path.exists()
    scratch.remove()
