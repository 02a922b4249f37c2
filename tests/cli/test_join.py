"""`join`: clips become one film."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from support.cli import Cli
from support.ffmpeg import make_clip


@pytest.fixture
def clips(cli: Cli) -> list[str]:
    for number in range(3):
        make_clip(cli.folder / f"{number}.mp4", 23 * number, hertz=500)
    return [f"{number}.mp4" for number in range(3)]


def test_join_says_what_was_made(cli: Cli, clips: list[str]) -> None:
    made = cli("join", *clips, "--out", "film.mp4")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("film.mp4: 3 clips, 2.92 seconds, ")
    assert "copied without a new encoding" in made.stdout
    other = cli("join", *clips, "--out", "film.mp4", "--crossfade", "0.25", "--json")
    shown = json.loads(other.stdout)
    assert shown["path"] == f"film-{shown['sha256'][:8]}.mp4"
    assert (shown["clips"], shown["seconds"], shown["encoded"]) == (3, 2.5, True)
    assert shown["bytes"] == (cli.folder / shown["path"]).stat().st_size
    again = cli("join", *clips, "--out", "film.mp4", "--crossfade", "0.25")
    assert "film.mp4 has another content and was kept" in again.stdout
    replaced = cli("join", *clips, "--out", "film.mp4", "--crossfade", "0.25", "--replace")
    assert replaced.stdout.startswith("film.mp4: 3 clips, 2.50 seconds, ")
    assert replaced.stdout.count("\n") == 1


def test_join_says_what_is_wrong(cli: Cli, clips: list[str]) -> None:
    make_clip(cli.folder / "wide.mp4", size="192x96")
    (cli.folder / "folder.mp4").mkdir()
    before = set(cli.folder.iterdir())
    for words, status, said in (
        (("0.mp4", "wide.mp4", "--out", "film.mp4"), 2, "on the command line --fit"),
        (("0.mp4", "none.mp4", "--out", "film.mp4"), 2, "none.mp4: expected a video (MP4, MOV, WebM)"),
        (("0.mp4", "--out", "0.mp4"), 2, "expected another file than the clips"),
        (("0.mp4", "--out", "film.avi"), 2, "expected a file ending in .mp4"),
        (("0.mp4", "--out", "folder.mp4"), 3, "cannot write folder.mp4: Is a directory"),
        (("--out", "film.mp4"), 2, "CLIP"),
    ):
        ran = cli("join", *words)
        assert (ran.returncode, ran.stdout) == (status, ""), ran.stderr
        assert said in ran.stderr
        assert "Traceback" not in ran.stderr
    assert set(cli.folder.iterdir()) == before
    fitted = cli("join", "0.mp4", "wide.mp4", "--fit", "--out", "film.mp4")
    assert (fitted.returncode, fitted.stderr) == (0, "")


def test_interrupt_leaves_no_film(cli: Cli) -> None:
    make_clip(cli.folder / "long.mp4", count=24 * 20, options=("-c:v", "libx264", "-preset", "ultrafast"))
    command = cli.start("join", *["long.mp4"] * 40, "--crossfade", "0.25", "--out", "film.mp4")
    while command.poll() is None and not list(cli.folder.glob(".film*.part")):
        pass
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate()
    assert (command.returncode, said) == (130, "Interrupted: film.mp4 was not written.\n")
    assert {path.name for path in Path(cli.folder).iterdir()} == {"long.mp4"}
