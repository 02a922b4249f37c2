"""Adaptive limits over sockets, against the emulator."""

from __future__ import annotations

import pytest

from kling_async import Job, KlingSession, NoLimit, WatchPolicy, events
from kling_async._http.hosts import INITIAL_CONNECTIONS
from kling_async.emulator import Emulator, Level, ManualClock
from kling_async.limits import Limit
from support.manual import running
from support.pictures import png

pytestmark = pytest.mark.anyio

IMAGE = "https://pictures.example/face.png"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_slots_follow_moving_account_limit() -> None:
    """The account allows 20 running predictions, then 8, then 20 again; the session is configured with 100."""
    accepted = 0

    def observe(event: events.Event) -> None:
        nonlocal accepted
        if isinstance(event, events.Accepted):
            accepted += 1
            emulator.set_level(Level(10**6, 8 if 100 <= accepted < 200 else 20))

    clock = ManualClock()
    async with (
        Emulator(level=Level(10**6, 20), clock=clock, profile="tiny", timing=60.0, downloads=False) as emulator,
        running(clock),
    ):
        async with KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            clock=clock,
            max_in_flight=100,
            rate_limiter=NoLimit(),
            watch=WatchPolicy.fixed(10.0),
            observers=[observe],
        ) as kling:
            async with kling.batch(Job(prompt=f"number {number}", image=IMAGE) for number in range(300)) as batch:
                assert all([outcome.ok async for outcome in batch])
            gate, slots = kling._engine.gate, kling._engine.slots
            refused = sum(request.status == 429 for request in emulator.requests)
            assert gate.refusals == {Limit.RUNNING: refused}
            assert slots.ceiling == 100
            assert 1 <= slots.total < 40
        assert emulator.peak_running == 20
        assert len(emulator.charges()) == 300
    assert 0 < refused < 75, "without adapting, most jobs would be refused several times"


async def test_429_for_starts_is_classified() -> None:
    async with Emulator(level=Level(2, 10), speed=600, profile="tiny") as emulator:
        session = KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level="silver")
        async with session as kling:
            jobs = (Job(prompt=f"number {number}", image=png()) for number in range(5))
            async with kling.batch(jobs) as batch:
                assert all([outcome.ok async for outcome in batch])
            assert set(kling._engine.gate.refusals) == {Limit.STARTS}
            assert kling._engine.slots.total == kling._engine.slots.ceiling


async def test_statistics_tell_where_connections_stand() -> None:
    async with (
        Emulator(profile="tiny") as emulator,
        KlingSession(emulator.api_key, base_url=emulator.base_url) as kling,
    ):
        assert kling.statistics().connections is None
        await kling.balance()
        found = kling.statistics().connections
    assert found is not None
    assert (found.limit, found.taken, found.waiting) == (INITIAL_CONNECTIONS, 0, 0)
    assert found.seconds > 0
