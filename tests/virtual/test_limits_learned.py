"""Adaptive limits follow the account's real limits, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import anyio
import attrs
import pytest

from kling_async import HttpRequest, HttpResponse, Job, NoLimit, RateLimitedError, SessionClosedError, WatchPolicy
from kling_async._core.http import Effect
from kling_async.limits import Limit, StartsPerWindow
from kling_async.testing import LoopClock, json_response
from support import virtual
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    # Advance time after one idle iteration of the loop, not 42: there is no outside I/O to wait for.
    return "asyncio", {"loop_factory": lambda: virtual.new_event_loop(noop_cycles=1)}


def refusal(message: str, **headers: str) -> HttpResponse:
    return json_response({"code": 429, "message": message}, status=429, headers=headers)


CONCURRENCY = refusal("You have reached your concurrency limit")
STARTS = refusal("Rate limit exceeded: 2 predictions per 1 minute")
SILENT = refusal("Too many requests")


@attrs.define
class Account(Service):
    """Service that runs at most `limit(accepted)` predictions at once and does not announce it."""

    limit: Callable[[int], int] = lambda _: 100
    refusal: HttpResponse = CONCURRENCY
    refused: int = 0
    seconds: Any = 120.0
    _ends: list[float] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.script = self.answer

    def answer(self, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        if self.count_running() >= self.limit(len(self.accepted)):
            self.refused += 1
            return self.refusal
        id_ = f"p{len(self.accepted):05d}"
        response = self.accept(body)
        since, seconds, _ = self.accepted[id_]
        heapq.heappush(self._ends, since + seconds)
        self.peak = max(self.peak, len(self._ends))
        return response

    def count_running(self) -> int:
        while self._ends and self._ends[0] <= self.clock.monotonic():
            heapq.heappop(self._ends)
        return len(self._ends)


def log_normal(median: float) -> Callable[[object], float]:
    rng = random.Random(7)
    return lambda _: rng.lognormvariate(math.log(median), 0.4)


async def run(account: Account, jobs: int, **options: Any) -> tuple[int, float]:
    """Return the number of completed jobs and the seconds they took."""
    policy = WatchPolicy.fixed(10.0)
    async with open_session(account, rate_limiter=NoLimit(), watch=policy, **options) as kling:
        began = account.clock.monotonic()
        async with kling.batch(Job(prompt=f"{number}", image=IMAGE) for number in range(jobs)) as batch:
            done = [outcome.ok async for outcome in batch].count(True)
        return done, account.clock.monotonic() - began


def moving(first: int, last: int) -> Callable[[int], int]:
    return lambda accepted: 40 if first <= accepted < last else 100


@pytest.mark.timeout(200)
@pytest.mark.repeats
async def test_slots_follow_hidden_account_limit() -> None:
    """The limit is 100, then 40, then 100 again, with 4,000 jobs and a ceiling of 300."""
    account = Account(seconds=log_normal(60), limit=moving(1400, 2400))
    done, seconds = await run(account, 4000, max_in_flight=300)
    fixed = Account(seconds=log_normal(60), limit=moving(140, 240))
    fixed_done, _ = await run(fixed, 400, max_in_flight=300, adaptive=False)
    ideal = sum(account.accepted[f"p{n:05d}"][1] / account.limit(n) for n in range(4000))
    print(
        f"\nhidden limit 100, 40, 100: {account.refused} of 4000 jobs refused, {done} done in {seconds:.0f} s "
        f"({ideal:.0f} s with no idle place); a fixed limit, at a tenth of the jobs: {fixed.refused} refused"
    )
    assert done == len(account.accepted) == 4000
    assert account.refused < 50
    assert account.peak == 100, "what there is was used"
    assert seconds < 1.4 * ideal
    assert fixed_done == 400
    assert fixed.refused > 4 * account.refused


async def test_concurrency_429_waits_for_free_slot_without_pausing_others() -> None:
    account = Account(limit=lambda _: 2)
    async with open_session(account, max_in_flight=3) as kling:
        await kling.submit(prompt="first", image=IMAGE)
        await anyio.sleep(60)
        second = await kling.submit(prompt="second", image=IMAGE)
        third = asyncio.create_task(kling.submit(prompt="third", image=IMAGE))
        fourth = asyncio.create_task(kling.submit(prompt="fourth", image=IMAGE))
        await anyio.sleep(1)
        slots, gate = kling._engine.slots, kling._engine.gate
        assert account.refused == 1
        assert not gate.closed
        assert (slots.running, slots.total, slots.ceiling, slots.waiting) == (2, 2, 3, 2)
        assert gate.refusals == {Limit.RUNNING: 1}
        await kling.wait(second)
        await third
        await fourth
        starts = [account.accepted[f"p{number:05d}"][0] for number in range(4)]
        prompts = [body["prompt"] for body in account.paid]
    assert prompts == ["first", "second", "third", "fourth"], "who was refused comes first"
    assert 120 < starts[2] < 150, "when the first ended, long before any patience"
    assert starts[3] > 180, "and not beyond what is known to be possible"
    assert account.refused == 1


async def test_slot_wait_has_no_retry_limit() -> None:
    """The retry limit for refusals does not apply to the wait for a slot of the session."""
    account = Account(limit=lambda _: 1, seconds=1500.0)
    async with open_session(account, max_in_flight=2, deadline=5000.0) as kling:
        await asyncio.gather(*(kling.generate(prompt=f"{number}", image=IMAGE) for number in range(3)))
    assert account.refused < 5


async def test_account_full_of_foreign_jobs_is_probed_periodically() -> None:
    """Another process uses the whole account, so no prediction of this session will end."""
    account = Account(limit=lambda _: 0)
    async with open_session(account) as kling:
        with pytest.raises(RateLimitedError):
            await kling.submit(prompt="x", image=IMAGE)
        assert kling._engine.slots.taken == 0
    assert 10 < account.refused < 30


async def test_rate_429_pauses_session_and_keeps_slots() -> None:
    account = Account(limit=lambda accepted: 100 if accepted != 5 else 0, refusal=STARTS)
    async with open_session(account, max_in_flight=50) as kling:
        submits = [asyncio.create_task(kling.submit(prompt=f"{number}", image=IMAGE)) for number in range(20)]
        await anyio.sleep(2)
        gate, slots = kling._engine.gate, kling._engine.slots
        assert 0 < gate.pause_left < 5
        assert gate.paused_by is Limit.STARTS
        assert (slots.running, slots.total) == (5, 50)
        account.limit = lambda _: 100
        await asyncio.gather(*submits)
        assert not gate.closed
        assert gate.waiting_for_pause == gate.waiting_for_rate == slots.waiting == 0
    assert account.refused <= 6, "those that were on their way, and no more"


async def test_single_probe_follows_pause() -> None:
    account = Account(limit=lambda _: 0, refusal=STARTS)
    async with open_session(account, max_in_flight=50) as kling:
        submits = [asyncio.create_task(kling.submit(prompt=f"{number}", image=IMAGE)) for number in range(50)]
        await anyio.sleep(500)
        at_first, later = 4, 500 / 65 + 5
        assert account.refused <= at_first + later
        account.limit = lambda _: 100
        await asyncio.gather(*submits)
    assert len(account.accepted) == 50


async def test_unclassified_429_pauses_and_reduces_slots() -> None:
    account = Account(limit=lambda _: 4, refusal=SILENT)
    async with open_session(account, max_in_flight=10) as kling:
        submits = [asyncio.create_task(kling.generate(prompt=f"{number}", image=IMAGE)) for number in range(30)]
        await anyio.sleep(2)
        assert kling._engine.gate.closed
        assert kling._engine.gate.paused_by is Limit.UNKNOWN
        assert kling._engine.slots.total == 7
        await asyncio.gather(*submits)
        assert kling._engine.slots.total < 7
    assert account.refused < 30


async def test_long_retry_after_is_capped() -> None:
    account = Account(limit=lambda _: 0, refusal=refusal("slow down", **{"retry-after": "3600"}))
    times = []

    def answer(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            times.append(account.clock.monotonic())
        return account.answer(request, body)

    account.script = answer
    async with open_session(account) as kling:
        with pytest.raises(RateLimitedError) as caught:
            await kling.submit(prompt="x", image=IMAGE)
        assert caught.value.retry_after == 3600
        account.limit = lambda _: 1
        await kling.submit(prompt="y", image=IMAGE)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(300 <= gap < 332 for gap in gaps)
    assert len(times) == 4, "the first gave up after 15 minutes, and another went on"


async def test_shared_limiter_receives_penalty_of_service() -> None:
    limiter = StartsPerWindow(10, 1.0, clock=LoopClock())
    account = Account(limit=lambda _: 0, refusal=refusal("slow down", **{"retry-after": "50"}))
    other = Service()
    async with open_session(account, rate_limiter=limiter) as kling, open_session(other, rate_limiter=limiter) as two:
        refused = asyncio.create_task(kling.submit(prompt="x", image=IMAGE))
        await anyio.sleep(1)
        await two.submit(prompt="y", image=IMAGE)
        assert other.clock.monotonic() > 50
        account.limit = lambda _: 1
        await refused


async def test_close_rejects_waiting_jobs() -> None:
    account = Account(limit=lambda _: 1)
    kling = await open_session(account, max_in_flight=3).__aenter__()
    submits = [asyncio.create_task(kling.submit(prompt=f"{number}", image=IMAGE)) for number in range(5)]
    await anyio.sleep(5)
    await kling.aclose()
    ends = await asyncio.gather(*submits, return_exceptions=True)
    assert sum(isinstance(end, SessionClosedError) for end in ends) == 4
    assert len(kling.left_running) == 1


async def test_cancelled_waiter_leaves_no_state() -> None:
    account = Account(limit=lambda _: 1)
    async with open_session(account, max_in_flight=3) as kling:
        first = asyncio.create_task(kling.generate(prompt="first", image=IMAGE))
        await anyio.sleep(1)
        refused = asyncio.create_task(kling.generate(prompt="refused", image=IMAGE))
        last = asyncio.create_task(kling.generate(prompt="last", image=IMAGE))
        await anyio.sleep(5)
        assert kling._engine.slots.waiting >= 1
        refused.cancel()
        await asyncio.wait([refused])
        await first
        await last
        assert (kling._engine.slots.taken, kling._engine.slots.running, kling._engine.slots.waiting) == (0, 0, 0)
    assert [body["prompt"] for body in account.paid] == ["first", "last"]
