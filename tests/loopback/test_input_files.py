"""Files of any kind from disk to the service: uploaded once, paid once, and refused before a byte is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from kling_async import InvalidJobError, Job, KlingSession, Model, Outcome, UnsupportedError
from kling_async.emulator import Emulator, faults
from kling_async.manifest import read_manifest
from kling_async.results import Format, export
from support.media import frames, sound, video, wav
from support.pictures import png

pytestmark = pytest.mark.anyio

RED, GREEN, BLUE, YELLOW, CYAN = (210, 20, 20), (20, 180, 20), (20, 20, 210), (200, 200, 20), (20, 200, 200)
COLOURS = (RED, GREEN, BLUE, YELLOW, CYAN)
URL = "https://pictures.example/face.png"
EXTEND = "kwaivgi/kling-v4.0/video-extend"
REFERENCE = "kwaivgi/kling-v4.0/reference-to-video"


def service(**options: Any) -> Emulator:
    settings: dict[str, Any] = {"speed": 1000, "profile": "tiny", "level": "ultra", "downloads": False}
    return Emulator(**{**settings, **options})


def session(emulator: Emulator, **options: Any) -> KlingSession:
    settings: dict[str, Any] = {"clock": emulator.clock, "level": "ultra", "base_url": emulator.base_url}
    return KlingSession(emulator.api_key, **{**settings, **options})


async def row_of(kling: KlingSession, model: str) -> Model:
    [entry] = [entry for entry in await kling.models() if entry.id == model]
    return Model.from_service(entry)


async def outcomes(kling: KlingSession, jobs: Any, **options: Any) -> dict[str, Outcome]:
    async with kling.batch(jobs, **options) as batch:
        return {outcome.key: outcome async for outcome in batch}


def near(found: tuple[int, int, int], colour: tuple[int, int, int]) -> bool:
    return all(abs(one - other) < 45 for one, other in zip(found, colour, strict=True))


def write(folder: Path) -> dict[str, Path]:
    """Write five frames, a video and a sound, and return their paths by name."""
    contents = {f"{number}.png": png(720, 300, colour) for number, colour in enumerate(COLOURS)}
    contents |= {
        "walk.mp4": video(),
        "walk.mov": video("mov"),
        "tune.wav": wav(),
        "tune.mp3": sound("mp3", "libmp3lame"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


async def test_frames_and_extension_end_to_end(tmp_path: Path) -> None:
    """4.0 passes through its frames in their order, and its video is extended from its last frame."""
    paths = write(tmp_path)
    pictures = [paths[f"{number}.png"] for number in range(5)]
    job = Job(
        model="kling-v4.0", prompt="x", image=pictures[0], keyframes=pictures[1:4], end_image=pictures[4], duration=3
    )
    async with service(profile="video") as emulator, session(emulator) as kling:
        made = (await outcomes(kling, {"frames": job}, save_to=tmp_path / "out"))["frames"].saved
        assert made is not None
        more = Job(model=await row_of(kling, EXTEND), prompt="x", extra={"video": made.path}, duration=3)
        assert (await outcomes(kling, {"on": more}, name="more", save_to=tmp_path / "out"))["on"].ok
        assert emulator.counts["upload_put"] == 6
    shown = frames((tmp_path / "out" / "frames.mp4").read_bytes(), 0, 0.8, 1.55, 2.3, 2.95)
    assert [near(found, colour) for found, colour in zip(shown, COLOURS, strict=True)] == [True] * 5, shown
    joined = frames((tmp_path / "out" / "on.mp4").read_bytes(), 0, 1.55, 2.95, 4, 5.9)
    expected = (RED, BLUE, CYAN, CYAN, CYAN)
    assert [near(found, colour) for found, colour in zip(joined, expected, strict=True)] == [True] * 5, joined


async def test_sound_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    async with service() as emulator, session(emulator) as kling:
        job = Job(model="kling-o3-std", prompt="x", image=tmp_path / "a.png", sound=True, duration=3)
        [outcome] = (await outcomes(kling, [job], save_to=tmp_path / "out")).values()
        assert outcome.saved is not None
        assert emulator.charges()[0].inputs["sound"] is True


async def test_manifest_names_files_and_its_errors_run_again(tmp_path: Path) -> None:
    write(tmp_path)
    rows: list[dict[str, Any]] = [
        {
            "key": "frames",
            "model": "kling-v4.0",
            "image": "0.png",
            "keyframes": ["1.png", "2.png"],
            "end_image": "3.png",
        },
        {"key": "sound", "model": "kling-o3-std", "image": "0.png", "sound": True},
        {"key": "on", "model": EXTEND, "extra": {"video": "file:walk.mp4"}},
        {
            "key": "all",
            "model": REFERENCE,
            "images": ["0.png"],
            "extra": {"videos": ["file:walk.mp4", "file:walk.mov"], "audios": ["file:tune.wav", "file:tune.mp3"]},
        },
    ]
    listed = tmp_path / "jobs.jsonl"
    listed.write_text("".join(json.dumps({"prompt": "x", "duration": 3, **row}) + "\n" for row in rows))
    async with service() as emulator:
        async with session(emulator, ledger=tmp_path / "run.db") as kling:
            models = [await row_of(kling, model) for model in (EXTEND, REFERENCE)]
            manifest = read_manifest(listed, models=models)
            emulator.faults.add("submit", faults.Status(400, "no"), times=4)
            assert not any(outcome.ok for outcome in (await outcomes(kling, manifest, name="first")).values())
        [errors] = export(tmp_path / "run.db", tmp_path, [Format.ERRORS])
        assert (errors.rows, errors.left_out) == (4, {})
        again = read_manifest(errors.path, models=models)
        uploads = emulator.counts["upload_put"]
        async with session(emulator, ledger=tmp_path / "run.db") as kling:
            assert all(outcome.ok for outcome in (await outcomes(kling, again, name="again")).values())
            async with kling.resume(name="again") as batch:
                assert [outcome.ok async for outcome in batch] == [True] * 4
        assert (len(emulator.charges()), uploads, emulator.counts["upload_put"]) == (4, 8, 8)
        lines = {row["key"]: row for row in map(json.loads, errors.path.read_text().splitlines())}
        assert lines["on"]["extra"] == {"video": "file:walk.mp4"}
        assert lines["frames"]["keyframes"] == ["1.png", "2.png"]
        uploaded = {charge.model: charge.inputs for charge in emulator.charges()}[REFERENCE]
    urls = [url for name in ("videos", "audios") for url in cast("list[str]", uploaded[name])]
    assert [url.rpartition(".")[2] for url in urls] == ["mp4", "mov", "wav", "mp3"]


async def test_equal_content_is_uploaded_once_and_paid_once(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video())
    (tmp_path / "b.mp4").write_bytes(video())
    async with service() as emulator:
        for name in ("a.mp4", "b.mp4"):
            async with session(emulator, ledger=tmp_path / "run.db") as kling:
                row = await row_of(kling, EXTEND)
                jobs = [Job(model=row, prompt=text, extra={"video": tmp_path / name}) for text in "xy"]
                assert all(outcome.ok for outcome in (await outcomes(kling, jobs, name="run")).values())
        assert (emulator.counts["upload_put"], len(emulator.charges())) == (1, 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%PDF-1.7", r"extra\.videos\[1\]: expected a picture"),
        (png(), r"extra\.videos\[1\]: expected a video, got a picture"),
        (video()[:-20], r"extra\.videos\[1\]: is truncated"),
        (None, r"extra\.videos\[1\]: cannot read"),
    ],
)
async def test_wrong_file_is_refused_before_a_byte_is_sent(content: bytes | None, said: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    good.write_bytes(video())
    if content is not None:
        bad.write_bytes(content)
    async with service() as emulator, session(emulator) as kling:
        with pytest.raises(InvalidJobError, match=said):
            await kling.submit(prompt="x", image=URL, extra={"videos": [good, bad]})
        assert not emulator.counts.keys() & {"submit", "upload_ticket", "upload_put"}


async def test_changed_file_is_not_sent_for_another(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    clip.write_bytes(video())
    async with service() as emulator, session(emulator, ledger=tmp_path / "run.db") as kling:
        job = Job(model=await row_of(kling, EXTEND), prompt="x", extra={"video": clip})
        emulator.faults.add("submit", faults.Status(400, "no"))
        assert not (await outcomes(kling, {"a": job}, name="run"))["a"].ok
        clip.write_bytes(video(each=2))
        async with kling.resume(name="run") as batch:
            [outcome] = [outcome async for outcome in batch]
        assert "KeyReused" in type(outcome.error).__name__
        assert emulator.charges() == ()


async def test_upload_takes_all_kinds(tmp_path: Path) -> None:
    paths = write(tmp_path)
    async with service() as emulator, session(emulator) as kling:
        urls = [await kling.upload(paths[name]) for name in ("0.png", "walk.mp4", "walk.mov", "tune.wav", "tune.mp3")]
        assert [url.rpartition(".")[2] for url in urls] == ["png", "mp4", "mov", "wav", "mp3"]
        assert await kling.upload(video()) == urls[1]
        with paths["tune.wav"].open("rb") as file:
            assert await kling.upload(file) == urls[3]
        assert (await kling.upload(video("webm"))).endswith(".webm")
        assert await kling.upload(URL) == URL
        with pytest.raises(InvalidJobError, match=r"file: expected a picture .*, a video .* or a sound"):
            await kling.upload(b"%PDF-1.7")
        assert emulator.counts["upload_put"] == 6


async def test_provider_without_uploads_takes_pictures_inline_and_refuses_the_rest_by_name() -> None:
    row = Model(id="kwaivgi/kling-v2.1-i2v-pro", providers=frozenset({"gptproto"}))
    async with service() as emulator:
        kling = KlingSession(
            emulator.gptproto_key, provider="gptproto", base_url=emulator.gptproto_url, clock=emulator.clock
        )
        async with kling:
            await kling.submit(model="kling-v2.1-pro", prompt="x", image=png())
            assert str(emulator.charges()[0].inputs["image"]).startswith("data:image/png;base64,")
            with pytest.raises(
                UnsupportedError, match=r"extra\.videos\[0\]: gptproto takes no uploads.*nothing was sent"
            ):
                await kling.submit(model=row, prompt="x", image=png(), extra={"videos": [video()]})
            with pytest.raises(UnsupportedError, match="gptproto takes no uploads"):
                await kling.upload(png())
        assert len(emulator.charges()) == 1


async def test_inline_pictures_beside_an_uploaded_video() -> None:
    async with service() as emulator, session(emulator, images="inline") as kling:
        row = await row_of(kling, REFERENCE)
        await kling.submit(model=row, prompt="x", images=[png()], extra={"videos": [video()]})
        [charge] = emulator.charges()
        images, videos = charge.inputs["images"], charge.inputs["videos"]
        assert isinstance(images, list)
        assert isinstance(videos, list)
        assert images[0].startswith("data:image/png")
        assert videos[0].endswith(".mp4")


async def test_lost_replies_are_settled_by_the_files(tmp_path: Path) -> None:
    """Jobs that differ by their files alone are told apart by the echo."""
    async with service(input_echo=True) as emulator, session(emulator, ledger=tmp_path / "run.db", grace=0.1) as kling:
        row = await row_of(kling, EXTEND)
        jobs = {
            "a": Job(model=row, prompt="x", extra={"video": video()}),
            "b": Job(model=row, prompt="x", extra={"video": video(each=2)}),
        }
        emulator.faults.add("submit", faults.AcceptThenDrop(), times=2)
        made = await outcomes(kling, jobs, name="run")
        videos = {charge.prediction_id: charge.inputs["video"] for charge in emulator.charges()}
        ids = [outcome.prediction.id for outcome in (made["a"], made["b"]) if outcome.prediction is not None]
        urls = [await kling.upload(video()), await kling.upload(video(each=2))]
        assert [videos[id_] for id_ in ids] == urls
