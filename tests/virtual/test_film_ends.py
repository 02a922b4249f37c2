"""Films that are left, drained or refused half-way, in virtual time: money comes back, and files are removed."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from kling_async import Budget, InvalidJobError, Job, SkippedError
from kling_async._core.video_frames import VideoFrame
from kling_async._session.job_run import JobRun
from kling_async._session.link import Video
from kling_async._session.videos import Frames
from support.films import chain, clip, take_ids
from support.service import Service, open_session

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    take_ids(monkeypatch)


@pytest.mark.parametrize("end", ["left", "drained"])
async def test_money_of_a_clip_for_which_there_is_no_place_comes_back(end: str) -> None:
    """Covers the clip that is read while as many wait as may."""
    service, budget = Service(seconds=60), Budget(1000, allow_estimate=True)
    async with open_session(service) as kling:
        async with kling.batch(chain("film", 200), window=2, budget=budget) as batch:
            await anyio.sleep(30)
            assert batch.statistics().waiting == 128
            if end == "drained":
                batch.drain()
                assert [outcome.ok async for outcome in batch].count(True) == 1
        await anyio.sleep(100)
        assert len(service.paid) == 1
        assert budget.reserved == 0


async def test_refused_duplicate_ends_no_film_of_a_key_like_its_own() -> None:
    """A second job "a" is reported as "a-2", which another job of the batch has as its own key."""
    service = Service(seconds=60)

    async def lazy() -> AsyncIterator[tuple[str, Job]]:
        yield "a-2", clip("root")
        yield "child", clip("child", "a-2")
        yield "a", clip("a")
        yield "a", clip("again")
        await anyio.sleep(300)
        yield "late", clip("late", "a-2")

    async with open_session(service) as kling, kling.batch(lazy()) as batch:
        outcomes = [outcome async for outcome in batch]
    assert sorted(outcome.key for outcome in outcomes if outcome.ok) == ["a", "a-2", "child", "late"]
    (refused,) = [outcome for outcome in outcomes if not outcome.ok]
    assert isinstance(refused.error, InvalidJobError)
    assert len(service.paid) == 4


@pytest.mark.parametrize("end", ["left", "drained"])
async def test_downloaded_video_is_removed_when_its_clips_are_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The first of two clips has downloaded it, and both wait for a slot."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    downloaded = anyio.Event()

    async def download(video: Video, folder: Path) -> Path:
        del video
        file = folder / "video.mp4"
        file.write_bytes(b"video")
        downloaded.set()
        return file

    async def take(self: Frames, run: JobRun, place: str, frame: VideoFrame) -> bytes:
        del self, place
        assert run.link is not None
        video = run.link.videos[frame.parent or ""]
        await video.file(download)
        return video.id.encode()

    monkeypatch.setattr(Frames, "take", take)
    service = Service(seconds=lambda body: 60.0 if body["prompt"] == "a" else 1e9)
    jobs = {"other": clip("other"), "a": clip("a"), "b": clip("b", "a"), "c": clip("c", "a")}
    async with open_session(service, max_in_flight=2) as kling:
        async with kling.batch(jobs) as batch:
            # In the slot of "a" there is "b"; "c" has its frame and waits.
            assert (await anext(batch)).key == "a"
            await downloaded.wait()
            assert [*tmp_path.glob("kling-frame-*")]
            if end == "drained":
                batch.drain()
                outcome = await anext(batch)
                assert isinstance(outcome.error, SkippedError)
        assert not [*tmp_path.glob("kling-frame-*")]
