"""Short work in threads: pieces that wait go together, slow ones side by side, and no caller is left waiting."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import math
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from kling_async import _threads
from kling_async._images.preflight import sha256_of_small
from kling_async._images.uploads import digest
from kling_async._threads import run_short

pytestmark = pytest.mark.anyio


class Blocking:
    """Work that holds its thread until it is released."""

    def __init__(self) -> None:
        self.began, self._released = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self._released.wait(30)
        return "released"

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an item for each thread that is taken."""
    threads: list[int] = []
    run_sync = anyio.to_thread.run_sync

    async def counted(work: Callable[..., Any], *args: object) -> Any:
        threads.append(1)
        return await run_sync(work, *args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    return threads


async def begun(work: Blocking) -> asyncio.Task[str]:
    """Return the task of work that is under way."""
    task = asyncio.create_task(run_short(work))
    await asyncio.to_thread(work.began.wait, 30)
    return task


async def test_pieces_that_wait_are_done_in_one_go(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "SLOW_S", math.inf)
    monkeypatch.setattr(_threads, "GO_S", math.inf)
    first = Blocking()
    task = await begun(first)

    def failing() -> int:
        raise LookupError("the hundredth")

    waiting = [asyncio.create_task(run_short(partial(int, number))) for number in range(100)]
    waiting.append(asyncio.create_task(run_short(failing)))
    await asyncio.sleep(0)
    first.release()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert done[:100] == list(range(100))
    assert isinstance(done[100], LookupError)
    assert await task == "released"
    assert len(taken) == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_errors_are_freed_with_their_last_reference(*, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their frames hold pictures."""
    monkeypatch.setattr(_threads, "SLOW_S", math.inf)
    monkeypatch.setattr(_threads, "GO_S", math.inf)

    class UnreadableError(Exception):
        pass

    def failing() -> None:
        raise UnreadableError

    first = Blocking()
    others = [await begun(first)] if waits else []
    asyncio.get_running_loop().call_later(0.0, first.release)
    gc.disable()
    try:
        with pytest.raises(UnreadableError) as caught:
            await run_short(failing)
        error = weakref.ref(caught.value)
        del caught
        await asyncio.gather(*others)
        assert error() is None
    finally:
        gc.enable()


async def test_slow_work_holds_up_no_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that waits is given a thread in the end, whether or not anything else comes."""
    monkeypatch.setattr(_threads, "SLOW_S", 0.0)
    monkeypatch.setattr(_threads, "GO_S", -1.0)
    slow = [Blocking() for _ in range(3)]
    tasks = [asyncio.create_task(run_short(work)) for work in slow]
    last = asyncio.create_task(run_short(partial(int, 7)))
    for work in slow:
        await asyncio.to_thread(work.began.wait, 30)
    assert await last == 7
    for work in slow:
        work.release()
    assert await asyncio.gather(*tasks) == ["released"] * 3


@pytest.mark.parametrize("in_memory", [True, False])
async def test_large_files_are_hashed_in_threads_of_their_own(*, in_memory: bool, tmp_path: Path) -> None:
    for size, is_small in ((2**20, True), (2**20 + 1, False)):
        content = bytes(size)
        path = tmp_path / str(size)
        path.write_bytes(content)
        file = content if in_memory else path
        assert (sha256_of_small(file, "image") is not None) is is_small
        assert await digest(file) == hashlib.sha256(content).hexdigest()


async def test_slow_work_takes_no_more_threads_than_permitted(
    taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threads, "SLOW_S", 0.0)
    monkeypatch.setattr(_threads, "MAX_THREADS", 2)
    slow = [Blocking() for _ in range(2)]
    tasks = [asyncio.create_task(run_short(work)) for work in slow]
    for work in slow:
        await asyncio.to_thread(work.began.wait, 30)
    third = asyncio.create_task(run_short(partial(int, 3)))
    for _ in range(20):
        # The timer looks as often.
        await asyncio.sleep(0)
    assert len(taken) == 2
    for work in slow:
        work.release()
    assert await third == 3
    assert await asyncio.gather(*tasks) == ["released"] * 2


async def test_quick_work_takes_no_further_thread(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "SLOW_S", 30.0)
    first = Blocking()
    task = await begun(first)
    waiting = asyncio.create_task(run_short(partial(int, 7)))
    await asyncio.sleep(0)
    # The timer: what is under way began a moment ago.
    _threads._short_work.get()._look(asyncio.get_running_loop())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(taken) == 1
    first.release()
    assert (await task, await waiting) == ("released", 7)


async def test_work_whose_caller_was_cancelled_meanwhile_ends_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "SLOW_S", math.inf)
    monkeypatch.setattr(_threads, "GO_S", math.inf)
    first, second = Blocking(), Blocking()
    task = await begun(first)
    cancelled = asyncio.create_task(run_short(second))
    await asyncio.sleep(0)
    first.release()
    await asyncio.to_thread(second.began.wait, 30)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    second.release()
    assert await task == "released"


async def test_a_cancelled_caller_leaves_the_thread_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "SLOW_S", math.inf)
    monkeypatch.setattr(_threads, "GO_S", -1.0)
    first = Blocking()
    second = asyncio.Event()

    async def ends() -> None:
        await run_short(first)
        # The second has been told to take a thread, and has not run since.
        tasks[0].cancel()
        second.set()

    ending = asyncio.create_task(ends())
    await asyncio.to_thread(first.began.wait, 30)
    done: list[int] = []
    tasks = [asyncio.create_task(run_short(partial(done.append, number))) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    first.release()
    await second.wait()
    async with asyncio.timeout(30):
        ends_of_all = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends_of_all] == [asyncio.CancelledError, asyncio.CancelledError, type(None)]
    assert done == [2]
    await ending
    assert await run_short(lambda: 5) == 5, "no thread counts as taken"


async def test_what_a_cancelled_caller_has_done_for_others_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "SLOW_S", math.inf)
    monkeypatch.setattr(_threads, "GO_S", math.inf)
    first = Blocking()
    task = await begun(first)
    waiting = asyncio.create_task(run_short(lambda: 7))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    first.release()
    async with asyncio.timeout(30):
        assert await waiting == 7
    with pytest.raises(asyncio.CancelledError):
        await task
