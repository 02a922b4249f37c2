"""Films through real sockets and real videos: the picture that is sent is the last frame of the clip before it."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import anyio.lowlevel
import anyio.to_thread
import av
import pytest
from PIL import Image, ImageChops, ImageStat

from kling_async import FirstFrame, FrameAt, InvalidJobError, Job, KlingSession, LastFrame, Prediction
from kling_async._session.link import Video
from kling_async.emulator import Emulator
from support.patience import PATIENCE_S
from support.pictures import png

pytestmark = pytest.mark.anyio


def service() -> Emulator:
    return Emulator(level="gold", speed=500, profile="video", timing=1.0)


def session(emulator: Emulator, **options: Any) -> KlingSession:
    return KlingSession(emulator.api_key, base_url=emulator.base_url, level="gold", clock=emulator.clock, **options)


def picture() -> bytes:
    """Return a picture with something to see everywhere, so that frames of a moving camera differ."""
    file = io.BytesIO()
    Image.radial_gradient("L").resize((320, 320)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def frames_of(video: Path) -> list[Image.Image]:
    with av.open(str(video)) as file:
        return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


async def sent_pictures(emulator: Emulator) -> dict[str, Image.Image]:
    """Return the first frame that was sent for each clip, by prompt."""
    found = {}
    async with aiohttp.ClientSession() as client:
        for record in emulator.predictions():
            async with client.get(str(record.inputs["image"])) as response:
                found[str(record.inputs["prompt"])] = Image.open(io.BytesIO(await response.read())).convert("RGB")
    return found


def difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return max(ImageStat.Stat(ImageChops.difference(one, other.convert("RGB"))).mean)


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "downloaded"])
async def test_picture_sent_is_the_last_frame_of_the_clip_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, saved: bool
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    shots = {
        "sail": Job(prompt="sail", image=LastFrame("dawn")),
        "dawn": Job(prompt="dawn", image=picture()),
        "back": Job(prompt="back", image=FirstFrame("dawn")),
        "mid": Job(prompt="mid", image=FrameAt("dawn", 2.0)),
        "night": Job(prompt="night", image=LastFrame("sail")),
    }
    async with service() as emulator:
        async with (
            session(emulator) as kling,
            kling.batch(shots, name="film", save_to=tmp_path if saved else None) as batch,
        ):
            outcomes = {outcome.key: outcome async for outcome in batch}
            assert all(outcome.ok for outcome in outcomes.values()), [each.error for each in outcomes.values()]
            if not saved:
                for outcome in outcomes.values():
                    await kling.save(outcome.unwrap(), tmp_path / f"{outcome.key}.mp4")
        pictures = await sent_pictures(emulator)
        assert len(emulator.charges()) == 5
    dawn, sail = frames_of(tmp_path / "dawn.mp4"), frames_of(tmp_path / "sail.mp4")
    expected = {"sail": dawn[-1], "back": dawn[0], "mid": dawn[48], "night": sail[-1]}
    for prompt, frame in expected.items():
        assert difference(pictures[prompt], frame) < 2, prompt
    assert difference(pictures["sail"], dawn[0]) > 2, "the frames differ, so that a wrong one is seen"
    assert not [*copies.glob("kling-frame-*")], "copies of videos are removed"


async def test_prediction_and_file_outside_of_a_batch(tmp_path: Path) -> None:
    async with service() as emulator, session(emulator, ledger=tmp_path / "run.db") as kling:
        first = await kling.generate(prompt="dawn", image=picture())
        second = await kling.generate(prompt="sail", image=LastFrame(first))
        file = await kling.save(second, tmp_path / "sail.mp4")
        await kling.generate(prompt="night", image=LastFrame(file.path))
        pictures = await sent_pictures(emulator)
        assert difference(pictures["night"], frames_of(file.path)[-1]) < 2
        await kling.save(first, tmp_path / "dawn.mp4")
        assert difference(pictures["sail"], frames_of(tmp_path / "dawn.mp4")[-1]) < 2


async def test_what_is_no_video_is_refused_unpaid(tmp_path: Path) -> None:
    picture = tmp_path / "picture.mp4"
    picture.write_bytes(png())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    async with service() as emulator, session(emulator) as kling:
        with pytest.raises(InvalidJobError, match=r"image: no such frame can be taken of the video"):
            await kling.generate(prompt="x", image=LastFrame(tmp_path / "broken.mp4"))
        with pytest.raises(InvalidJobError, match=r"image.of: cannot read"):
            await kling.generate(prompt="x", image=LastFrame(tmp_path / "gone.mp4"))
        with pytest.raises(InvalidJobError, match=r"image.of: expected a completed prediction"):
            await kling.generate(prompt="x", image=LastFrame(Prediction(id="x")))
        assert not emulator.charges()


async def test_a_folder_of_frames_is_gone_when_its_removal_was_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    rmtree = shutil.rmtree

    def slow(folder: Path, *, ignore_errors: bool) -> None:
        begun.set()
        go_on.wait(PATIENCE_S)
        rmtree(folder, ignore_errors=ignore_errors)

    async def download(video: Video, folder: Path) -> Path:
        del video
        (folder / "video.mp4").write_bytes(b"video")
        return folder / "video.mp4"

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    video = Video("the job 'a'", "p1", "https://outputs.example/a.mp4", None)
    file = await video.file(download)
    monkeypatch.setattr(shutil, "rmtree", slow)
    releasing = asyncio.create_task(video.release())
    assert await anyio.to_thread.run_sync(begun.wait, PATIENCE_S)
    releasing.cancel()
    await anyio.lowlevel.checkpoint()
    waits = not releasing.done()
    go_on.set()
    await asyncio.wait([releasing])
    assert waits
    assert releasing.cancelled()
    assert not file.parent.exists()


async def test_copies_of_killed_processes_are_removed_and_missing_ones_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[Path] = []

    async def download(video: Video, folder: Path) -> Path:
        del video
        downloads.append(folder)
        (folder / "video.mp4").write_bytes(b"video")
        return folder / "video.mp4"

    def made(name: str, unused_hours: float) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "video.mp4").write_bytes(b"video")
        at = time.time() - 3600 * unused_hours
        os.utime(tmp_path / name, (at, at))
        return tmp_path / name

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale = made("kling-frame-stale", 25)
    kept = {made("kling-frame-alive", 23), made("another-program", 25)}
    video = Video("the job 'a'", "p1", "https://outputs.example/a.mp4", None)
    file = await video.file(download)
    assert not stale.exists()
    assert {*tmp_path.iterdir()} == {*kept, file.parent}

    os.utime(file.parent, (0, 0))
    assert await video.file(download) == file
    await Video("the job 'b'", "p2", "https://outputs.example/b.mp4", None).file(download)
    assert file.is_file(), "it was used just now"
    file.unlink()
    again = await video.file(download)
    assert again.is_file()
    assert len(downloads) == 3
    assert not file.parent.exists()
    await video.release()
    assert {*tmp_path.iterdir()} == {*kept, downloads[1]}
