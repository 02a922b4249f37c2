"""Rendered videos, checked by decoding them."""

from __future__ import annotations

import contextlib
import io
import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import anyio.to_thread
import attrs
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.conftest import Api


av = pytest.importorskip("av")
images = pytest.importorskip("PIL.Image")
chops = pytest.importorskip("PIL.ImageChops")
stat = pytest.importorskip("PIL.ImageStat")

from kling_async.emulator import Emulator, ManualClock, MissingRendererError, renderer  # noqa: E402 -- needs both
from kling_async.emulator.renderer import Scene, frame_size, render  # noqa: E402 -- needs both
from kling_async.emulator.tiny import TINY_MP4  # noqa: E402 -- after the imports above
from support.patience import PATIENCE_S  # noqa: E402 -- after the imports above

pytestmark = pytest.mark.anyio


def picture(width: int, height: int, colour: tuple[int, int, int], *, orientation: int | None = None) -> bytes:
    ramp = images.linear_gradient("L").resize((width, height))
    image = images.merge("RGB", [ramp.point([value * part // 255 for value in range(256)]) for part in colour])
    exif = images.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def frames(content: bytes) -> tuple[float, list[Any]]:
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        return container.duration / 1_000_000, [frame.to_image() for frame in container.decode(stream)]


def mean(image: Any) -> tuple[int, int, int]:
    red, green, blue = image.resize((1, 1), images.Resampling.BOX).getpixel((0, 0))
    return red, green, blue


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"profile": "video"}


async def download(api: Api, clock: ManualClock, model: str, **inputs: Any) -> bytes:
    prediction = (await api.submit(model, **inputs)).data
    await clock.advance(60)
    [url] = (await api.result(prediction["id"])).data["outputs"]
    async with api.http.get(url) as response:
        assert response.status == 200
        return await response.read()


async def test_video_shows_the_picture_in_motion(api: Api, clock: ManualClock) -> None:
    image = await api.upload(picture(640, 360, (255, 128, 0)))
    content = await download(api, clock, "kwaivgi/kling-v2.1-i2v-standard", image=image, duration=5)
    assert content.find(b"moov") < content.find(b"mdat")
    seconds, seen = frames(content)
    assert (seconds, len(seen), seen[0].size) == (5.0, 120, (852, 480))
    red, green, blue = mean(seen[0])
    assert abs(red - 127) < 8
    assert abs(green - 64) < 8
    assert blue < 8
    assert seen[0].tobytes() != seen[60].tobytes() != seen[119].tobytes()


async def test_video_follows_exif_orientation(api: Api, clock: ManualClock) -> None:
    # Orientation 6 means rotated: the picture is 400 pixels wide and 600 high.
    image = await api.upload(picture(600, 400, (0, 200, 0), orientation=6))
    content = await download(api, clock, "kwaivgi/kling-v2.1-i2v-pro", image=image, duration=10, prompt="zoom out")
    seconds, seen = frames(content)
    assert (seconds, len(seen), seen[0].size) == (10.0, 240, (596, 896))
    assert seen[0].getpixel((20, 448))[1] > seen[0].getpixel((570, 448))[1]


async def test_video_fades_from_start_to_end_frame(api: Api, clock: ManualClock) -> None:
    start = await api.upload(picture(480, 480, (255, 0, 0)))
    end = await api.upload(picture(640, 480, (0, 0, 255)))
    model = "kwaivgi/kling-v2.1-i2v-pro/start-end-frame"
    _, seen = frames(await download(api, clock, model, image=start, end_image=end))
    (first_red, _, first_blue), (last_red, _, last_blue) = mean(seen[0]), mean(seen[-1])
    assert first_red > 100
    assert first_blue < 20
    assert last_blue > 100
    assert last_red < 20
    red, _, blue = mean(seen[66])
    assert 30 < red < 100
    assert 30 < blue < 100


PROMPTS = ("zoom out", "pan left", "tilt up", "a cat", "yy")


def detailed(colour: str, size: tuple[int, int] = (448, 336)) -> Any:
    noise = images.effect_noise((28, 21), 90).resize(size, images.Resampling.BICUBIC)
    return images.merge(
        "RGB", [noise if channel in colour else noise.point(lambda value: value // 4) for channel in "rgb"]
    )


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def apart(one: Any, other: Any) -> float:
    """Return the mean difference of two pictures, of 255."""
    return float(sum(stat.Stat(chops.difference(one, other.resize(one.size))).mean) / 3)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_first_frame_is_the_picture_and_the_last_one_is_another(tmp_path: Path, prompt: str) -> None:
    start = detailed("r")
    render(Scene((png(start),), 1, prompt=prompt), tmp_path / "a.mp4")
    _, seen = frames((tmp_path / "a.mp4").read_bytes())
    assert apart(seen[0], start) < 3, "but for the encoding, and for its size"
    assert apart(seen[-1], start) > 10
    steps = [apart(one, other) for one, other in pairwise(seen)]
    assert max(steps) < 12, "it moves, and does not jump"
    end = detailed("b")
    render(Scene((png(start), png(end)), 1, prompt=prompt), tmp_path / "a.mp4")
    _, seen = frames((tmp_path / "a.mp4").read_bytes())
    assert apart(seen[0], start) < 3
    assert apart(seen[-1], end) < 3


async def test_sound_is_a_track_of_the_video(api: Api, clock: ManualClock) -> None:
    image = await api.upload(picture(400, 300, (255, 128, 0)))
    model = "kwaivgi/kling-video-o3-pro/image-to-video"
    for sound in (True, False):
        content = await download(api, clock, model, image=image, duration=3, sound=sound)
        with av.open(io.BytesIO(content)) as container:
            video, heard = container.streams.video[0], container.streams.audio
            assert len(heard) == sound
            if sound:
                assert heard[0].codec_context.name == "aac"
                assert abs(heard[0].duration * heard[0].time_base - video.duration * video.time_base) < 1 / 24
                loudest = max(abs(frame.to_ndarray()).max() for frame in container.decode(heard[0]))
                assert 0.05 < loudest < 0.5
    assert Scene((b"x",), 5, sound=True).digest != Scene((b"x",), 5).digest
    assert Scene((b"x",), 5, prompt="a").tone_hz != Scene((b"x",), 5, prompt="b").tone_hz


async def test_equal_scenes_are_rendered_once(
    api: Api, emu: Emulator, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Path] = []

    def recorded_render(scene: Scene, target: Path, stop: threading.Event) -> None:
        rendered.append(target)
        render(scene, target, stop)

    monkeypatch.setattr(renderer, "render", recorded_render)
    content = picture(400, 300, (9, 9, 9))
    ids = [(await api.submit(image=await api.upload(content))).data["id"] for _ in range(3)]
    await clock.advance(60)
    downloads: list[tuple[str, bytes]] = []

    async def fetch(prediction_id: Any) -> None:
        [url] = (await api.result(prediction_id)).data["outputs"]
        async with api.http.get(url, headers={"Range": "bytes=0-99"}) as response:
            downloads.append((response.headers["ETag"], await response.read()))

    async with anyio.create_task_group() as group:
        for prediction_id in ids:
            group.start_soon(fetch, prediction_id)
    assert len(rendered) == 1
    assert len(set(downloads)) == 1
    directory = rendered[0].parent
    assert directory.is_dir()
    assert emu._service.renderer is not None
    await emu._service.renderer.close()
    assert not directory.exists()


async def test_closing_aborts_rendering(api: Api, clock: ManualClock) -> None:
    statuses: list[int] = []
    async with (
        anyio.create_task_group() as group,
        Emulator(clock=clock, resolution="full", timing=1.0, level="ultra") as emu,
    ):
        own = attrs.evolve(api, emu=emu, base=emu.base_url)
        assert emu._service.renderer is not None
        directory = emu._service.renderer._directory

        async def fetch(width: int) -> None:
            image = await own.upload(picture(width, 400, (9, 9, 9)))
            prediction = (await own.submit(image=image, duration=10)).data
            await clock.advance(2)
            [url] = (await own.result(prediction["id"])).data["outputs"]
            with contextlib.suppress(aiohttp.ClientError):
                async with api.http.get(url) as response:
                    statuses.append(response.status)

        for width in (500, 600, 700):
            group.start_soon(fetch, width)
        with anyio.fail_after(PATIENCE_S):
            while len(list(await anyio.to_thread.run_sync(lambda: list(directory.iterdir())))) < 2:  # noqa: ASYNC110 -- threads create the files
                await anyio.sleep(0.01)
    assert not directory.exists()
    assert 200 not in statuses


@pytest.mark.parametrize("settings", [{"profile": "video", "cache_bytes": 1}])
async def test_cache_evicts_above_capacity(api: Api, emu: Emulator, clock: ManualClock) -> None:
    uploads = [await api.upload(picture(400, 300, (shade, 0, 0))) for shade in (10, 200)]
    for image in uploads:
        await download(api, clock, "kwaivgi/kling-v2.1-i2v-standard", image=image)
    assert emu._service.renderer is not None
    directory = emu._service.renderer._directory
    assert directory is not None
    assert len(list(directory.glob("*.mp4"))) == 1
    await download(api, clock, "kwaivgi/kling-v2.1-i2v-standard", image=uploads[0])


def test_frame_size_keeps_aspect_ratio() -> None:
    # Measured at the real service: 4:3 becomes 1660x1244, and 16:9 fills 1080p.
    assert frame_size(4000, 3000, "1080p", "full") == (1660, 1244)
    assert frame_size(1600, 900, "1080p", "full") == (1920, 1080)
    assert frame_size(1600, 900, "720p", "full") == (1280, 720)
    assert frame_size(10000, 300, "720p", "small") == (852, 24)


def test_clip_is_continued_from_its_last_frame(tmp_path: Path) -> None:
    """In its own size, to a last frame if there is one; what cannot be decoded is left out."""
    last = picture(400, 300, (0, 255, 0))
    render(Scene((last,), 1, clip=TINY_MP4), tmp_path / "a.mp4")
    before = frames(TINY_MP4)[1]
    _, seen = frames((tmp_path / "a.mp4").read_bytes())
    assert len(seen) == len(before) + 24
    assert {image.size for image in seen} == {before[0].size}
    for place in (0, len(before) - 1, len(before)):
        shown, source = mean(seen[place]), mean(before[min(place, len(before) - 1)])
        assert all(abs(one - other) < 25 for one, other in zip(shown, source, strict=True)), place
    assert mean(seen[-1])[1] > 2 * max(mean(seen[-1])[0], 20)
    render(Scene((last,), 1, clip=b"no video"), tmp_path / "a.mp4")
    assert len(frames((tmp_path / "a.mp4").read_bytes())[1]) == 24
    render(Scene((), 1, clip=TINY_MP4), tmp_path / "a.mp4")
    _, seen = frames((tmp_path / "a.mp4").read_bytes())
    assert apart(seen[len(before)], seen[len(before) - 1]) < apart(seen[-1], seen[len(before) - 1]) / 2, "it goes on"
    assert Scene((last,), 1, clip=b"a").digest != Scene((last,), 1, clip=b"b").digest != Scene((last,), 1).digest


def test_scene_selects_move_by_prompt_and_hashes_inputs() -> None:
    left = Scene((b"x",), 5, prompt="The camera pans left over the bay").move
    assert left.across[0] > left.across[1]
    assert Scene((b"x",), 5, prompt="a cat").digest == Scene((b"x",), 5, prompt="a cat").digest
    assert Scene((b"x",), 5).digest != Scene((b"x",), 10).digest
    assert Scene((b"x",), 5).digest != Scene((b"y",), 5).digest


def test_render_supports_transparent_and_missing_pictures(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    images.new("RGBA", (400, 300), (255, 0, 0, 0)).save(buffer, "PNG")
    for pictures in ((buffer.getvalue(),), ()):
        render(Scene(pictures, 3), tmp_path / "a.mp4")
        _, seen = frames((tmp_path / "a.mp4").read_bytes())
        assert len(seen) == 72
    render(Scene((buffer.getvalue(),), 3), tmp_path / "a.mp4")
    assert max(mean(frames((tmp_path / "a.mp4").read_bytes())[1][0])) < 5


def test_tiny_mp4_is_decodable() -> None:
    seconds, seen = frames(TINY_MP4)
    assert (seconds, len(seen)) == (5.0, 20)
    assert len(TINY_MP4) < 4096


def test_video_profile_without_extra_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "av" else object())
    with pytest.raises(MissingRendererError, match=r"kling-async\[emulator\]"):
        Emulator(profile="video")
    Emulator(profile="tiny")
