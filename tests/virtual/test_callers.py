"""Callers who share the slots of a session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from zlib import crc32

import anyio
import pytest

from kling_async import (
    CallerLimitError,
    CallerLimits,
    ConfigurationError,
    InvalidJobError,
    Job,
    KlingSession,
)
from support import shares
from support.pictures import png
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

CALLERS = {caller: CallerLimits(weight=weight) for caller, weight in shares.CALLERS.items()}


def jobs(caller: str, count: int, **fields: Any) -> Iterator[Job]:
    fields.setdefault("image", IMAGE)
    return (Job(prompt=f"{caller} {number}", caller=caller, **fields) for number in range(count))


async def consume(kling: KlingSession, caller: str, count: int, **fields: Any) -> None:
    async with kling.batch(jobs(caller, count, **fields), name=caller) as batch:
        async for outcome in batch:
            assert outcome.ok, outcome.error


def starters(service: Service) -> list[str]:
    """Return who started a job, in the order of starts."""
    return [body["prompt"].rpartition(" ")[0] for body in service.paid]


@pytest.mark.repeats
async def test_slots_go_round_the_callers_by_weight() -> None:
    service = Service(seconds=lambda body: 40.0 + crc32(body["prompt"].encode()) % 40)
    async with open_session(service, max_in_flight=100, callers=CALLERS) as kling, anyio.create_task_group() as tasks:
        for caller in CALLERS:
            tasks.start_soon(consume, kling, caller, 60)
    callers = starters(service)
    # The first hundred find the slots free; after 720 the heaviest callers have nothing left.
    assert shares.worst_deviation(callers[100:720], 200) <= 2
    assert Counter(callers) == dict.fromkeys(CALLERS, 60)
    assert service.peak == 100


async def test_a_newcomer_starts_with_the_next_free_slot() -> None:
    service = Service(seconds=60.0)
    async with open_session(service, max_in_flight=10) as kling, anyio.create_task_group() as tasks:
        tasks.start_soon(consume, kling, "first", 400)
        await anyio.sleep(200)
        before = len(service.paid)
        await kling.submit(prompt="newcomer 0", image=IMAGE, caller="newcomer")
        assert "newcomer" in starters(service)[before : before + 10]


async def test_a_caller_alone_gets_everything() -> None:
    service = Service()
    async with open_session(service, max_in_flight=50, callers=CALLERS) as kling:
        await consume(kling, "caller-00", 200)
    assert service.peak == 50


async def test_higher_priorities_of_a_caller_start_first() -> None:
    service = Service()
    async with open_session(service, max_in_flight=1) as kling, anyio.create_task_group() as tasks:
        tasks.start_soon(consume, kling, "slow", 1)
        await anyio.sleep(5)
        tasks.start_soon(consume, kling, "low", 3)
        await anyio.sleep(5)
        for number, priority in enumerate((0, 5, -5, 9)):
            job = Job(prompt=f"p {priority} {number}", image=IMAGE, caller="slow", priority=priority)
            tasks.start_soon(kling.submit, job)
    order = [body["prompt"] for body in service.paid if body["prompt"].startswith("p ")]
    assert order == ["p 9 3", "p 5 1", "p 0 0", "p -5 2"]


@pytest.mark.parametrize("picture", [IMAGE, png(300, 300)], ids=["url", "file"])
async def test_a_callers_running_limit_holds_and_leaves_the_rest_to_others(picture: Any) -> None:
    running: Counter[str] = Counter()
    peaks: Counter[str] = Counter()
    service = Service()

    def seconds(body: dict[str, Any]) -> float:
        caller = body["prompt"].partition(" ")[0]
        now = service.clock.monotonic()
        running[caller] = 1 + sum(
            since + lasts > now and other["prompt"].startswith(f"{caller} ")
            for since, lasts, other in service.accepted.values()
        )
        peaks[caller] = max(peaks[caller], running[caller])
        return 60.0

    service.seconds = seconds
    limits = {"few": CallerLimits(running=3, weight=100)}
    async with (
        open_session(service, max_in_flight=10, callers=limits, images="inline") as kling,
        anyio.create_task_group() as tasks,
    ):
        for caller, count in (("few", 6), ("many", 60)):
            tasks.start_soon(partial(consume, kling, caller, count, image=picture))
    assert peaks["few"] == 3
    assert peaks["many"] == 10, "alone at the end, and seven before"


async def test_one_more_waiting_job_than_a_caller_may_have_is_refused_unpaid() -> None:
    service = Service()
    limits = {"a": CallerLimits(queued=2)}
    async with open_session(service, max_in_flight=1, callers=limits.__getitem__) as kling:
        await kling.submit(prompt="a 0", image=IMAGE, caller="a")
        async with anyio.create_task_group() as tasks:
            for number in (1, 2):
                tasks.start_soon(kling.submit, Job(prompt=f"a {number}", image=IMAGE, caller="a"))
            await anyio.sleep(1)
            with pytest.raises(CallerLimitError, match="caller 'a' has 2 jobs waiting") as caught:
                await kling.submit(prompt="a 3", image=IMAGE, caller="a")
            assert caught.value.job is not None
            assert caught.value.retry_after > 0
    assert [body["prompt"] for body in service.paid] == ["a 0", "a 1", "a 2"]


async def test_closing_ends_the_waiting_of_callers_at_their_limits() -> None:
    service = Service(seconds=1e6)
    with anyio.fail_after(1000):
        async with (
            open_session(service, max_in_flight=5, callers={"a": CallerLimits(running=1)}, deadline=10.0) as kling,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(consume_nothing, kling)
            await anyio.sleep(20)
            tasks.cancel_scope.cancel()
    assert len(service.paid) == 1


async def consume_nothing(kling: KlingSession) -> None:
    async with kling.batch(jobs("a", 5), name="a") as batch:
        async for _ in batch:
            pass


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"caller": 7.5}, "caller"),
        ({"caller": True}, "caller"),
        ({"caller": "x" * 201}, "caller"),
        ({"caller": "a\nb"}, "caller"),
        ({"priority": "high"}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 10**9}, "priority"),
    ],
)
def test_callers_and_priorities_are_checked(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidJobError) as caught:
        Job(prompt="Wind", image=IMAGE, **fields)
    assert [problem.path for problem in caught.value.problems] == [path]


@pytest.mark.parametrize(
    "limits",
    [
        {"usd": -1},
        {"weight": 1e17},
        {"weight": 0},
        {"weight": float("inf")},
        {"running": 0},
        {"queued": 1.5},
        {"running": True},
    ],
)
def test_limits_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"(callers: \w+|budget): expected"):
        CallerLimits(**limits)


def test_callers_and_priorities_identify_nothing() -> None:
    plain = Job(prompt="Wind", image=IMAGE)
    assert plain == Job(prompt="Wind", image=IMAGE, caller="a", priority=3)
