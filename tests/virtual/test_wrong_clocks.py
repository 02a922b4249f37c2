"""Wrong clocks, ours and the service's, steady and set at any moment of a submit: nothing is paid twice."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import Enum
from typing import Any

import attrs
import pytest

from kling_async import ConnectionLostError, HttpRequest, HttpResponse, SubmissionUncertainError
from kling_async._core.http import Effect
from kling_async.ledger import MemoryLedger
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.promise(1)]

DAY_S = 86_400.0
OFFSETS_S = (-2 * DAY_S, -8 * 3600.0, 0.0, 3 * 3600.0, 2 * DAY_S)
SAMPLE = 60
"""Cases of the matrix for each combination of echo and `Date`; all 8,640 of them take ten minutes."""


class Moment(Enum):
    """Moment at which clocks are set right."""

    NEVER = "never"
    BEFORE_ACCEPTANCE = "before acceptance"
    AFTER_ACCEPTANCE = "after acceptance"
    IN_DOUBT = "in doubt"
    AFTER_CRASH = "after the crash"


class Date(Enum):
    """`Date` header of the service."""

    RIGHT = "right"
    MISSING = "missing"
    WRONG = "wrong"


@attrs.frozen
class Case:
    """One cell of the matrix.

    Attributes:
        ours: Seconds by which our clock is ahead at first.
        service: Seconds by which the service's clock is ahead at first.
        moment: When both are set right.
        echo: The history echoes inputs.
        date: The `Date` header.
        crashed: Another session settles the doubt.
        accepted: The service accepts the job whose reply is lost.
        busy: Other jobs are accepted before it and after it.
        foreign: Somebody else has made a prediction two hours before.
    """

    ours: float
    service: float
    moment: Moment
    echo: bool
    date: Date
    crashed: bool
    accepted: bool
    busy: bool
    foreign: bool


def matrix(*, echo: bool, date: Date) -> Iterator[Case]:
    flags = [False, True]
    rest = itertools.product(OFFSETS_S, OFFSETS_S, Moment, flags, flags, flags, flags)
    for ours, service, moment, crashed, accepted, busy, foreign in rest:
        if (ours, service) == (0.0, 0.0) and moment is not Moment.NEVER:
            continue
        if crashed or moment is not Moment.AFTER_CRASH:
            yield Case(ours, service, moment, echo, date, crashed, accepted, busy, foreign)


@attrs.define
class Clock:
    """The session's clock, some seconds ahead."""

    service: Service
    ahead: float

    def now(self) -> float:
        return self.service.clock.now() + self.ahead

    def monotonic(self) -> float:
        return self.service.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.service.clock.sleep(seconds)


@attrs.define
class Dated(Service):
    """A service whose replies have a `Date`, and whose history begins at the time that is asked for.

    Attributes:
        wrong: Seconds by which the header is ahead of the service's clock; None for no header.
    """

    wrong: float | None = None

    def history(self, body: dict[str, Any]) -> HttpResponse:
        page = json.loads(Service.history(self, body).body)
        if "created_after" in body:
            start = datetime.fromisoformat(body["created_after"])
            items = page["data"]["items"]
            page["data"]["items"] = [item for item in items if datetime.fromisoformat(item["created_at"]) >= start]
        return json_response(page)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response = await Service.__call__(self, request)
        if self.wrong is None:
            return response
        at = datetime.fromtimestamp(self.epoch + self.clock.monotonic() + self.wrong, UTC)
        return attrs.evolve(response, headers={**response.headers, "date": format_datetime(at, usegmt=True)})


async def charges_of(case: Case) -> tuple[int, bool]:  # noqa: C901 -- one course, with a step for each dimension
    """Run a case; return how often the job in doubt was paid for, and whether it is held."""
    service = Dated(echo=(lambda inputs: inputs) if case.echo else None, seconds=600)
    right = service.clock.now() - service.clock.monotonic()
    service.epoch = right + case.service
    service.wrong = {Date.RIGHT: 0.0, Date.MISSING: None, Date.WRONG: DAY_S}[case.date]
    clock = Clock(service, case.ours)
    lost: list[str] = []

    def reached(moment: Moment) -> None:
        if moment is case.moment:
            clock.ahead, service.epoch = 0.0, right

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "a" and not lost:
            lost.append("a")
            reached(Moment.BEFORE_ACCEPTANCE)
            if case.accepted:
                service.accept(body, request.url.partition("/api/v3/")[2])
            reached(Moment.AFTER_ACCEPTANCE)
            raise ConnectionLostError("dropped")
        return None

    if case.foreign:
        service.accept({"prompt": "somebody else's"}, "kwaivgi/kling-v2.1-i2v-standard")
        (id_,) = service.accepted
        since, seconds, body = service.accepted[id_]
        service.accepted[id_] = (since - 7200.0, seconds, body)
    service.script = script
    ledger = MemoryLedger()
    options: dict[str, Any] = {"clock": clock, "ledger": ledger, "forget_after": 100_000}
    held = False
    first = "hold" if case.crashed else "reconcile"
    async with open_session(service, on_uncertain=first, **options) as kling:
        if case.busy:
            await kling.submit(prompt="before", image=IMAGE, key="before")
        doubtful = asyncio.create_task(kling.submit(prompt="a", image=IMAGE, key="a"))
        await asyncio.sleep(10)
        reached(Moment.IN_DOUBT)
        if case.busy:
            await kling.submit(prompt="after", image=IMAGE, key="after")
        try:
            await doubtful
        except SubmissionUncertainError:
            held = True
    if case.crashed:
        reached(Moment.AFTER_CRASH)
        await asyncio.sleep(300)
        async with open_session(service, **options) as kling:
            again = asyncio.create_task(kling.submit(prompt="a", image=IMAGE, key="a"))
            await asyncio.sleep(10)
            if case.busy:
                await kling.submit(prompt="later", image=IMAGE, key="later")
            try:
                await again
                held = False
            except SubmissionUncertainError:
                held = True
    return sum(body["prompt"] == "a" for body in service.paid), held


async def tally(cases: list[Case]) -> tuple[list[Case], Counter[str]]:
    """Run cases; return those that paid twice, and how often each combination was held."""
    twice: list[Case] = []
    held: Counter[str] = Counter()
    for case in cases:
        charges, is_held = await charges_of(case)
        if charges > 1:
            twice.append(case)
        held["cases"] += 1
        if is_held:
            held[f"held, echo {case.echo}, foreign {case.foreign}, busy {case.busy}, accepted {case.accepted}"] += 1
        elif charges == 0:
            held["not paid, not held"] += 1
    return twice, held


@pytest.mark.parametrize("date", Date)
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.repeats
async def test_wrong_clocks_pay_nothing_twice(echo: bool, date: Date) -> None:  # noqa: FBT001 -- a case
    cases = random.Random(f"{echo} {date}").sample(list(matrix(echo=echo, date=date)), SAMPLE)
    twice, held = await tally(cases)
    assert twice == []
    assert not held["not paid, not held"]
    if echo:
        # Evidence of content needs no clock.
        assert not [name for name in held if "accepted True" in name]


@pytest.mark.parametrize(("ahead", "told"), [(3 * 3600.0, "10800 s ahead of"), (-120.0, "120 s behind"), (30.0, None)])
async def test_clock_that_is_wrong_by_more_than_a_minute_is_told_once(
    ahead: float, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(seconds=600)
    service.epoch = service.clock.now() - service.clock.monotonic()
    async with open_session(service, clock=Clock(service, ahead)) as kling:
        for prompt in "ab":
            await kling.submit(prompt=prompt, image=IMAGE)
    warnings = [record.getMessage() for record in caplog.records if "this computer's clock is" in record.getMessage()]
    assert len(warnings) == (0 if told is None else 1)
    assert told is None or told in warnings[0]
