from __future__ import annotations

import anyio
import pytest

from kling_async.emulator import ManualClock, ScaledClock

pytestmark = pytest.mark.anyio


async def test_sleepers_wake_in_order_of_due_time_and_see_it() -> None:
    clock, woken = ManualClock(1000.0), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic(), clock.now()))

    async with anyio.create_task_group() as group:
        for seconds in (30, 10, 20):
            group.start_soon(sleeper, seconds)
        await clock.advance(20)
        assert woken == [(10, 10, 1010), (20, 20, 1020)]
        await clock.advance(9.5)
        assert len(woken) == 2
        await clock.advance(0.5)
    assert woken[-1] == (30, 30, 1030)


async def test_who_sleeps_again_within_the_span_wakes_again() -> None:
    clock, ticks = ManualClock(), []

    async def ticker() -> None:
        while True:
            await clock.sleep(2)
            ticks.append(clock.monotonic())

    async with anyio.create_task_group() as group:
        group.start_soon(ticker)
        await clock.advance(7)
        group.cancel_scope.cancel()
    assert ticks == [2, 4, 6]
    assert clock.monotonic() == 7


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    with anyio.move_on_after(0):
        await clock.sleep(10)
    assert clock._sleepers == []
    await clock.advance(20)


async def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="back"):
        await ManualClock().advance(-1)
    with pytest.raises(ValueError, match="positive"):
        ScaledClock(0)


async def test_scaled_time_runs_faster_than_it_is_slept() -> None:
    clock = ScaledClock(1000)
    before, day = clock.monotonic(), clock.now()
    await clock.sleep(20)
    assert clock.monotonic() - before >= 20
    assert clock.now() - day >= 20
