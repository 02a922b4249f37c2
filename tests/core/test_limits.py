"""Rate limiters, pauses, gate and slots in virtual time, with the exact time of every grant."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import anyio
import pytest
from aiolimiter import AsyncLimiter
from hypothesis import example, given
from hypothesis import strategies as st

from kling_async import ConfigurationError, NoLimit, RateLimitedError, RateLimiter, SessionClosedError, StartsPerWindow
from kling_async._core.turns import Place
from kling_async.limits import Gate, Limit, Pause, Slot, Slots
from kling_async.testing import LoopClock
from support import virtual

if TYPE_CHECKING:
    from collections.abc import Coroutine

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio", {"loop_factory": virtual.new_event_loop}


def virtually(main: Coroutine[object, object, None]) -> None:
    """Run `main` in virtual time, for tests that hypothesis calls many times."""
    with asyncio.Runner(loop_factory=virtual.new_event_loop) as runner:
        runner.run(main)


async def settled() -> None:
    """Let every task run until it waits."""
    await anyio.wait_all_tasks_blocked()


class Grants:
    """Order and times of the grants of a limiter."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.clock = LoopClock()
        self.order: list[int] = []
        self.times: list[float] = []

    async def one(self, number: int, after: float = 0.0) -> None:
        await self.clock.sleep(after)
        await self.limiter.acquire()
        self.order.append(number)
        self.times.append(self.clock.monotonic())


def most_in_any_window(times: list[float], per: float) -> int:
    """Return the maximum by brute force: the fullest window begins at a grant."""
    return max((sum(start <= time < start + per for time in times) for start in times), default=0)


# ---- starts per window ----


async def test_window_grants_starts_at_once_then_as_it_slides() -> None:
    grants = Grants(StartsPerWindow(3, 60.0, clock=LoopClock()))
    async with anyio.create_task_group() as tasks:
        for number in range(7):
            tasks.start_soon(grants.one, number)
    assert grants.order == list(range(7))
    assert grants.times == pytest.approx([0, 0, 0, 60, 60, 60, 120], abs=0.01)
    assert most_in_any_window(grants.times, 60.0) == 3


@given(
    starts=st.integers(1, 5),
    per=st.floats(0.001, 100.0),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0.0, 30.0)), min_size=1, max_size=25),
)
@example(starts=1, per=0.0104, gaps=[0.00099, 0.01021])
@example(starts=2, per=1.0, gaps=[0.9999, 0.0, 0.0, 0.0])
def test_window_never_exceeds_starts_and_keeps_order(starts: int, per: float, gaps: list[float]) -> None:
    async def main() -> None:
        grants = Grants(StartsPerWindow(starts, per, clock=LoopClock()))
        arrivals: list[float] = []
        async with anyio.create_task_group() as tasks:
            for number, gap in enumerate(gaps):
                await grants.clock.sleep(gap)
                arrivals.append(grants.clock.monotonic())
                tasks.start_soon(grants.one, number)
                await settled()
        assert most_in_any_window(grants.times, per) <= starts
        assert grants.order == list(range(len(gaps)))
        # No needless waiting: each starts on arrival, or when the grant `starts` places before it leaves the window,
        # within the millisecond resolution of the log.
        for number, (arrived, granted) in enumerate(zip(arrivals, grants.times, strict=True)):
            free = grants.times[number - starts] + per if number >= starts else 0.0
            before = grants.times[number - 1] if number else 0.0
            assert granted <= max(arrived, free, before) + 0.006

    virtually(main())


@pytest.mark.parametrize("native", [True, False], ids=["asyncio", "anyio"])
async def test_cancelled_waiter_consumes_nothing(native: bool) -> None:  # noqa: FBT001 -- two ways
    grants = Grants(StartsPerWindow(1, 60.0, clock=LoopClock()))
    await grants.one(0)
    scopes = [anyio.CancelScope() for _ in range(2)]

    async def waiting(number: int) -> None:
        with scopes[number - 1]:
            await grants.one(number)

    cancelled = [asyncio.create_task(waiting(number)) for number in (1, 2)]
    await settled()
    last = asyncio.create_task(grants.one(3))
    await settled()
    for task, scope in zip(cancelled, scopes, strict=True):
        if native:
            task.cancel()
        else:
            scope.cancel()
    await asyncio.wait([*cancelled, last])
    assert [task.cancelled() for task in cancelled] == [native, native]
    assert grants.order == [0, 3]
    assert grants.times == pytest.approx([0, 60], abs=0.01)


@pytest.mark.parametrize(
    ("starts", "per"), [(0, 60.0), (-1, 60.0), (1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf"))]
)
def test_invalid_rate_is_refused(starts: int, per: float) -> None:
    with pytest.raises(ConfigurationError, match="at least one start per positive window"):
        StartsPerWindow(starts, per)


async def test_log_of_starts_is_trimmed() -> None:
    limiter = StartsPerWindow(2, 1.0, clock=LoopClock())
    for _ in range(500):
        await limiter.acquire()
    assert limiter._bucket.count() <= 4


def test_limiter_works_on_successive_loops() -> None:
    limiter = StartsPerWindow(1, 0.02)
    for _ in range(2):
        asyncio.run(limiter.acquire())
    assert repr(limiter) == "StartsPerWindow(1, per=0.02)"


async def test_no_limit_grants_at_once_and_yields() -> None:
    grants = Grants(NoLimit())
    async with anyio.create_task_group() as tasks:
        for number in range(1000):
            tasks.start_soon(grants.one, number)
    assert set(grants.times) == {0.0}
    with anyio.CancelScope() as scope:
        scope.cancel()
        await NoLimit().acquire()
    assert scope.cancelled_caught, "`acquire` is a cancellation point"


async def test_aiolimiter_satisfies_protocol() -> None:
    limiter: RateLimiter = AsyncLimiter(2, 60.0)
    grants = Grants(limiter)
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(grants.one, number)
    assert grants.times == pytest.approx([0, 0, 30, 60], abs=0.01)


# ---- pause ----


async def test_pause_blocks_while_closed() -> None:
    pause, clock = Pause(LoopClock()), LoopClock()
    await pause.wait()
    seen = [pause.closed]
    assert clock.monotonic() == 0.0
    assert pause.close(10.0, 0.0) == 10.0
    seen.append(pause.closed)
    await pause.wait()
    seen.append(pause.closed)
    assert seen == [False, True, False]
    assert clock.monotonic() == pytest.approx(10.0, abs=0.01)


async def test_pause_without_retry_after_doubles_up_to_maximum() -> None:
    pause = Pause(LoopClock())
    seconds = []
    for _ in range(7):
        seconds.append(pause.close(None, 0.0))
        await pause.wait()
    assert seconds == pytest.approx([4.0, 8.0, 16.0, 32.0, 64.0, 65.0, 65.0])
    pause.reset()
    assert pause.close(None, 0.0) == 4.0


async def test_burst_of_refusals_begins_one_pause() -> None:
    pause = Pause(LoopClock())
    assert [pause.close(None, 0.5) for _ in range(50)] == [pytest.approx(4.2)] * 50
    await pause.wait()
    assert pause.close(None, 0.0) == 8.0


async def test_retry_after_extends_pause_and_never_shortens_it() -> None:
    pause = Pause(LoopClock())
    assert pause.close(5.0, 0.0) == 5.0
    assert pause.close(30.0, 0.0) == 30.0
    assert pause.close(1.0, 0.0) == 30.0


async def test_jitter_only_lengthens_pause() -> None:
    assert Pause(LoopClock()).close(10.0, 0.999) == pytest.approx(11.0, abs=0.01)


async def test_pause_extended_while_waited_for_is_waited_out() -> None:
    pause, clock = Pause(LoopClock()), LoopClock()
    pause.close(10.0, 0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pause.wait)
        await clock.sleep(5.0)
        pause.close(20.0, 0.0)
    assert clock.monotonic() == pytest.approx(25.0, abs=0.01)


async def test_long_retry_after_is_capped() -> None:
    assert Pause(LoopClock()).close(3600.0, 0.0) == 300.0


async def test_penalize_pauses_window() -> None:
    limiter = StartsPerWindow(3, 60.0, clock=LoopClock())
    grants = Grants(limiter)
    await grants.one(0)
    await limiter.penalize(None)
    await grants.one(1)
    await limiter.penalize(100.0)
    async with anyio.create_task_group() as tasks:
        for number in (2, 3):
            tasks.start_soon(grants.one, number)
    assert grants.times == pytest.approx([0, 0, 100, 100], abs=0.01)


# ---- gate ----


async def test_gate_counts_waiters_by_reason() -> None:
    slots = Slots(10)
    gate = Gate(StartsPerWindow(1, 60.0, clock=LoopClock()), slots, LoopClock())
    slot = await slots.acquire()
    await gate.wait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.wait)
        await settled()
        assert (gate.waiting_for_rate, gate.waiting_for_pause) == (1, 0)
        seconds = await gate.record_refused(RateLimitedError("2 per 1 minute", status=429), slot, 0.0)
        assert [seconds, gate.pause_left] == pytest.approx([4.0, 4.0])
        tasks.start_soon(gate.wait)
        await settled()
        assert (gate.waiting_for_rate, gate.waiting_for_pause) == (1, 1)
        tasks.cancel_scope.cancel()
    assert (gate.waiting_for_rate, gate.waiting_for_pause) == (0, 0)
    assert gate.refusals == {Limit.STARTS: 1}
    await slot.turn()
    slot.release()


async def test_every_429_pauses_when_slots_are_not_adaptive() -> None:
    slots = Slots(10, adaptive=False)
    gate = Gate(NoLimit(), slots, LoopClock())
    running, refused = await slots.acquire(), await slots.acquire()
    running.mark_running()
    assert await gate.record_refused(RateLimitedError("concurrency limit", status=429), refused, 0.0) == 4.0
    assert gate.closed
    await refused.turn()
    assert slots.total == 10


# ---- slots ----


async def test_refused_jobs_go_first_and_in_order() -> None:
    slots = Slots(4)
    held = [await slots.acquire() for _ in range(4)]
    order: list[int] = []

    async def again(slot: Slot, number: int) -> None:
        await slot.turn()
        order.append(number)
        slot.mark_running()

    async def late() -> None:
        slot = await slots.acquire()
        order.append(9)
        slot.release()

    held[0].mark_running()
    held[1].mark_running()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(late)
        await settled()
        for slot in held[2:]:
            slots.record_refused(slot, Limit.RUNNING)
        for number, slot in ((2, held[2]), (3, held[3])):
            tasks.start_soon(again, slot, number)
        await settled()
        assert (slots.total, slots.running, slots.waiting, order) == (2, 2, 3, [])
        for number in (0, 1, 2):
            held[number].release()
            await settled()
    assert order == [2, 3, 9]
    held[3].release()
    assert (slots.taken, slots.running, slots.waiting) == (0, 0, 0)


async def test_burst_of_refusals_lowers_capacity_once() -> None:
    slots = Slots(100)
    held = []
    for _ in range(50):
        held.append(await slots.acquire())
        held[-1].mark_running()
    burst = [await slots.acquire() for _ in range(4)]
    for slot in burst:
        slots.record_refused(slot, Limit.RUNNING)
    assert slots.total == 49
    held.pop().release()
    held.pop().release()
    await burst[0].turn()
    slots.record_refused(burst[0], Limit.RUNNING)
    assert slots.total == 33, "a refusal although two had ended lowers the capacity further"


@pytest.mark.parametrize("release_first", [False, True])
async def test_cancelling_turn_leaks_no_slot(*, release_first: bool) -> None:
    slots = Slots(2)
    running, refused = await slots.acquire(), await slots.acquire()
    running.mark_running()
    slots.record_refused(refused, Limit.RUNNING)
    waiting = asyncio.create_task(refused.turn())
    behind = asyncio.create_task(slots.acquire())
    await settled()
    if release_first:
        running.release()
    waiting.cancel()
    await asyncio.wait([waiting])
    refused.release()
    running.release()
    (await behind).release()
    assert (slots.taken, slots.running, slots.waiting) == (0, 0, 0)


async def test_take_counts_running_up_to_total() -> None:
    slots = Slots(20)
    taken = [slots.take() for _ in range(25)]
    assert (slots.taken, slots.running) == (20, 20)
    for slot in taken:
        slot.release()
    assert (slots.taken, slots.running) == (0, 0)


async def test_slots_are_first_come_first_served() -> None:
    slots, order = Slots(2), []

    async def one(number: int) -> None:
        slot = await slots.acquire()
        order.append(number)
        await anyio.sleep(10.0)
        slot.release()

    async with anyio.create_task_group() as tasks:
        for number in range(7):
            tasks.start_soon(one, number)
        await settled()
        assert (slots.total, slots.taken, slots.waiting) == (2, 2, 5)
    assert order == list(range(7))
    assert (slots.taken, slots.waiting) == (0, 0)
    assert LoopClock().monotonic() == pytest.approx(40.0, abs=0.01)


async def test_handed_over_slot_is_not_taken_by_newcomer() -> None:
    slots, order = Slots(1), []

    async def one(number: int) -> Slot:
        slot = await slots.acquire()
        order.append(number)
        return slot

    first = await one(0)
    waiting = asyncio.create_task(one(1))
    await settled()
    first.release()
    late = asyncio.create_task(one(2))
    (await waiting).release()
    (await late).release()
    assert order == [0, 1, 2]


async def test_second_release_does_nothing() -> None:
    slots = Slots(2)
    one, other = await slots.acquire(), await slots.acquire()
    one.release()
    one.release()
    assert slots.taken == 1
    third = await slots.acquire()
    one.release()
    assert slots.taken == 2
    other.release()
    third.release()
    assert slots.taken == 0


async def test_slot_may_be_released_by_other_task() -> None:
    slots = Slots(1)
    slot = await slots.acquire()

    async def release() -> None:
        slot.release()

    await asyncio.create_task(release())
    assert slots.taken == 0


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("release_first", [False, True])
async def test_cancelling_queued_acquire_leaks_no_slot(steps: int, *, release_first: bool) -> None:
    slots = Slots(1)
    held = await slots.acquire()
    waiting = asyncio.create_task(slots.acquire())
    behind = asyncio.create_task(slots.acquire())
    for _ in range(steps):
        await asyncio.sleep(0)
    if release_first:
        # The slot is handed over, and its new owner is cancelled before it runs.
        held.release()
    waiting.cancel()
    held.release()
    await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.result().release()
    (await behind).release()
    assert (slots.taken, slots.waiting) == (0, 0)


@pytest.mark.parametrize("steps", range(4))
async def test_cancelling_immediate_acquire_leaks_no_slot(steps: int) -> None:
    slots = Slots(1)
    taking = asyncio.create_task(slots.acquire())
    for _ in range(steps):
        await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    if not taking.cancelled():
        taking.result().release()
    assert slots.taken == 0


async def test_cancelled_scope_leaks_no_slot() -> None:
    slots = Slots(1)
    held = await slots.acquire()
    with anyio.move_on_after(5.0) as scope:
        await slots.acquire()
    assert scope.cancelled_caught
    assert (slots.taken, slots.waiting) == (1, 0)
    held.release()
    (await slots.acquire()).release()
    assert slots.taken == 0


async def prepared(slots: Slots, ahead: int, begun: list[int], number: int, ready: asyncio.Event) -> Slot:
    async with slots.preparation(ahead):
        begun.append(number)
        await ready.wait()
        return await slots.acquire()


async def test_jobs_are_prepared_for_free_slots_and_a_few_more() -> None:
    slots, begun, ready = Slots(3), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(prepared(slots, 2, begun, number, ready)) for number in range(10)]
    await settled()
    assert begun == [0, 1, 2, 3, 4], "three for the slots that are free, two ahead"
    assert slots.waiting == 5
    ready.set()
    await settled()
    assert begun == [0, 1, 2, 3, 4], "two are ready, and wait for a slot"
    for number in range(7):
        slot = await tasks[number]
        slot.mark_running()
        slot.release()
        await settled()
        assert begun[-1] == min(number + 5, 9), "one that gets a slot makes room for one more"
    for task in tasks[7:]:
        (await task).release()
    assert (slots.taken, slots.waiting) == (0, 0)


@pytest.mark.parametrize("admitted", [False, True])
async def test_cancelling_preparation_makes_room(*, admitted: bool) -> None:
    slots, begun, ready = Slots(1), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(prepared(slots, 1, begun, number, ready)) for number in range(4)]
    await settled()
    assert begun == [0, 1]
    tasks[0].cancel()
    if admitted:
        await asyncio.wait([tasks[0]])
    tasks[2].cancel()
    await settled()
    assert begun == [0, 1, 3] or (admitted and begun == [0, 1, 2, 3])
    ready.set()
    slot = await tasks[1]
    slot.mark_running()
    slot.release()
    (await tasks[3]).release()
    assert (slots.taken, slots.waiting) == (0, 0)


async def test_closing_ends_the_wait_for_preparation() -> None:
    slots, begun, ready = Slots(1), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(prepared(slots, 1, begun, number, ready)) for number in range(4)]
    await settled()
    slots.close()
    ready.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, SessionClosedError) for one in ended)
    assert begun == [0, 1]
    assert slots.taken == 0


# ---- ready queue ----


async def test_what_continues_goes_before_what_begins_the_smallest_rank_first() -> None:
    slots = Slots(1)
    held = await slots.acquire()
    order: list[str] = []

    async def wait(name: str, rank: float = math.inf) -> None:
        slot = await slots.acquire(Place(rank=rank))
        order.append(name)
        slot.release()

    async with anyio.create_task_group() as tasks:
        waiting = (("new", math.inf), ("newer", math.inf), ("late film", 7), ("first film", 2), ("first film again", 2))
        for name, rank in waiting:
            tasks.start_soon(wait, name, rank)
            await settled()
        assert slots.waiting == 5
        held.release()
    assert order == ["first film", "first film again", "late film", "new", "newer"]
    assert slots.waiting == slots.taken == 0


async def test_cancelled_waiters_with_ranks_leave_no_slot_behind() -> None:
    slots = Slots(1)
    held = await slots.acquire()
    for moment in ("while it waits", "once it is served"):
        waiting = asyncio.create_task(slots.acquire(Place(rank=1)))
        await settled()
        assert slots.waiting == 1, moment
        if moment == "once it is served":
            held.release()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert slots.waiting == 0, moment
    assert slots.taken == 0
    (await slots.acquire()).release()


async def test_what_continues_is_prepared_first() -> None:
    slots = Slots(1)
    held = await slots.acquire()
    order: list[str] = []

    async def prepare(name: str, rank: float = math.inf) -> None:
        async with slots.preparation(1, Place(rank=rank)):
            order.append(name)
            await settled()

    async with anyio.create_task_group() as tasks:
        for name, rank in (("under way", math.inf), ("new", math.inf), ("newer", math.inf), ("film", 3)):
            tasks.start_soon(prepare, name, rank)
            await anyio.lowlevel.checkpoint()
    assert order == ["under way", "film", "new", "newer"]
    held.release()
