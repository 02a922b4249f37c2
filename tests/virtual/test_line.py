"""Starts over a line far from the service, in virtual time: the account's level is what limits them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest

from kling_async import HttpRequest, HttpResponse, Job, KlingSession
from kling_async._core.catalogue import LEVELS
from kling_async._core.http import Effect
from kling_async.testing import LoopClock, ScriptedTransport, json_response
from support import virtual
from support.pictures import png

pytestmark = pytest.mark.anyio

UPLOAD_S, SUBMIT_S = 1.3, 0.5


@pytest.fixture
def anyio_backend() -> object:
    # Advance time after one idle iteration of the loop, not 42: there is no outside I/O to wait for.
    return "asyncio", {"loop_factory": lambda: virtual.new_event_loop(noop_cycles=1)}


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work of threads at once: virtual time does not wait for them."""

    async def run_sync(work: Callable[..., Any], *args: object, **_: object) -> Any:
        await anyio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)


@attrs.define
class FarAccount:
    """Account of a level at the end of a line, whose predictions take an hour.

    Attributes:
        level: name of the level.
        clock: clock of the test.
        starts: times of accepted submits, in seconds.
        refused: number of refused submits.
        uploads: highest number of uploads under way at once.
        ahead: highest number of pictures that were uploaded, or were being, without being submitted.
    """

    level: str
    clock: LoopClock = attrs.field(factory=LoopClock)
    starts: list[float] = attrs.field(factory=list)
    refused: int = 0
    uploads: int = 0
    ahead: int = 0
    _uploading: int = 0
    _uploaded: int = 0
    _rng: random.Random = attrs.field(factory=lambda: random.Random(1))

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.method == "PUT":
            self._uploading += 1
            self._uploaded += 1
            self.uploads = max(self.uploads, self._uploading)
            self.ahead = max(self.ahead, self._uploaded - len(self.starts))
            await self._sleep(UPLOAD_S)
            self._uploading -= 1
            return HttpResponse(status=200, headers={"etag": '"1"'})
        if request.effect is not Effect.PAID:
            upload = {"method": "PUT", "url": f"https://storage.example/{self._uploaded}", "headers": {}}
            data = {"download_url": f"https://cdn.example/{self._rng.random()}.png", "upload": upload}
            return json_response({"code": 200, "message": "success", "data": data})
        await self._sleep(SUBMIT_S / 2)
        reply = self._accept()
        await self._sleep(SUBMIT_S / 2)
        return reply

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._rng.uniform(0.8, 1.2))

    def _accept(self) -> HttpResponse:
        now, limits = self.clock.monotonic(), LEVELS[self.level]
        # All of them are running.
        lately = len(self.starts) - next((n for n, at in enumerate(self.starts) if at > now - limits.per), 0)
        if len(self.starts) >= limits.in_flight or (self.starts and lately >= limits.starts):
            self.refused += 1
            return json_response({"code": 429, "message": "too many starts per minute"}, status=429)
        self.starts.append(now)
        data = {"id": f"p{len(self.starts):05d}", "status": "created", "model": "kling", "outputs": []}
        return json_response({"code": 200, "message": "success", "data": data})


def jobs(count: int, *, urls: bool) -> list[Job]:
    start = png()
    return [
        Job(
            prompt=f"{number}",
            image=f"https://pictures.example/{number}.png" if urls else start + number.to_bytes(4, "big"),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("level", "count", "urls", "seconds"),
    [
        ("silver", 300, False, 6.5),
        ("silver", 300, True, 5.5),
        ("gold", 3000, False, 7.5),
        ("gold", 3000, True, 6.0),
    ],
)
@pytest.mark.repeats
async def test_first_starts_take_seconds(*, level: str, count: int, urls: bool, seconds: float) -> None:
    """As many as the level lets start at once: with 4 uploads at once, gold would take a quarter of an hour."""
    account = FarAccount(level)
    async with (
        KlingSession("-", transport=ScriptedTransport(account), level=level, clock=account.clock) as kling,
        kling.batch(jobs(count, urls=urls)),
    ):
        while len(account.starts) < count:
            await asyncio.sleep(0.1)
            assert account.clock.monotonic() < 4 * seconds
    print(f"\n{level}, {count} jobs: {account.starts[-1]:.1f} s, {account.uploads} uploads at once")
    assert account.starts[-1] < seconds
    assert account.refused == 0


@pytest.mark.repeats
async def test_starts_go_on_at_the_rate_of_the_level() -> None:
    """Ultra: 5,000 in the first minute, and as many as the window lets go in the second, with their pictures ready."""
    account = FarAccount("ultra")
    count = 6000
    async with (
        KlingSession("-", transport=ScriptedTransport(account), level="ultra", clock=account.clock) as kling,
        kling.batch(jobs(count, urls=True)),
    ):
        while len(account.starts) < count:
            await asyncio.sleep(0.1)
            assert account.clock.monotonic() < 200
    first = account.starts[0]
    assert account.starts[4999] - first < 15
    assert account.starts[count - 1] - first < 60 + 15
    assert account.refused == 0


async def test_pictures_are_uploaded_for_the_next_starts_alone() -> None:
    """Bronze starts two; the window is a hundred times that."""
    account = FarAccount("bronze")
    async with (
        KlingSession("-", transport=ScriptedTransport(account), level="bronze", clock=account.clock) as kling,
        kling.batch(jobs(400, urls=False), window=200),
    ):
        await asyncio.sleep(600)
    assert len(account.starts) == 2
    assert account.ahead <= 10
    assert account.refused == 0
