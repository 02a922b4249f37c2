"""Joined films, looked at frame by frame with another ffmpeg."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import anyio
import av
import numpy as np
import pytest

from kling_async import Film, Spent, StorageError, VideoError, join
from kling_async.films import _clips, joining
from kling_async.films.frames import extract_frame
from support.ffmpeg import RATE, Pixels, difference, ffmpeg, frames_of, hertz_at, make_clip, sound_of, source
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

LAST = RATE - 1
"""Number of the last frame of a clip."""
TONES = (400, 700, 1000)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seconds of one moving picture: each clip begins with the frame with which the one before ends."""
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{number}.mp4", number * LAST, hertz=tone) for number, tone in enumerate(TONES)]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("others")
    return {
        "silent": make_clip(folder / "silent.mp4", LAST),
        "wide": make_clip(folder / "wide.mp4", hertz=900, size="192x96"),
        "fast": make_clip(folder / "fast.mp4", count=30, hertz=900, rate=30),
        "one": make_clip(folder / "one.mp4", count=1),
        "mono": make_clip(
            folder / "baseline.mp4", LAST, hertz=700, options=("-c:v", "libx264", "-profile", "baseline")
        ),
    }


@pytest.fixture(scope="module")
def whole() -> Pixels:
    """Frames of the moving picture from which the clips were cut."""
    raw = ffmpeg(*source(), "-frames:v", "80", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, 96, 128, 3).astype(np.int16)


def numbers(path: Path, whole: Pixels) -> list[int]:
    """Return which frames of the moving picture a film shows."""
    return [int(np.argmin([difference(frame, one) for one in whole])) for frame in frames_of(path)]


def times(path: Path) -> tuple[list[Fraction], list[Fraction]]:
    """Return when frames are shown, in their order, and when packets are decoded, in that of the file."""
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base or Fraction(0)
        ticks = [(packet.pts, packet.dts) for packet in container.demux(video=0)]
    found = [(shown * base, decoded * base) for shown, decoded in ticks if shown is not None and decoded is not None]
    return sorted(shown for shown, _ in found), [decoded for _, decoded in found]


def lengths(path: Path) -> tuple[float, float]:
    """Return seconds of the picture and of the sound."""
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        found = [float((stream.duration or 0) * (stream.time_base or 0)) for stream in (video, sound)]
    return found[0], found[1]


def grows(row: Sequence[Fraction]) -> bool:
    return all(one < other for one, other in pairwise(row))


async def test_equal_clips_are_copied(clips: list[Path], tmp_path: Path, whole: Pixels) -> None:
    told: list[float] = []
    film = await join(clips, tmp_path / "new" / "film.mp4", progress=told.append)
    assert (film.path, film.clips, film.is_encoded) == (tmp_path / "new" / "film.mp4", 3, False)
    assert (film.bytes, len(film.sha256)) == (film.path.stat().st_size, 64)
    shown = [*range(LAST + 1), *range(LAST, 2 * LAST + 1), *range(2 * LAST, 3 * LAST + 1)]
    assert numbers(film.path, whole) == shown, "no frame is missing"
    pts, dts = times(film.path)
    assert grows(pts)
    assert grows(dts)
    steps = [float(later - earlier) for earlier, later in pairwise(pts)]
    ticks = [number for number, step in enumerate(steps) if step < 0.001]
    assert ticks == [LAST, 2 * LAST + 1], "the frame that two clips share is seen once"
    assert all(abs(step - 1 / RATE) < 1e-3 for number, step in enumerate(steps) if number not in ticks)
    assert abs(film.seconds - (3 * LAST + 1) / RATE) < 0.001
    assert abs(lengths(film.path)[0] - film.seconds) < 0.001
    # The packets are those of the clips.
    assert np.array_equal(frames_of(film.path)[:RATE], frames_of(clips[0]))
    assert told == sorted(set(told))
    assert told[-1] == 1.0
    assert film.path.read_bytes().find(b"moov") < film.path.read_bytes().find(b"mdat")


async def test_sound_stays_with_the_picture(clips: list[Path], tmp_path: Path, others: dict[str, Path]) -> None:
    copied = await join(clips, tmp_path / "copied.mp4")
    encoded = await join([clips[0], others["silent"], clips[2]], tmp_path / "encoded.mp4")
    assert (copied.is_encoded, encoded.is_encoded) == (False, True)
    for film, tones in ((copied, TONES), (encoded, (TONES[0], 0, TONES[2]))):
        heard = sound_of(film.path)
        for number, tone in enumerate(tones):
            begin = number * LAST / RATE
            for second in (begin + 0.08, begin + 0.5, begin + LAST / RATE - 0.08):
                assert abs(hertz_at(heard, second) - tone) < 15, (film.path.name, number, second)
        picture, sound = lengths(film.path)
        assert abs(picture - sound) < 1 / RATE


@pytest.mark.parametrize(("offset", "silent", "heard"), [("0.5", 0.4, 0.6), ("-0.5", None, 0.2)])
async def test_sound_that_begins_at_another_time(
    clips: list[Path], tmp_path: Path, offset: str, silent: float | None, heard: float
) -> None:
    """Later or earlier than the picture, and with another number of samples a second."""
    tone = ("-itsoffset", offset, "-f", "lavfi", "-i", "sine=frequency=600:d=1:r=44100")
    shape = ("-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac", "-avoid_negative_ts", "disabled")
    ffmpeg("-i", str(clips[0]), *tone, *shape, str(tmp_path / "shifted.mp4"))
    film = await join([clips[0], tmp_path / "shifted.mp4", clips[2]], tmp_path / "film.mp4")
    assert film.is_encoded
    sound = sound_of(film.path)
    begin = LAST / RATE
    assert silent is None or hertz_at(sound, begin + silent) == 0
    assert abs(hertz_at(sound, begin + heard) - 600) < 15
    assert abs(hertz_at(sound, 2 * begin + 0.1) - TONES[2]) < 15


async def test_sound_does_not_drift_over_many_cuts(clips: list[Path], tmp_path: Path) -> None:
    """Packets of sound do not fit the frames: a third of a packet too many at each cut would be half a second here."""
    film = await join([clips[number % 3] for number in range(60)], tmp_path / "film.mp4")
    picture, sound = lengths(film.path)
    assert abs(picture - sound) < 1 / RATE
    heard = sound_of(film.path)
    for number in (1, 30, 59):
        cut = number * LAST / RATE
        assert abs(hertz_at(heard, cut - 0.06) - TONES[(number - 1) % 3]) < 15
        assert abs(hertz_at(heard, cut + 0.06) - TONES[number % 3]) < 15
    with av.open(str(film.path)) as container:
        starts = [packet.pts for packet in container.demux(audio=0) if packet.pts is not None]
    assert {later - earlier for earlier, later in pairwise(starts)} == {1024}, "without gaps"


async def test_encoded_cuts_have_no_double_frame(
    clips: list[Path], tmp_path: Path, others: dict[str, Path], whole: Pixels
) -> None:
    film = await join([clips[0], others["mono"], clips[2]], tmp_path / "film.mp4")
    assert film.is_encoded, "their headers differ"
    assert numbers(film.path, whole) == list(range(3 * LAST + 1))
    pts, _ = times(film.path)
    assert {later - earlier for earlier, later in pairwise(pts)} == {Fraction(1, RATE)}
    assert film.seconds == lengths(film.path)[0] == (3 * LAST + 1) / RATE
    shown = frames_of(film.path)
    assert max(difference(one, other) for one, other in zip(shown, whole, strict=False)) < 5
    assert np.abs((shown - whole[: len(shown)]).mean((0, 1, 2))).max() < 1, "in the colours of the clips"


@pytest.mark.parametrize("seconds", [1 / RATE, 0.25, 0.5])
async def test_crossfade(clips: list[Path], tmp_path: Path, seconds: float, whole: Pixels) -> None:
    film = await join(clips, tmp_path / "film.mp4", crossfade=seconds)
    overlap = round(seconds * RATE)
    count = 3 * RATE - 2 * overlap
    assert film.is_encoded
    assert abs(film.seconds - count / RATE) < 1e-6
    picture, sound = lengths(film.path)
    assert picture == film.seconds
    assert abs(picture - sound) < 1 / RATE
    shown = frames_of(film.path)
    assert len(shown) == count
    for number in range(RATE):
        place = number - (RATE - overlap)
        if overlap > 1 and 0 <= place < overlap:
            before, after = whole[number].astype(float), whole[LAST + place].astype(float)
            share = ((shown[number] - before) * (after - before)).sum() / ((after - before) ** 2).sum()
            assert abs(share - place / overlap) < 0.1, number
        else:
            assert difference(shown[number], whole[number if place < 0 else LAST + place]) < 8, number
    heard = sound_of(film.path)
    cut = (RATE - overlap / 2) / RATE
    assert abs(hertz_at(heard, cut - seconds / 2 - 0.06) - TONES[0]) < 15
    assert abs(hertz_at(heard, cut + seconds / 2 + 0.06) - TONES[1]) < 15


async def test_differing_clips_are_refused_or_fitted(
    clips: list[Path], tmp_path: Path, others: dict[str, Path], whole: Pixels
) -> None:
    with pytest.raises(VideoError, match=r"wide.mp4: expected 128x96 at 24 .*got 192x96 at 24 .*fit=True"):
        await join([clips[0], others["wide"]], tmp_path / "film.mp4")
    with pytest.raises(VideoError, match=r"fast.mp4: .*got 128x96 at 30"):
        await join([clips[0], others["fast"]], tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []
    film = await join([clips[0], others["wide"], others["fast"]], tmp_path / "film.mp4", fit=True)
    assert (film.is_encoded, film.seconds) == (True, (3 * LAST + 1) / RATE)
    shown = frames_of(film.path)
    assert len(shown) == 3 * LAST + 1
    wide = shown[LAST + 5]
    assert wide[:12].max() < 12, "a bar above"
    assert wide[-12:].max() < 12, "and below"
    assert wide[20:-20].max() > 200
    # The frames of the other rate are those of the same moments.
    fast = frames_of(others["fast"])
    assert difference(shown[2 * LAST + 12], fast[15]) < 6
    picture, sound = lengths(film.path)
    assert abs(picture - sound) < 1 / RATE


async def test_turned_clips_are_encoded_upright(clips: list[Path], tmp_path: Path) -> None:
    for number in (0, 1):
        options = ("-display_rotation", "90", "-i", str(clips[number]), "-c", "copy")
        ffmpeg(*options, str(tmp_path / f"{number}.mp4"))
    film = await join([tmp_path / "0.mp4", tmp_path / "1.mp4"], tmp_path / "film.mp4")
    assert film.is_encoded
    upright = frames_of(tmp_path / "0.mp4", 96, 128)
    assert difference(frames_of(film.path, 96, 128)[0], upright[0]) < 5


async def test_trimmed_clips_show_nothing_that_was_cut(clips: list[Path], tmp_path: Path, whole: Pixels) -> None:
    """An edit list hides frames, which would be seen again if packets were copied."""
    ffmpeg("-ss", "0.25", "-i", str(clips[1]), "-c", "copy", str(tmp_path / "cut.mp4"))
    film = await join([clips[0], tmp_path / "cut.mp4"], tmp_path / "film.mp4")
    assert film.is_encoded
    assert numbers(film.path, whole) == [*range(LAST), *range(LAST + 6, 2 * LAST + 1)]


async def test_wrong_arguments(clips: list[Path], tmp_path: Path, others: dict[str, Path]) -> None:
    film = tmp_path / "film.mp4"
    own = tmp_path / "own.mp4"
    own.write_bytes(clips[0].read_bytes())
    (tmp_path / "same.mp4").hardlink_to(own)
    (tmp_path / "text.mp4").write_text("no video")
    for given, target, options, said in (
        ([], film, {}, "at least one file"),
        ("a.mp4", film, {}, "several files"),
        (clips, tmp_path / "film.mov", {}, "ending in .mp4"),
        (clips, film, {"crossfade": -1}, "from 0 on"),
        (clips, film, {"crossfade": float("nan")}, "from 0 on"),
        (clips, film, {"crossfade": 0.01}, "at least one frame, 0.042 seconds, got 0.01"),
        (clips, film, {"crossfade": 0.7}, "1.mp4: expected at least 1.417 seconds for its cross-fades, got 1.000"),
        ([clips[0], own], own, {}, "another file than the clips"),
        ([clips[0], own], tmp_path / "same.mp4", {}, "another file than the clips"),
        ([clips[0], tmp_path / "text.mp4"], film, {}, "text.mp4: expected a video"),
        ([clips[0], tmp_path / "none.mp4"], film, {}, "none.mp4: expected a video .*No such file"),
        ([clips[0], others["one"]], film, {}, "one.mp4: expected at least 2 frames, got 1"),
    ):
        with pytest.raises(VideoError, match=said) as raised:
            await join(given, target, **options)
        assert raised.value.spent is Spent.NO
    assert {path.name for path in tmp_path.iterdir()} == {"own.mp4", "same.mp4", "text.mp4"}
    assert own.read_bytes() == clips[0].read_bytes()


async def test_existing_files_are_kept(clips: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "film.mp4"
    first = await join(clips, target)
    assert (await join(clips, target)).path == first.path, "the same content"
    second = await join(clips[:2], target)
    assert second.path == tmp_path / f"film-{second.sha256[:8]}.mp4"
    assert target.stat().st_size == first.bytes
    third = await join(clips[:2], target, replace=True)
    assert (third.path, third.sha256) == (target, second.sha256)
    assert {path.name for path in tmp_path.iterdir()} == {"film.mp4", second.path.name}


@pytest.mark.parametrize("crossfade", [0.0, 0.25], ids=["copied", "encoded"])
@pytest.mark.parametrize("way", ["task", "scope", "twice"])
async def test_cancelled_call_leaves_no_file(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, crossfade: float
) -> None:
    advance = joining._Steps.advance

    def advance_until_cancelled(steps: joining._Steps, share: float) -> None:
        advance(steps, share)
        if share > 0.3:
            assert list(tmp_path.glob(".*.part")), "it is being written"
            assert steps.stop.wait(PATIENCE_S)

    monkeypatch.setattr(joining._Steps, "advance", advance_until_cancelled)

    async def joined(cancel: Callable[[], object]) -> None:
        await join(clips, tmp_path / "film.mp4", crossfade=crossfade, progress=lambda share: share >= 0.3 and cancel())

    if way == "scope":
        with anyio.CancelScope() as scope:
            await joined(scope.cancel)
        assert scope.cancelled_caught
    else:
        begun = asyncio.Event()

        def cancel() -> None:
            begun.set()
            work.cancel()

        work = asyncio.create_task(joined(cancel))
        if way == "twice":
            async with asyncio.timeout(PATIENCE_S):
                await begun.wait()
            work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import asyncio, resource, signal, sys
from kling_async import StorageError, join
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
try:
    asyncio.run(join(sys.argv[3:], "film.mp4", crossfade=float(sys.argv[2])))
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="without limits of resources")
@pytest.mark.parametrize("crossfade", ["0", "0.25"])
@pytest.mark.parametrize("size", ["0", "30000"])
async def test_full_disk_leaves_no_file(clips: list[Path], tmp_path: Path, size: str, crossfade: str) -> None:
    words = [sys.executable, "-c", LIMITED, size, crossfade, *map(str, clips)]
    ran = await asyncio.to_thread(subprocess.run, words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("cannot write film.mp4: "), ran.stdout + ran.stderr
    assert "File too large" in ran.stdout
    assert "nothing was spent" in ran.stdout
    assert list(tmp_path.iterdir()) == []


async def test_folder_that_cannot_be_made(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        await join(clips, tmp_path / "file" / "film.mp4")


async def test_clip_that_breaks_while_it_is_read(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a complaint about the clip, not about the disk."""
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(clips[1].read_bytes())
    survey = _clips.survey

    def survey_then_cut(path: Path, step: object) -> _clips.Clip:
        try:
            return survey(path, lambda: None)
        finally:
            if path == damaged:
                damaged.write_bytes(clips[1].read_bytes()[:9000])

    monkeypatch.setattr(_clips, "survey", survey_then_cut)
    with pytest.raises(VideoError, match=r"damaged\.mp4"):
        await join([clips[0], damaged], tmp_path / "film.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.mp4"]


async def test_one_clip_is_a_film(clips: list[Path], tmp_path: Path) -> None:
    film = await join(clips[:1], tmp_path / "film.mp4")
    assert isinstance(film, Film)
    assert (film.clips, film.seconds, film.is_encoded) == (1, 1.0, False)
    assert np.array_equal(frames_of(film.path), frames_of(clips[0]))


async def test_last_frame_of_a_film_is_that_of_its_last_clip(clips: list[Path], tmp_path: Path) -> None:
    film = await join(clips, tmp_path / "film.mp4")
    assert extract_frame(film.path, "last") == extract_frame(clips[-1], "last")
