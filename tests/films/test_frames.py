"""Frames of clips, compared with those of another ffmpeg."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kling_async import VideoError
from kling_async._core.video_frames import Position
from kling_async.films import frames, read_frame
from kling_async.films.frames import extract_frame
from support.ffmpeg import Pixels, difference, ffmpeg, frames_of, make_clip, source

MATRICES = {"bt601": "smpte170m", "bt709": "bt709"}


def picture(path: Path, position: Position = "last") -> Pixels:
    return np.asarray(Image.open(io.BytesIO(extract_frame(path, position))).convert("RGB")).astype(np.int16)


def place(path: Path, position: Position, **size: int) -> int:
    """Return the number of the frame, from the end if it is the last one; it has to be the only one that is alike."""
    found, every = picture(path, position), frames_of(path, **size)
    differences = [difference(found, one) for one in every]
    nearest = int(np.argmin(differences))
    assert differences[nearest] < 2
    assert sorted(differences)[1] > 3, "the neighbours look otherwise"
    return nearest if position != "last" else nearest - len(every)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuv444p"])
@pytest.mark.parametrize("values", ["tv", "pc"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_are_those_of_another_ffmpeg(tmp_path: Path, matrix: str, values: str, pixels: str) -> None:
    tags = f"colorspace={MATRICES[matrix]}:color_primaries={MATRICES[matrix]}:color_trc={MATRICES[matrix]}"
    filters = f"scale=out_color_matrix={matrix}:out_range={values},format={pixels},setparams={tags}:range={values}"
    clip = make_clip(tmp_path / "a.mp4", count=12, filters=filters)
    every = frames_of(clip)
    assert difference(picture(clip), every[-1]) < 1.3
    assert np.abs(picture(clip) - every[-1]).max() <= 5
    # A wrong matrix or range would not be seen in greys alone: compared with the colours that were put in.
    raw = ffmpeg(*source(), "-frames:v", "12", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    original = np.frombuffer(raw, np.uint8).reshape(-1, 96, 128, 3)[-1]
    assert np.abs((picture(clip) - original).mean((0, 1))).max() < 1.2


@pytest.mark.parametrize(("size", "matrix"), [((160, 90), "bt601"), ((1280, 720), "bt709"), ((720, 1280), "bt709")])
def test_matrix_that_is_not_named_follows_the_size(tmp_path: Path, size: tuple[int, int], matrix: str) -> None:
    shape = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p,setparams=colorspace=unknown"
    options = ("-c:v", "libx264", "-preset", "ultrafast", "-colorspace", "unknown")
    red = ("-f", "lavfi", "-i", f"color=red:s={size[0]}x{size[1]}:r=24")
    ffmpeg(*red, "-vf", shape, *options, "-frames:v", "2", str(tmp_path / "a.mp4"))
    assert np.abs(picture(tmp_path / "a.mp4").mean((0, 1)) - (255, 0, 0)).max() < 4


@pytest.mark.parametrize("flip", [(), ("-display_hflip",), ("-display_vflip",)])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_picture_is_upright(tmp_path: Path, turn: int, flip: tuple[str, ...]) -> None:
    plain = make_clip(tmp_path / "plain.mp4", count=4)
    ffmpeg("-display_rotation", str(turn), *flip, "-i", str(plain), "-c", "copy", str(tmp_path / "a.mp4"))
    size = {"width": 128, "height": 96} if turn % 180 == 0 else {"width": 96, "height": 128}
    assert place(tmp_path / "a.mp4", "last", **size) == -1


def test_other_turns_are_refused(tmp_path: Path) -> None:
    plain = make_clip(tmp_path / "plain.mp4", count=4)
    ffmpeg("-display_rotation", "30", "-i", str(plain), "-c", "copy", str(tmp_path / "a.mp4"))
    with pytest.raises(VideoError, match="multiple of 90 degrees"):
        extract_frame(tmp_path / "a.mp4", "last")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("-ss", "0.3", "-i", "plain.mp4", "-c", "copy"), id="edit list at the beginning"),
        pytest.param(("-i", "plain.mp4", "-t", "0.55", "-c", "copy"), id="edit list at the end"),
        pytest.param(("-i", "plain.mp4", "-c", "copy", "-movflags", "frag_keyframe+empty_moov"), id="fragments"),
        pytest.param(("-i", "plain.mp4", "-vf", "setpts='N*N/24/24/TB'", "-fps_mode", "vfr"), id="variable rate"),
        pytest.param((*source(), "-t", "3", "-g", "30", "-x264-params", "open-gop=1:bframes=3"), id="open groups"),
        pytest.param((*source(), "-t", "1", "-g", "1"), id="key frames only"),
        pytest.param(("-i", "plain.mp4", "-f", "lavfi", "-i", "sine=d=3", "-c:v", "copy"), id="longer sound"),
    ],
)
@pytest.mark.parametrize(("position", "number"), [("first", 0), ("last", -1)])
def test_frame_is_exact(
    tmp_path: Path, options: tuple[str, ...], position: Position, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(Path("plain.mp4"))
    ffmpeg(*options, *(() if "copy" in options else ("-pix_fmt", "yuv420p")), "a.mp4")
    assert place(tmp_path / "a.mp4", position) == number


@pytest.mark.parametrize("seconds", [0, 0.04, 1 / 24, 2 / 24, 7 / 24, 0.5, 0.999])
def test_frame_at_a_moment_is_the_one_that_is_shown(tmp_path: Path, seconds: float) -> None:
    clip = make_clip(tmp_path / "a.mp4", options=("-c:v", "libx264", "-bf", "3", "-g", "9", "-crf", "12"))
    assert place(clip, seconds) == int(seconds * 24 + 1e-6)


@pytest.mark.parametrize(
    ("seconds", "said"), [(1.0, "below 1.000"), (99, "below 1.000"), (-1, "from 0"), (np.nan, "0")]
)
def test_moment_beyond_the_clip_is_refused(tmp_path: Path, seconds: float, said: str) -> None:
    with pytest.raises(VideoError, match=said):
        extract_frame(make_clip(tmp_path / "a.mp4"), seconds)


@pytest.mark.parametrize(("width", "height"), [(65, 63), (64, 63)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    filters = f"format=gbrp,scale={width}:{height},setsar=1,format=yuv420p"
    clip = make_clip(tmp_path / "a.webm", count=6, filters=filters, options=("-c:v", "libvpx-vp9", "-crf", "12"))
    assert difference(picture(clip), frames_of(clip, width, height)[-1]) < 1.3


def test_pixels_become_square(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", filters="setsar=4/3,format=yuv420p", count=4)
    assert Image.open(io.BytesIO(extract_frame(clip, "last"))).size == (171, 96)


def test_header_with_a_wrong_length(tmp_path: Path) -> None:
    """The container says that it lasts for an hour, and then that it is empty."""
    content = make_clip(tmp_path / "a.mp4").read_bytes()
    expected = extract_frame(tmp_path / "a.mp4", "last")
    for seconds in (3600, 0):
        changed = bytearray(content)
        for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
            at = changed.find(box) + offset
            changed[at : at + 4] = (seconds * 12_800).to_bytes(4, "big")
        (tmp_path / "b.mp4").write_bytes(changed)
        assert extract_frame(tmp_path / "b.mp4", "last") == expected


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", options=("-c:v", "libx264", "-movflags", "+faststart"))
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    (tmp_path / "page.mp4").write_text("<html>")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(tmp_path / "sound.m4a"))
    hdr = "format=yuv420p10le,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"
    make_clip(tmp_path / "hdr.mp4", filters=hdr, count=4)
    expected = {
        "cut.mp4": "complete video, and its 'mdat' box ends",
        "page.mp4": "cannot be read",
        "list.mp4": "cannot be read",
        "sound.m4a": "without a video stream",
        "hdr.mp4": r"got HDR \(PQ\)",
        "none.mp4": "No such file",
        ".": "Is a directory",
    }
    for name, said in expected.items():
        with pytest.raises(VideoError, match=said) as raised:
            extract_frame(tmp_path / name, "last")
        assert raised.value.path == tmp_path / name


def test_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4")
    content = extract_frame(clip, "last")
    assert content == extract_frame(clip, "last")
    assert not any(chunk in content for chunk in (b"gAMA", b"cHRM", b"iCCP", b"cICP")), "a viewer would shift colours"


def test_large_pictures_become_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(tmp_path / "a.mp4", size="320x240", filters="noise=c0s=40:c1s=40:c2s=40,format=yuv444p", count=3)
    png = extract_frame(clip, "last")
    monkeypatch.setattr(frames, "MAX_PNG_BYTES", len(png) - 1)
    content = extract_frame(clip, "last")
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.size) == ("JPEG", (320, 240))
    plain = np.asarray(Image.open(io.BytesIO(png)))
    assert difference(np.asarray(image), plain) < 2, "of high quality"
    assert np.abs((np.asarray(image).astype(int) - plain).mean((0, 1))).max() < 1, "and in the same colours"
    monkeypatch.setattr(frames, "MAX_PNG_BYTES", len(content) // 3)
    assert len(extract_frame(clip, "last")) <= len(content) // 3


@pytest.mark.anyio
async def test_read_in_a_thread(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", count=4)
    assert await read_frame(clip, "first") == extract_frame(clip, "first")


def test_chain_keeps_its_colours(tmp_path: Path) -> None:
    """Ten clips, each of which begins with the last frame of the one before."""
    image = tmp_path / "start.png"
    ffmpeg("-f", "lavfi", "-i", "mandelbrot=s=128x96", "-frames:v", "1", str(image))
    original: Any = np.asarray(Image.open(image).convert("RGB")).astype(np.int16)
    for number in range(10):
        shape = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,setparams=colorspace=bt709:range=tv,loop=2:1"
        clip = tmp_path / f"{number}.mp4"
        ffmpeg("-i", str(image), "-vf", shape, "-c:v", "libx264", "-crf", "5", str(clip))
        image = tmp_path / f"{number}.png"
        image.write_bytes(extract_frame(clip, "last"))
    drift = (np.asarray(Image.open(image)).astype(np.int16) - original).mean((0, 1))
    assert np.abs(drift).max() < 2, f"red, green and blue moved by {drift}"
