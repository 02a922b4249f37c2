"""`VirtualClock`, alone and under a session, on an ordinary event loop."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from kling_async import HttpRequest, HttpResponse, Job, KlingSession, PredictionTimeoutError, Status
from kling_async._core.http import Effect
from kling_async.testing import ScriptedTransport, VirtualClock, json_response

pytestmark = pytest.mark.anyio

IMAGE = "https://pictures.example/face.png"


async def test_sleepers_wake_in_order_at_their_times() -> None:
    clock = VirtualClock(epoch=1000.0)
    woke: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await clock.sleep(nap)
            woke.append((name, clock.monotonic()))

    async with anyio.create_task_group() as tasks:
        for name, naps in (("a", (3.0, 3.0)), ("b", (1.0, 1.0, 0.0)), ("c", (3.0,)), ("d", (100.0,))):
            tasks.start_soon(sleeper, name, *naps)
        await clock.advance(0)
        assert woke == []
        await clock.advance(5)
        assert woke == [("b", 1.0), ("b", 2.0), ("b", 2.0), ("a", 3.0), ("c", 3.0)]
        assert (clock.monotonic(), clock.now()) == (5.0, 1005.0)
        await clock.advance(1)
        assert woke[5:] == [("a", 6.0)]
        tasks.cancel_scope.cancel()
    await clock.advance(1000)
    assert len(woke) == 6, "a cancelled sleeper is not woken"


async def test_advance_refuses_negative_seconds() -> None:
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="expected 0 or more"):
            await VirtualClock().advance(seconds)


async def test_advance_waits_for_tasks_that_need_many_turns() -> None:
    clock = VirtualClock()
    times: list[float] = []

    async def one() -> None:
        await clock.sleep(1)
        for _ in range(200):
            await asyncio.sleep(0)
        times.append(clock.monotonic())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(clock.sleep, 2.0)
        await clock.advance(10)
    assert times == [1.0]


class Service:
    """Service that completes each prediction 120 seconds after it was accepted."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.accepted: list[float] = []
        self.reads: list[float] = []

    def __call__(self, request: HttpRequest) -> HttpResponse:
        now = self.clock.monotonic()
        if request.effect is Effect.PAID:
            self.accepted.append(now)
            return self.record(f"p{len(self.accepted) - 1}", "created")
        self.reads.append(now)
        id_ = request.url.split("/")[-2]
        return self.record(id_, "completed" if now >= self.accepted[int(id_[1:])] + 120 else "processing")

    def record(self, id_: str, status: str) -> HttpResponse:
        outputs = [f"https://outputs.example/{id_}.mp4"] if status == "completed" else []
        return json_response({"code": 200, "data": {"id": id_, "status": status, "outputs": outputs}})


def opened(service: Service, **options: object) -> KlingSession:
    transport = ScriptedTransport(service)
    return KlingSession("wsk_key_of_the_test", transport=transport, clock=service.clock, **options)  # type: ignore[arg-type]  # options of the test


async def test_session_runs_in_virtual_time() -> None:
    service = Service()
    async with opened(service) as kling:
        waiting = asyncio.create_task(kling.generate(prompt="Waves", image=IMAGE))
        await service.clock.advance(119)
        assert not waiting.done()
        assert 1 < len(service.reads) < 100
        await service.clock.advance(60)
        assert waiting.done()
        assert (await waiting).status is Status.COMPLETED
        reads = len(service.reads)
        await service.clock.advance(3600)
        assert len(service.reads) == reads, "an ended prediction is not polled again"
    assert service.accepted == [0.0]
    assert service.reads == sorted(service.reads)


async def test_deadline_and_batch_run_in_virtual_time() -> None:
    service = Service()
    async with opened(service, deadline=60.0) as kling:
        waiting = asyncio.create_task(kling.generate(prompt="Waves", image=IMAGE))
        await service.clock.advance(61)
        with pytest.raises(PredictionTimeoutError):
            await waiting
    service = Service()
    async with opened(service) as kling:
        jobs = [Job(prompt=f"{number}", image=IMAGE) for number in range(4)]

        async def run() -> list[bool]:
            async with kling.batch(jobs) as batch:
                return [outcome.ok async for outcome in batch]

        running = asyncio.create_task(run())
        await service.clock.advance(600)
        assert await running == [True] * 4
    # Bronze: two run at once, and two start per minute.
    assert service.accepted[:2] == [0.0, 0.0]
    assert all(at >= 120 for at in service.accepted[2:])
