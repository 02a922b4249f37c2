"""`demo` and `emulator`."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import av
import pytest
from PIL import Image
from rich.console import Console

from kling_async._images.preflight import preflight
from kling_async.cli.demo import _PICTURE_NAMES, _PICTURES, _print_next_steps, plan_jobs
from kling_async.manifest import read_manifest
from support.cli import Cli
from support.patience import PATIENCE_S


def test_quick_demo_makes_real_videos(cli: Cli) -> None:
    done = cli("demo", "--quick", "--out", "kling-demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stdout)
    folder = cli.folder / "kling-demo"
    videos = sorted(folder.glob("*.mp4"))
    assert [video.stem for video in videos] == [
        "dawn-standard",
        "dawn-start-end",
        "desert-gptproto",
        "film-1",
        "film-2",
        "film-3",
        "film",
    ]
    for video in videos:
        with av.open(str(video)) as container:
            # A frame of the film at each of its two cuts is seen once.
            assert container.duration == pytest.approx(14_916_667 if video.stem == "film" else 5_000_000, abs=1000)
            shown: Image.Image = next(container.decode(video=0)).to_image()  # type: ignore[no-untyped-call]  # PyAV's types
            # A rendered picture, unlike a placeholder, has many colours.
            assert len(set(shown.resize((16, 16)).get_flattened_data())) > 30
    assert "desert-failing failed: the service refunds a failed prediction" in done.stdout
    assert "The emulated service charged $2.15 for 7 predictions and refunded $0.25" in done.stdout
    assert "6 videos in kling-demo" in done.stdout
    assert "Film: kling-demo/film.mp4, 3 clips joined, 14.9 s" in done.stdout
    assert "export WAVESPEED_API_KEY" in done.stdout
    keys = ["dawn-standard", "dawn-start-end", "film-1", "film-2", "film-3"]
    jobs = dict(read_manifest(folder / "jobs.jsonl"))
    assert [*jobs] == keys
    assert [job.parents for job in jobs.values()] == [(), (), (), ("film-1",), ("film-2",)]
    assert {job.labels.get("film") for key, job in jobs.items() if key and key.startswith("film-")} == {"film"}


def test_demo_prints_commands_that_can_be_pasted() -> None:
    text = io.StringIO()
    _print_next_steps(Console(file=text, width=200), Path("my demo/jobs.jsonl"))
    found = [shlex.split(line)[2] for line in text.getvalue().splitlines() if line.startswith("  kling-async run")]
    assert found == ["my demo/jobs.jsonl"] * 2


def test_demo_uses_given_pictures(cli: Cli) -> None:
    paint_one(cli.folder / "mine.png")
    done = cli("demo", "mine.png", "--out", "out", "--jobs", "1", "--speed", "200")
    assert done.returncode == 0
    names = {f"{stem}.mp4" for stem in ("mine-standard", "film-1", "film-2", "film-3", "film")}
    assert {path.name for path in (cli.folder / "out").iterdir()} == names
    assert "1, yours" in done.stdout


def paint_one(path: Path) -> None:
    Image.radial_gradient("L").resize((400, 400)).convert("RGB").save(path)


def test_demo_mixes_models_and_keys_are_unique(tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    jobs = plan_jobs(pictures, 40)
    assert len(jobs) == 40
    used = Counter((provider, job.row.name, job.duration) for provider, job in jobs.values())
    assert {name for _, name, _ in used} == {
        "kling-v2.1-standard",
        "kling-v2.1-pro",
        "kling-v2.1-master",
        "kling-v2.1-pro-start-end-frame",
    }
    assert {provider for provider, _, _ in used} == {"wavespeed", "gptproto"}
    assert {duration for _, _, duration in used} == {5, 10}


def test_shipped_pictures_are_valid_inputs() -> None:
    assert {file.name for file in _PICTURES.iterdir()} == set(_PICTURE_NAMES)
    for name in _PICTURE_NAMES:
        facts = preflight(_PICTURES / name)
        assert (facts.type, facts.warnings) == ("image/jpeg", ())
        assert (_PICTURES / name).stat().st_size < 25_000


def test_start_and_end_frames_differ() -> None:
    pictures = [_PICTURES / name for name in _PICTURE_NAMES]
    ends = [job for _, job in plan_jobs(pictures, 12).values() if job.end_image is not None]
    assert ends
    assert all(job.image != job.end_image for job in ends)


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)],
)
def test_interrupted_demo_exits_cleanly(cli: Cli, numbers: tuple[signal.Signals, ...]) -> None:
    with cli.start("demo", "--out", "kling-demo", "--speed", "1") as process:
        cli.wait_for(process, "accepted")
        for number in numbers:
            process.send_signal(number)
        rest, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Nothing was spent" in rest
    assert "Traceback" not in rest
    assert [path.name for path in (cli.folder / "kling-demo").iterdir()] == ["pictures"]


def test_emulator_prints_exports_and_answers(cli: Cli) -> None:
    words = ("emulator", "--port", "0", "--gptproto-port", "0", "--profile", "tiny")
    with cli.start(*words) as process:
        printed = cli.wait_for(process, "Ctrl-C")
        found = re.search(r"^export WAVESPEED_BASE_URL=(\S+) WAVESPEED_API_KEY=(\S+)$", printed, re.MULTILINE)
        assert found is not None
        request = urllib.request.Request(f"{found[1]}/api/v3/balance", headers={"Authorization": f"Bearer {found[2]}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
            assert json.load(reply)["data"]["balance"] == 1000
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "The emulator has ended." in rest


def test_emulator_chaos_option_sets_fault_rate(cli: Cli) -> None:
    words = ("emulator", "--port", "0", "--gptproto-port", "0", "--profile", "tiny", "--chaos", "0.25", "--seed", "7")
    with cli.start(*words) as process:
        printed = cli.wait_for(process, "Ctrl-C")
        assert "25% of all requests meet a fault" in printed
        found = re.search(r"^export WAVESPEED_BASE_URL=(\S+)", printed, re.MULTILINE)
        assert found is not None
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"{found[1]}/__emulator__/chaos"
        ) as reply:
            chaos = json.load(reply)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert (chaos["rate"], chaos["seed"]) == (0.25, 7)
    assert cli("emulator", "--chaos", "2").returncode == 2
