"""The account's real limits are found and followed, in virtual time."""

from __future__ import annotations

import heapq
import json
import math
import random
import time
from typing import Any

import attrs
import pytest

from kling_async import HttpRequest, HttpResponse, Job, Level, NoLimit, Outcome
from kling_async._core.http import Effect
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

CONCURRENCY = json_response({"code": 429, "message": "You have reached your concurrency limit"}, status=429)


@attrs.define
class Account(Service):
    """Runs at most `limit` at once, which nobody is told; it may depend on how many were accepted."""

    limit: Any = 100
    refusal: HttpResponse = CONCURRENCY
    refused: int = 0
    most: int = 0
    _ends: list[float] = attrs.field(factory=list)
    _rng: random.Random = attrs.field(factory=lambda: random.Random(7))

    def __attrs_post_init__(self) -> None:
        self.script = self.refuse
        self.seconds = lambda _: self._rng.lognormvariate(math.log(120), 0.4)

    def refuse(self, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        if self.count_running() >= self.limit(len(self.accepted)):
            self.refused += 1
            return self.refusal
        response = self.accept(body)
        since, seconds, _ = self.accepted[f"p{len(self.accepted) - 1:05d}"]
        heapq.heappush(self._ends, since + seconds)
        return response

    def count_running(self) -> int:
        while self._ends and self._ends[0] <= self.clock.monotonic():
            heapq.heappop(self._ends)
        return len(self._ends)


async def run(service: Account, jobs: int, **options: Any) -> tuple[int, float]:
    """How many jobs completed, and the seconds that it took."""
    async with open_session(service, rate_limiter=NoLimit(), **options) as kling:
        began, done = service.clock.monotonic(), 0
        async with kling.batch(Job(prompt=f"{number}", image=IMAGE) for number in range(jobs)) as batch:
            async for outcome in batch:
                done += outcome.ok
        return done, service.clock.monotonic() - began


@pytest.mark.parametrize("adaptive", [True, False])
async def test_moving(adaptive: bool) -> None:
    t=time.perf_counter()
    s = Account(limit=lambda n: 40 if 1300<=n<2300 else 100)
    print(adaptive, await run(s, 4000, max_in_flight=300, adaptive=adaptive), s.refused, s.reads, time.perf_counter()-t)
