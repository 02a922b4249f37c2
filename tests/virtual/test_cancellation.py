"""Promise 2: cancellation at any point of a submit never loses a paid id."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import HttpRequest, HttpResponse, SessionClosedError, events, read_ledger
from kling_async._core.http import Effect
from kling_async.ledger import State
from kling_async.testing import json_response
from support import virtual
from support.service import IMAGE, Service, open_session
from support.slow import STEP, SlowLedger, SlowLimiter

pytestmark = pytest.mark.anyio

Way = Callable[[Callable[[], Awaitable[object]], float], Awaitable[None]]


async def task_cancel(work: Callable[[], Awaitable[object]], after: float) -> None:
    task = asyncio.ensure_future(work())
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait([task])


async def wait_for(work: Callable[[], Awaitable[object]], after: float) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work(), after)


async def asyncio_timeout(work: Callable[[], Awaitable[object]], after: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after):
            await work()


async def failing_sibling(work: Callable[[], Awaitable[object]], after: float) -> None:
    async def fail() -> None:
        await asyncio.sleep(after)
        raise ZeroDivisionError

    async def run() -> None:
        await work()

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run())
            tasks.create_task(fail())


async def anyio_scope(work: Callable[[], Awaitable[object]], after: float) -> None:
    with anyio.move_on_after(after) as scope:
        await work()
    assert scope.cancelled_caught


async def anyio_sibling(work: Callable[[], Awaitable[object]], after: float) -> None:
    async def run() -> None:
        await work()

    async def fail() -> None:
        await anyio.sleep(after)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            tasks.start_soon(fail)


async def cancelled_again_and_again(work: Callable[[], Awaitable[object]], after: float) -> None:
    task = asyncio.ensure_future(work())
    await asyncio.sleep(after)
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])


WAYS = [task_cancel, wait_for, asyncio_timeout, failing_sibling, anyio_scope, anyio_sibling, cancelled_again_and_again]
# rate limiter, intent, request (two awaits), submitted, waiting for the end
MOMENTS = [STEP * quarter / 4 for quarter in range(1, 20)]


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.promise(2)
async def test_cancellation_at_any_point_records_id_or_sends_nothing(way: Way, after: float) -> None:
    service, ledger = Service(latency=STEP), SlowLedger()
    async with open_session(service, ledger=ledger, rate_limiter=SlowLimiter(), max_in_flight=3) as kling:

        async def work() -> object:
            return await kling.generate(prompt="x", image=IMAGE)

        await way(work, after)
    check_books(service, ledger)
    if after < STEP:
        assert not service.paid
    if after > 2 * STEP + 0.01:
        assert service.paid


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.promise(2)
async def test_close_during_submit_records_sent_requests(after: float) -> None:
    service, ledger = Service(latency=STEP), SlowLedger()
    kling = open_session(service, ledger=ledger, rate_limiter=SlowLimiter())
    async with kling:
        task = asyncio.create_task(kling.generate(prompt="x", image=IMAGE))
        await asyncio.sleep(after)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- which one depends on the moment
        await task
    check_books(service, ledger)
    assert not isinstance(caught.value, AssertionError)
    assert len(kling.left_running) == len(service.paid)


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.promise(2)
def test_loop_shutdown_waits_for_sent_requests(after: float) -> None:
    """`asyncio.run` cancels every task it can see when the main coroutine is done."""
    service, ledger = Service(latency=STEP), SlowLedger()

    async def background() -> None:
        async with open_session(service, ledger=ledger, rate_limiter=SlowLimiter()) as kling:
            await kling.generate(prompt="x", image=IMAGE)

    async def main() -> None:
        task = asyncio.create_task(background())
        await asyncio.sleep(after)
        assert not task.done()

    with asyncio.Runner(loop_factory=virtual.new_event_loop) as runner:
        runner.run(main())
    check_books(service, ledger)
    if after > 2 * STEP + 0.01:
        assert service.paid


@pytest.mark.parametrize("after", MOMENTS)
def test_loop_shutdown_with_unclosed_session_loses_no_id(after: float) -> None:
    service, ledger = Service(latency=STEP), SlowLedger()

    async def main() -> None:
        kling = await open_session(service, ledger=ledger, rate_limiter=SlowLimiter()).__aenter__()
        task = asyncio.create_task(kling.generate(prompt="x", image=IMAGE))
        await asyncio.sleep(after)
        assert not task.done()

    with asyncio.Runner(loop_factory=virtual.new_event_loop) as runner:
        runner.run(main())
    check_books(service, ledger)


def check_books(service: Service, ledger: SlowLedger) -> None:
    """Check that the ledger has the id of every paid prediction and no intent without an end."""
    states: dict[str, list[State]] = {}
    for entry in ledger.entries:
        states.setdefault(entry.key, []).append(entry.state)
    assert set(ledger.recorded) == set(service.accepted)
    for steps in states.values():
        assert steps[:1] == [State.INTENT]
        assert len(steps) > 1, "an intent was left without an end"


async def test_slot_is_released_after_every_outcome() -> None:
    service, ledger = Service(latency=STEP, seconds=20), SlowLedger()
    async with open_session(service, ledger=ledger, rate_limiter=SlowLimiter(), max_in_flight=1) as kling:

        async def work() -> object:
            return await kling.generate(prompt="x", image=IMAGE)

        for way in WAYS:
            for after in MOMENTS:
                await way(work, after)
                await anyio.sleep(60)
                assert kling._engine.slots.taken == 0


@pytest.mark.parametrize("way", WAYS)
async def test_slot_is_released_after_refusal_without_waiter(way: Way) -> None:
    def refuse(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        return json_response({"code": 429, "message": "no"}, status=429) if request.effect is Effect.PAID else None

    service = Service(latency=STEP, script=refuse)
    async with open_session(service, max_in_flight=1) as kling:

        async def work() -> object:
            return await kling.generate(prompt="x", image=IMAGE)

        await way(work, STEP / 2)
        await anyio.sleep(2 * STEP)
        assert kling._engine.slots.taken == 0
        assert await kling._engine.ledger.rows(State) == [], "nothing is kept of a job that is nobody's"


async def test_cancelled_slot_wait_sends_nothing() -> None:
    service = Service()
    async with open_session(service, max_in_flight=1) as kling:
        first = asyncio.create_task(kling.generate(prompt="first", image=IMAGE))
        await anyio.sleep(5)
        with anyio.move_on_after(10):
            await kling.generate(prompt="second", image=IMAGE)
        await first
        assert (await kling.generate(prompt="third", image=IMAGE)).output
    assert [body["prompt"] for body in service.paid] == ["first", "third"]


async def test_attempt_cancelled_before_first_step_holds_nothing() -> None:
    """A task factory cancels the tasks it creates, since critical tasks cannot be reached in another way."""
    left = 1

    def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal left
        task = asyncio.Task(coro, loop=loop, **options)
        if left and coro.__qualname__ == "JobRunner._send_and_watch":
            left -= 1
            task.cancel()
        return task

    service = Service()
    async with open_session(service, max_in_flight=1) as kling:
        asyncio.get_running_loop().set_task_factory(make)
        task = asyncio.create_task(kling.generate(prompt="x", image=IMAGE, key="mine"))
        await asyncio.wait([task], timeout=100)
        asyncio.get_running_loop().set_task_factory(None)
        assert task.cancelled()
        assert not left
        assert kling._engine.slots.taken == 0
        assert (await kling.generate(prompt="x", image=IMAGE, key="mine")).output
    assert len(service.paid) == 1


async def test_job_refused_during_close_does_not_wait_for_turn() -> None:
    def refuse(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and service.paid:
            return json_response({"code": 429, "message": "too many concurrent tasks running"}, status=429)
        return None

    service = Service(latency=STEP, script=refuse)
    async with open_session(service) as kling:
        await kling.submit(prompt="first", image=IMAGE)
        task = asyncio.create_task(kling.generate(prompt="second", image=IMAGE))
        await asyncio.sleep(STEP / 2)
    await asyncio.wait([task], timeout=1000)
    assert task.done()
    assert isinstance(task.exception(), SessionClosedError)


async def test_cancelled_error_mentions_submit_in_progress() -> None:
    service = Service(latency=STEP)
    async with open_session(service) as kling:
        task = asyncio.create_task(kling.generate(prompt="x", image=IMAGE, key="mine"))
        await anyio.sleep(STEP / 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    assert "job mine was being submitted" in " ".join(caught.value.__notes__)


async def test_closed_session_refuses_work() -> None:
    service = Service()
    kling = open_session(service)
    with pytest.raises(SessionClosedError, match="not open yet"):
        await kling.generate(prompt="x", image=IMAGE)
    async with kling:
        pass
    with pytest.raises(SessionClosedError, match="closed"):
        await kling.generate(prompt="x", image=IMAGE)
    with pytest.raises(SessionClosedError, match="once"):
        async with kling:
            pass
    assert not service.paid


async def test_cancelled_close_still_completes() -> None:
    service, ledger = Service(latency=20 * STEP), SlowLedger()

    async def use() -> None:
        async with open_session(service, ledger=ledger) as kling:
            tasks.append(asyncio.create_task(kling.submit(prompt="x", image=IMAGE)))
            await asyncio.sleep(3 * STEP)

    tasks: list[asyncio.Task[object]] = []
    task = asyncio.create_task(use())
    await asyncio.sleep(4 * STEP)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(STEP)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(service.accepted) == 1
    check_books(service, ledger)
    await asyncio.wait(tasks)


def test_ledger_file_survives_loop_shutdown(tmp_path: Path) -> None:
    """In real time, because the ledger writes in a thread."""
    path = tmp_path / "run.db"
    service = Service(latency=0.05)

    async def main() -> None:
        sending = asyncio.Event()

        def observe(event: events.Event) -> None:
            if isinstance(event, events.Submitting):
                sending.set()

        kling = await open_session(service, ledger=path, observers=[observe]).__aenter__()
        asyncio.create_task(kling.generate(prompt="x", image=IMAGE, key="mine"))  # noqa: RUF006 -- abandoned on purpose
        await sending.wait()

    asyncio.run(main())
    assert [(row.key, row.prediction_id, row.state) for row in read_ledger(path)] == [
        ("mine", "p00000", State.SUBMITTED)
    ]
