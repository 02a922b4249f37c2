"""A job whose video is saved runs the same course through a batch and a worker. The job service saves nothing.

In real time, because files are written by threads; the other courses are in `tests/virtual/test_same_course.py`.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kling_async import HttpRequest, HttpResponse, Job, Outcome, Spent, StorageError, WatchPolicy, Worker, events
from kling_async._core.content import content_of
from kling_async._session.session import engine_of
from kling_async._submission.drain import Drain
from kling_async.ledger import MemoryLedger
from support.service import IMAGE, Service, open_session
from support.videos import mp4

pytestmark = pytest.mark.anyio

KEY = "the-key"
JOB = Job(model="kling-v2.1-pro", prompt="a", image=IMAGE)
SAVED = ["Admitted", "Begun", "Uploaded", "Submitting", "Accepted", "Left", "Changed", "Saved", "Finished"]


async def run(door: str, folder: Path, reply: HttpResponse) -> tuple[list[str], Outcome, str]:
    """Run the job through a door, where the host of the outputs sends one reply; return events, outcome and paid id."""

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        return reply if "outputs.example" in request.url else None

    service = Service(seconds=0.2, latency=0.001, script=script)
    published: list[events.Event] = []
    kling = open_session(service, ledger=MemoryLedger(), observers=[published.append], watch=WatchPolicy.fixed(0.05))
    async with kling:
        if door == "batch":
            async with kling.batch({KEY: JOB}, name="b", save_to=folder) as batch:
                assert [outcome.key async for outcome in batch] == [KEY]
        else:
            engine = engine_of(kling)
            await engine.ledger.claim("b", KEY, content=content_of(JOB, str), model=JOB.model, at=0.0)
            found = await engine.ledger.find("b", KEY)
            assert found is not None
            await Worker(kling, save_to=folder)._run(engine, *found, drain=Drain())
    (outcome,) = [event.outcome for event in published if isinstance(event, events.Finished)]
    return [type(event).__name__ for event in published if event.key == KEY], outcome, next(iter(service.accepted))


@pytest.mark.parametrize("door", ["batch", "worker"])
async def test_saved_job_runs_same_course(door: str, tmp_path: Path) -> None:
    video = HttpResponse(status=200, headers={"content-type": "video/mp4"}, body=mp4(5_000))
    names, outcome, paid = await run(door, tmp_path, video)
    assert names == SAVED
    assert outcome.error is None
    assert outcome.saved is not None
    assert outcome.saved.path.read_bytes() == mp4(5_000)
    assert outcome.cost == Decimal("0.45")
    assert outcome.prediction is not None
    assert outcome.prediction.id == paid


@pytest.mark.parametrize("door", ["batch", "worker"])
async def test_job_that_cannot_be_saved_runs_same_course(door: str, tmp_path: Path) -> None:
    in_the_way = tmp_path / "out"
    in_the_way.touch()
    video = HttpResponse(status=200, headers={"content-type": "video/mp4"}, body=mp4(5_000))
    names, outcome, paid = await run(door, in_the_way, video)
    assert names == [name for name in SAVED if name != "Saved"]
    assert isinstance(outcome.error, StorageError)
    assert (outcome.error.key, outcome.error.prediction_id, outcome.error.spent) == (KEY, paid, Spent.YES)
    assert outcome.error.__traceback__ is None
    assert outcome.cost == Decimal("0.45")
    assert outcome.saved is None
