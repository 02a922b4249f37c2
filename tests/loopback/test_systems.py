"""Whole sessions over real sockets, from an image file to an MP4 file."""

from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from kling_async import InvalidJobError, Job, KlingSession, Prediction, Status
from kling_async.emulator import Emulator, ManualClock
from support.manual import running
from support.pictures import jpeg, png

pytestmark = pytest.mark.anyio


def gptproto(emulator: Emulator, **options: Any) -> KlingSession:
    return KlingSession(
        emulator.gptproto_key,
        provider="gptproto",
        base_url=emulator.gptproto_url,
        clock=emulator.clock,
        level="gold",
        images="inline",
        **options,
    )


def wavespeed(emulator: Emulator, **options: Any) -> KlingSession:
    return KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level="gold", **options)


def length(path: Path) -> float:
    with av.open(path) as container:
        frames = sum(1 for _ in container.decode(video=0))
        rate = container.streams.video[0].average_rate
    assert rate
    return float(frames / rate)


SYSTEMS = [
    ("wavespeed", "kwaivgi/kling-v2.1-i2v-standard", 5, "0.25"),
    ("wavespeed", "kwaivgi/kling-v2.1-i2v-pro", 5, "0.45"),
    ("wavespeed", "kwaivgi/kling-v2.1-i2v-pro", 10, "0.90"),
    ("wavespeed", "kwaivgi/kling-v2.1-i2v-master", 5, "1.30"),
    ("wavespeed", "kwaivgi/kling-v2.1-i2v-pro/start-end-frame", 5, "0.45"),
    ("gptproto", "kwaivgi/kling-v2.1-i2v-standard", 5, None),
    ("gptproto", "kwaivgi/kling-v2.1-i2v-pro", 5, None),
    ("gptproto", "kwaivgi/kling-v2.1-i2v-master", 5, None),
]


@pytest.mark.parametrize(("provider", "model", "duration", "price"), SYSTEMS)
@pytest.mark.repeats
async def test_image_becomes_video(tmp_path: Path, provider: str, model: str, duration: int, price: str | None) -> None:
    face = tmp_path / "face.png"
    face.write_bytes(png(480, 320))
    fields: dict[str, Any] = {"model": model, "prompt": "She turns and smiles", "image": face, "duration": duration}
    if model.endswith("start-end-frame"):
        fields["end_image"] = jpeg(480, 320)
    async with Emulator(level="gold", speed=200) as emulator:
        session = gptproto(emulator) if provider == "gptproto" else wavespeed(emulator)
        async with session as kling:
            prediction = await kling.generate(Job(**fields))
            saved = await kling.save(prediction, tmp_path / "out")
        assert not emulator.leaks
        charges = emulator.charges()
    assert prediction.status is Status.COMPLETED
    assert prediction.inference is not None
    assert prediction.inference > 1
    assert saved.path.name == f"{prediction.key}.mp4"
    assert saved.bytes == saved.path.stat().st_size
    assert length(saved.path) == pytest.approx(duration, abs=0.1)
    assert [charge.prediction_id for charge in charges] == [prediction.id]
    if price is not None:
        assert charges[0].amount == Decimal(price) == Job(**fields).price().usd


async def test_every_image_type_is_uploaded(tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(jpeg())
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator, wavespeed(emulator) as kling:
        url = await kling.upload(path)
        with path.open("rb") as file:
            images: list[Any] = [
                url,
                path,
                png(),
                bytearray(png()),
                io.BytesIO(jpeg()),
                file,
                Image.new("RGBA", (320, 320), "red"),
            ]
            done = [await kling.generate(prompt="x", image=image) for image in images]
        assert len({prediction.id for prediction in done}) == len(images)
        # The file and the open file share one content; so do the bytes, the bytearray and the in-memory JPEG.
        assert emulator.counts["upload_put"] == 3


async def test_upload_happens_once_per_content() -> None:
    async with Emulator(level="gold", speed=500, profile="tiny") as emulator, wavespeed(emulator) as kling:
        jobs = [Job(prompt=f"number {number}", image=png()) for number in range(20)]
        async with kling.batch(jobs) as batch:
            assert all([outcome.ok async for outcome in batch])
        assert emulator.counts["upload_put"] == 1


async def test_batch_saves_videos_by_key(tmp_path: Path) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator, wavespeed(emulator) as kling:
        jobs = {"one": Job(prompt="x", image=png()), "../two": Job(prompt="y", image=png())}
        async with kling.batch(jobs, save_to=tmp_path / "out") as batch:
            saved = {outcome.key: outcome.saved async for outcome in batch}
    assert saved["one"] is not None
    assert saved["one"].path == tmp_path / "out" / "one.mp4"
    files = sorted(path for path in (tmp_path / "out").rglob("*"))
    assert len(files) == 2
    assert not list(tmp_path.glob("*.mp4"))
    assert all(path.suffix == ".mp4" for path in files)


async def test_job_is_followed_from_other_session() -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        async with wavespeed(emulator) as kling:
            submitted = await kling.submit(prompt="x", image=png(), key="mine")
        assert kling.left_running[0].id == submitted.id
        async with wavespeed(emulator) as kling:
            words = [change.raw_status async for change in kling.follow(submitted.id)]
            assert words[-1] == "completed"
            again = await kling.get(submitted.id)
    assert isinstance(again, Prediction)
    assert again.output


async def test_default_session_stays_within_account_limits() -> None:
    """Bronze allows 2 starts a minute and 2 running predictions, the defaults of a session."""
    # Time stops while a request is in flight: a busy machine would need longer for it than the window's slack.
    clock = ManualClock()
    async with Emulator(level="bronze", clock=clock, timing=30, profile="tiny") as emulator, running(clock, step=0.1):
        session = KlingSession(emulator.api_key, base_url=emulator.base_url, clock=clock)
        async with session as kling:
            await kling.balance()  # Open a connection first.
            jobs = (Job(prompt=f"number {number}", image=png()) for number in range(5))
            async with kling.batch(jobs) as batch:
                assert all([outcome.ok async for outcome in batch])
        assert emulator.peak_running <= 2
        assert [request.status for request in emulator.requests if request.status == 429] == []


async def test_session_above_account_limits_completes_all_jobs() -> None:
    async with Emulator(level="bronze", speed=600, profile="tiny") as emulator:
        session = KlingSession(
            emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level="silver", max_in_flight=6
        )
        async with session as kling:
            jobs = (Job(prompt=f"number {number}", image=png()) for number in range(8))
            async with kling.batch(jobs) as batch:
                assert all([outcome.ok async for outcome in batch])
        assert len(emulator.charges()) == 8
        assert any(request.status == 429 for request in emulator.requests)


async def test_invalid_input_is_refused_before_sending(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.png"
    tiny.write_bytes(png(100, 100))
    async with Emulator(profile="tiny") as emulator, wavespeed(emulator) as kling:
        with pytest.raises(InvalidJobError, match="300"):
            await kling.generate(prompt="x", image=tiny)
        with pytest.raises(InvalidJobError, match="15"):
            await kling.generate(prompt="x", image=tiny, duration=15)
        assert emulator.requests == ()
