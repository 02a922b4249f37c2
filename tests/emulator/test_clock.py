"""The manual and the scaled clock."""

from __future__ import annotations

import anyio
import pytest

from kling_async.emulator import ManualClock, ScaledClock

pytestmark = pytest.mark.anyio


async def test_manual_clock_wakes_sleepers_in_order_at_their_due_time() -> None:
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


async def test_manual_clock_wakes_repeated_sleeps_within_one_advance() -> None:
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


async def test_manual_clock_removes_cancelled_sleeper() -> None:
    clock = ManualClock()
    with anyio.move_on_after(0):
        await clock.sleep(10)
    assert clock._sleepers == []
    await clock.advance(20)


async def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        await ManualClock().advance(-1)
    with pytest.raises(ValueError, match="speed: expected a positive number, got 0"):
        ScaledClock(0)


async def test_scaled_clock_sleeps_at_least_the_given_time() -> None:
    clock = ScaledClock(1000)
    before, day = clock.monotonic(), clock.now()
    await clock.sleep(20)
    assert clock.monotonic() - before >= 20
    assert clock.now() - day >= 20
