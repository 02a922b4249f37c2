"""`run --join` and `resume --join`: finished films are joined, and what others lack is named."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import av
import pytest
from anyio.to_thread import run_sync
from PIL import Image

from kling_async.cli.films import Films
from kling_async.emulator import Emulator, faults
from support.cli import Cli
from support.pictures import jpeg

if TYPE_CHECKING:
    from kling_async.cli.options import BatchOptions
    from kling_async.cli.work import Work

pytestmark = pytest.mark.anyio

BAY = (
    {"key": "night", "film": "bay", "prompt": "The lights come on", "continues": "sail"},
    {"key": "dawn", "film": "bay", "prompt": "Mist lifts", "image": "face.jpg"},
    {"key": "sail", "film": "bay", "prompt": "A boat, pan right", "continues": "dawn"},
)
ROAD = (
    {"key": "road", "prompt": "A road", "image": "face.jpg"},
    {"key": "hill", "prompt": "A hill", "continues": "road"},
)


def listed(folder: Path, *rows: Mapping[str, object]) -> str:
    (folder / "jobs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "jobs.jsonl"


def at(emulator: Emulator) -> dict[str, str]:
    return {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}


def films(stdout: str) -> Iterator[dict[str, object]]:
    for line in stdout.splitlines():
        found = json.loads(line)
        if "film" in found:
            yield found


async def test_finished_films_are_joined_and_unfinished_ones_named(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))
    path = listed(cli.folder, *BAY, *ROAD)
    folder = cli.folder / "videos" / "films"
    async with Emulator(speed=200, timing=10, profile="video") as emulator:
        words = ("--out", "videos", "--level", "gold", "--yes", "--join")
        run = partial(cli, "run", path, *words, **at(emulator))
        first = await run_sync(partial(run, "--budget", "1.10"))
        assert first.returncode == 1, first.stderr
        assert "Film: videos/films/bay.mp4, 3 clips, 14." in first.stdout, first.stdout
        assert "Film road was not joined: 1 of 2 clips missing: hill" in first.stdout
        assert [film.name for film in folder.iterdir()] == ["bay.mp4"]
        with av.open(str(folder / "bay.mp4")) as film:
            frames = [frame.to_ndarray(format="gray") for frame in film.decode(video=0)]
        with av.open(str(cli.folder / "videos" / "dawn.mp4")) as clip:
            opening = next(clip.decode(video=0)).to_ndarray(format="gray")
        with av.open(str(cli.folder / "videos" / "night.mp4")) as clip:
            end = list(clip.decode(video=0))[-1].to_ndarray(format="gray")
        assert (frames[0] == opening).all()
        assert (frames[-1] == end).all()
        charges, written = len(emulator.charges()), (folder / "bay.mp4").stat()
        assert charges == 4

        again = await run_sync(partial(run, "--json"))
        assert again.returncode == 0, again.stdout + again.stderr
        bay, road = films(again.stdout)
        assert (bay["film"], bay["keys"], bay["missing"]) == ("bay", ["dawn", "sail", "night"], [])
        assert isinstance(bay["joined"], dict)
        assert bay["joined"]["path"] == "videos/films/bay.mp4"
        assert (road["film"], road["keys"], road["missing"], road["error"]) == ("road", ["road", "hill"], [], None)
        assert len(emulator.charges()) == charges + 1
        kept = (folder / "bay.mp4").stat()
        assert (kept.st_ino, kept.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
        assert {film.name for film in folder.iterdir()} == {"bay.mp4", "road.mp4"}

        (folder / "bay.mp4").unlink()
        resumed = await run_sync(partial(cli, "resume", "videos/run.db", *words, "--crossfade", "0.5", **at(emulator)))
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert "Film: videos/films/bay.mp4, 3 clips, 14.0 s" in resumed.stdout
        assert "Films have the clips that the ledger has" in resumed.stdout
        assert "Films have the clips" not in first.stdout + again.stderr
        assert len(emulator.charges()) == charges + 1
    page = await run_sync(partial(cli, "gallery", "videos/run.db"))
    assert page.returncode == 0, page.stderr
    (data,) = re.findall(r'id="data">(.*?)</script>', (cli.folder / "videos/gallery/index.html").read_text("utf-8"))
    shown = json.loads(data)
    keys = {card["n"]: card["key"] for card in shown["cards"]}
    strips = {film["name"]: [keys[number] for number in film["clips"]] for film in shown["films"]}
    assert strips == {"bay": ["dawn", "sail", "night"], "road": ["road", "hill"]}


async def test_a_film_with_a_row_that_is_left_out_is_not_joined(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))
    wrong = {"key": "coda", "film": "bay", "prompt": "A gull", "image": "none.jpg"}
    path = listed(cli.folder, *BAY, wrong)
    words = ("--out", "videos", "--emulator", "--speed", "500", "--level", "gold", "--skip-invalid", "--join")
    done = await run_sync(partial(cli, "run", path, *words))
    assert "Film bay was not joined: 1 of 4 clips missing: coda" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert not (cli.folder / "videos" / "rehearsal" / "films").exists()


async def test_left_out_rows_of_any_form_are_missing_clips(cli: Cli) -> None:
    """Covers rows without keys, with the key of another row, and with labels that are read otherwise than written."""
    (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))
    good = [{"key": film, "film": film, "prompt": "x", "image": "face.jpg"} for film in ("bay", "road", "true", "ring")]
    bad: list[dict[str, object]] = [
        {"film": "bay", "prompt": "x", "image": "none.jpg"},
        {"film": " road ", "prompt": "x", "continues": "nobody"},
        {"key": "true", "film": True, "prompt": "x", "image": "face.jpg"},
        {"key": "late", "film": "bay", "prompt": "x", "continues": "none"},
        {"key": "here", "film": "ring", "prompt": "x", "continues": "there"},
        {"key": "there", "film": "ring", "prompt": "x", "continues": "here"},
    ]
    path = listed(cli.folder, *good, *bad)
    words = ("--out", "videos", "--emulator", "--speed", "500", "--level", "gold", "--skip-invalid", "--join", "--json")
    done = await run_sync(partial(cli, "run", path, *words))
    assert {str(film["film"]): film["missing"] for film in films(done.stdout)} == {
        "bay": ["left-out row 1", "late"],
        "road": ["left-out row 2"],
        "true": ["left-out row 3"],
        "ring": ["here", "there"],
    }, done.stdout + done.stderr
    assert not (cli.folder / "videos" / "rehearsal" / "films").exists()
    rows = [
        json.loads(line) for line in (cli.folder / "videos" / "rehearsal" / "errors.jsonl").read_text().splitlines()
    ]
    assert [row["_error"]["message"].partition(": ")[2] for row in rows][1:] == [
        "continues: continues 'nobody', which is no key of the same batch",
        "key: 'true' is already the key of line 3",
        "continues: continues 'none', which is no key of the same batch",
        "continues: continues itself: 'here' -> 'there' -> 'here'",
        "continues: continues 'here', which is left out",
    ]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ('{"key": "coda", "film": "bay", "prompt": "x"', "is not JSON: Expecting ',' delimiter"),
        ('{"key": "coda", "film": "bay", "film": "bay"}', "film: is given twice"),
        ('{"key": "coda", "film": "bay", "prompt": "x", "labels": "take 2"}', "labels: expected a mapping, got str"),
    ],
)
async def test_no_film_is_joined_beside_a_row_that_may_be_of_any(cli: Cli, row: str, wrong: str) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))
    path = listed(cli.folder, *ROAD)
    with (cli.folder / path).open("a") as file:
        file.write(f"{row}\n")
    words = ("--out", "videos", "--emulator", "--speed", "500", "--level", "gold", "--skip-invalid", "--join")
    done = await run_sync(partial(cli, "run", path, *words))
    said = f"Film road was not joined: 1 left-out row may be of any film (jobs.jsonl:3: {wrong}"
    assert said in done.stdout, done.stdout + done.stderr
    assert "): mend the list, and run it again" in done.stdout
    assert done.returncode == 1
    assert not (cli.folder / "videos" / "rehearsal" / "films").exists()


async def test_film_keeps_its_name_beside_a_row_with_a_repeated_key(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))
    path = listed(cli.folder, *ROAD, {**ROAD[1], "prompt": "Another hill"})
    words = ("--out", "videos", "--emulator", "--speed", "500", "--level", "gold", "--skip-invalid", "--join", "--json")
    done = await run_sync(partial(cli, "run", path, *words))
    found = [(film["film"], film["keys"], film["missing"]) for film in films(done.stdout)]
    again = "left-out row 1"
    assert found == [("road", ["road", "hill"], []), (again, ["road", again], [again])], done.stdout + done.stderr
    assert [film.name for film in (cli.folder / "videos" / "rehearsal" / "films").iterdir()] == ["road.mp4"]


async def test_resumed_film_has_the_order_of_its_list(cli: Cli) -> None:
    """Covers what a resume lists first, as it was not sent yet, and a clip that was made anew under its key."""
    (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))

    def rows(first: str) -> str:
        prompts = (("one", first), ("two", "x"), ("three", "refused"))
        return listed(
            cli.folder, *({"key": key, "film": "bay", "prompt": said, "image": "face.jpg"} for key, said in prompts)
        )

    words = ("--out", "videos", "--level", "gold", "--yes", "--join", "--json")
    async with Emulator(speed=200, timing=10, profile="tiny") as emulator:
        emulator.faults.add(
            "submit", faults.Status(400), when=lambda exchange: exchange.body.get("prompt") == "refused", times=1
        )
        first = await run_sync(partial(cli, "run", rows("a"), *words, **at(emulator)))
        assert [film["missing"] for film in films(first.stdout)] == [["three"]], first.stdout + first.stderr
        resumed = await run_sync(partial(cli, "resume", "videos/run.db", *words, **at(emulator)))
        assert [film["keys"] for film in films(resumed.stdout)] == [["one", "two", "three"]], resumed.stderr
        assert "Films have the clips that the ledger has" in resumed.stderr
        again = await run_sync(partial(cli, "run", rows("b"), "--redo", "one", *words, **at(emulator)))
        assert again.returncode == 0, again.stdout + again.stderr
        resumed = await run_sync(partial(cli, "resume", "videos/run.db", *words, **at(emulator)))
        assert [film["keys"] for film in films(resumed.stdout)] == [["one", "two", "three"]], resumed.stderr


async def test_left_out_rows_are_read_beside_the_event_loop(tmp_path: Path) -> None:
    options = SimpleNamespace(join=True, videos=tmp_path, crossfade=0.0)
    threads: list[int] = []

    def rows() -> Iterator[dict[str, object]]:
        threads.append(threading.get_ident())
        yield {"key": "a", "labels": {"film": "bay"}}
        yield {"_error": {"message": "jobs.jsonl:2: is not JSON"}}

    work = SimpleNamespace(order=None, invalid=rows)
    (made,) = await Films(cast("BatchOptions", options)).join(cast("Work", work))
    assert (made.strip.name, made.missing) == ("bay", ("a",))
    assert made.line["unread"] == 1
    assert threads
    assert threading.get_ident() not in threads


async def test_row_begins_with_the_frame_at_a_moment_of_another_one_and_is_another_film(cli: Cli) -> None:
    # With something to see everywhere, so that the frames of a moving camera differ.
    Image.radial_gradient("L").resize((320, 320)).convert("RGB").save(cli.folder / "face.jpg")
    path = listed(cli.folder, *ROAD, {"key": "lake", "prompt": "A lake", "continues": "road", "continues_at": 2.5})
    words = ("--out", "videos", "--level", "gold", "--yes", "--join", "--json")
    async with Emulator(speed=200, timing=10, profile="video") as emulator:
        done = await run_sync(partial(cli, "run", path, *words, **at(emulator)))
        assert done.returncode == 0, done.stdout + done.stderr
        assert [film["keys"] for film in films(done.stdout)] == [["road", "hill"]]
        assert len({record.inputs["image"] for record in emulator.predictions()}) == 3, "each has another picture"


async def test_clips_that_do_not_fit_together_are_told(cli: Cli) -> None:
    (cli.folder / "wide.jpg").write_bytes(jpeg(480, 320))
    (cli.folder / "face.jpg").write_bytes(jpeg(320, 320))
    pictures = ("face.jpg", "wide.jpg")
    path = listed(cli.folder, *({"key": each, "film": "a/b", "prompt": "x", "image": each} for each in pictures))
    words = ("--out", "videos", "--emulator", "--speed", "500", "--level", "gold", "--join")
    done = await run_sync(partial(cli, "run", path, *words))
    assert (done.returncode, "Film a/b was not joined: " in done.stdout) == (1, True), done.stdout + done.stderr
    assert list((cli.folder / "videos" / "rehearsal").glob("films/*")) == []


async def test_what_cannot_be_joined_is_refused_before_anything_is_sent(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    path = listed(cli.folder, *ROAD)
    hidden = cli.folder / "hidden" / "av"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')")
    without = {"PYTHONPATH": f"{hidden.parent}:{cli.env['PYTHONPATH']}"}
    async with Emulator(profile="tiny") as emulator:
        refused: list[tuple[tuple[str, ...], dict[str, str], str]] = [
            (("--out", "videos", "--crossfade", "0.5"), {}, "--crossfade: expected --join with it"),
            (("--out", "s3://bucket/videos", "--join"), {}, "--join: expected a folder as --out"),
            (("--out", "videos", "--join"), without, "pip install 'kling-async[film]'"),
        ]
        for words, env, said in refused:
            done = await run_sync(partial(cli, "run", path, "--yes", *words, **at(emulator), **env))
            assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert emulator.requests == ()
    assert not Path(cli.folder / "videos" / "run.db").exists()
