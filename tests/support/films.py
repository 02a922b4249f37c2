"""Films of clips over the scripted service, whose videos cannot be decoded: their ids stand for their frames."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from kling_async import Job, LastFrame
from kling_async._core.video_frames import VideoFrame
from kling_async._images.uploads import Images
from kling_async._session.job_run import JobRun
from kling_async._session.videos import Frames, video_of_row
from support.service import IMAGE, Service

FRAMES = "https://frames.example/"


def take_ids(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.5) -> list[tuple[str, str]]:
    """Take, in place of a frame, the id of its prediction, and upload it; return the job and the frame of each.

    Threads would take time of their own. Decoding and uploading are tested with real videos and real sockets.
    """
    pairs: list[tuple[str, str]] = []

    async def take(self: Frames, run: JobRun, place: str, frame: VideoFrame) -> bytes:
        assert frame.parent is not None
        video = None if run.link is None else run.link.videos.get(frame.parent)
        if video is None:
            found = await self.ledger.find(run.batch, frame.parent)
            assert found is not None
            video = await video_of_row(self.ledger, found[0])
        assert video is not None
        assert video.url == f"https://outputs.example/{video.id}.mp4"
        pairs.append((run.key, f"{place} {frame.position} {frame.parent}"))
        await anyio.sleep(seconds)
        return video.id.encode()

    async def url(self: Images, image: bytes, *, field: str, sha256: str | None = None) -> str:
        del self, field
        assert sha256 is None, "the digest of the video is not that of the picture"
        await anyio.sleep(seconds)
        return f"{FRAMES}{image.decode()}"

    monkeypatch.setattr(Frames, "take", take)
    monkeypatch.setattr(Images, "url", url)
    return pairs


def clip(name: str, of: str | None = None, **fields: Any) -> Job:
    """Return a clip that continues another one; None for one that begins with a picture."""
    return Job(prompt=name, image=IMAGE if of is None else LastFrame(of), **fields)


def chain(film: str, length: int) -> dict[str, Job]:
    """Return the clips of a film, each of which continues the one before it."""
    return {
        f"{film}-{number}": clip(f"{film}-{number}", f"{film}-{number - 1}" if number else None)
        for number in range(length)
    }


def pictures(service: Service) -> dict[str, str]:
    """Return the prompt of the clip whose frame was sent, by the prompt of each clip that was sent with one."""
    of = {body["prompt"]: body["image"].removeprefix(FRAMES) for body in service.paid}
    return {prompt: service.accepted[id_][2]["prompt"] for prompt, id_ in of.items() if id_ in service.accepted}
