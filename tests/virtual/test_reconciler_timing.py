"""Timing of history reads for submissions in doubt, and tolerance for clock differences."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, cast

import anyio
import attrs
import pytest

from kling_async import ConnectionLostError, HttpRequest, HttpResponse, SubmissionUncertainError
from kling_async._core.http import Effect
from kling_async.ledger import MemoryLedger
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

BETWEEN_LOOKS_S = 5.0
"""Seconds between two history reads for one job."""
CLOCK_SLACK_S = 3600.0
"""Seconds by which the service's clock may be behind its own timestamps."""


def aligned(**options: Any) -> Service:
    """A service whose clock agrees with the session's."""
    service = Service(**options)
    service.epoch = service.clock.now() - service.clock.monotonic()
    return service


def lose_reply(
    service: Service, *, accepted: bool, history: Callable[[int], HttpResponse | None] = lambda _: None
) -> list[float]:
    """Lose the reply to the first paid request; return the list that receives the times of looks at the history.

    Args:
        service: the service.
        accepted: True if the service accepts the job all the same.
        history: function from the number of the look, from 1, to another response; None for the regular one.
    """
    looks: list[float] = []
    lost: list[str] = []

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and not lost:
            lost.append(body["prompt"])
            if accepted:
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        if request.url.endswith("/api/v3/predictions"):
            # A short page is followed by the read of the next one.
            if body["page"] == 1:
                looks.append(service.clock.monotonic())
            return history(len(looks))
        return None

    service.script = script
    return looks


@pytest.mark.promise(1)
@pytest.mark.parametrize("behind", [0.0, 900.0, CLOCK_SLACK_S - 200, CLOCK_SLACK_S + 700])
async def test_service_clock_that_is_behind_excludes_no_orphan(behind: float) -> None:
    """There is no echo and no header with the time, so candidates are selected by time alone."""
    service = aligned()
    service.epoch -= behind
    lose_reply(service, accepted=True)
    async with open_session(service, sole_user=True) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).id == "p00000"
    assert len(service.paid) == 1


@attrs.define
class SetClock:
    """Session clock, `ahead` seconds ahead of the service's."""

    service: Service
    ahead: float = 0.0

    def now(self) -> float:
        return self.service.clock.now() + self.ahead

    def monotonic(self) -> float:
        return self.service.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.service.clock.sleep(seconds)


@pytest.mark.promise(1)
@pytest.mark.parametrize("ahead", [3000.0, 7200.0, 40_000.0])
@pytest.mark.parametrize("grace", [90.0, 20_000.0])
async def test_clock_that_was_ahead_at_the_request_excludes_no_orphan(ahead: float, grace: float) -> None:
    """It is set right while the doubt is open: the time of the intent is in the future then, or too late by hours."""
    service = aligned()
    clock = SetClock(service, ahead)
    lose_reply(service, accepted=True)
    script = service.script
    assert script is not None

    def correcting(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | Awaitable[HttpResponse] | None:
        clock.ahead = 0.0
        return script(request, body)

    service.script = correcting
    async with open_session(service, clock=clock, sole_user=True, grace=grace, forget_after=100_000) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).id == "p00000"
    assert len(service.paid) == 1


@pytest.mark.promise(1)
async def test_intent_in_the_future_excludes_no_orphan_in_a_later_session() -> None:
    """The clock was a day ahead when an earlier session wrote the intent, and is right again."""
    service = aligned()
    ledger = MemoryLedger()
    clock = SetClock(service, 86_400.0)
    lose_reply(service, accepted=True)
    async with open_session(service, clock=clock, ledger=ledger, on_uncertain="hold") as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(prompt="a", image=IMAGE, key="a")
    clock.ahead = 0.0
    await anyio.sleep(20_000)
    async with open_session(service, clock=clock, ledger=ledger, sole_user=True) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE, key="a")).id == "p00000"
    assert len(service.paid) == 1


async def of_others(service: Service, age: float) -> None:
    """Let the service accept a prediction of somebody else, some seconds ago."""
    await service(HttpRequest(method="POST", url="https://x/api/v3/other", effect=Effect.PAID, body=b'{"prompt": "o"}'))
    since, seconds, body = service.accepted["p00000"]
    service.accepted["p00000"] = (since - age, seconds, body)
    service.paid.clear()


@pytest.mark.parametrize("service_ahead", [0.0, 2 * 86_400.0, -2 * 86_400.0])
async def test_steady_service_clock_excludes_predictions_from_long_before_the_request(service_ahead: float) -> None:
    """Jobs that were accepted before the doubt and after it agree about the service's clock."""
    service = aligned()
    service.epoch += service_ahead
    await of_others(service, age=3600)
    async with open_session(service) as kling:
        await kling.submit(prompt="before", image=IMAGE)
        lose_reply(service, accepted=False)
        doubtful = asyncio.create_task(kling.submit(prompt="a", image=IMAGE))
        await asyncio.sleep(30)
        await kling.submit(prompt="after", image=IMAGE)
        assert (await doubtful).id == "p00003"
    assert len(service.paid) == 3


@pytest.mark.parametrize("known", ["nothing", "before", "after"])
async def test_unproven_service_clock_excludes_nothing(known: str) -> None:
    service = aligned()
    await of_others(service, age=3600)
    async with open_session(service) as kling:
        if known == "before":
            await kling.submit(prompt="before", image=IMAGE)
        lose_reply(service, accepted=False)
        doubtful = asyncio.create_task(kling.submit(prompt="a", image=IMAGE))
        await asyncio.sleep(30)
        if known == "after":
            await kling.submit(prompt="after", image=IMAGE)
        with pytest.raises(SubmissionUncertainError) as caught:
            await doubtful
    assert caught.value.candidates == ("p00000",)


@pytest.mark.promise(1)
@pytest.mark.parametrize("step", [-2 * 86_400.0, -7200.0, 7200.0, 2 * 86_400.0])
async def test_service_clock_that_is_set_during_the_request_excludes_nothing(step: float) -> None:
    service = aligned()
    lost = lose_reply(service, accepted=True)
    script = service.script
    service.script = None
    async with open_session(service) as kling:
        await kling.submit(prompt="before", image=IMAGE)
        service.epoch += step
        service.script = script
        doubtful = asyncio.create_task(kling.submit(prompt="a", image=IMAGE))
        await asyncio.sleep(30)
        await kling.submit(prompt="after", image=IMAGE)
        with pytest.raises(SubmissionUncertainError) as caught:
            await doubtful
    assert caught.value.candidates == ("p00001",)
    assert lost
    assert len(service.paid) == 3


@pytest.mark.promise(1)
async def test_look_for_one_job_proves_nothing_about_a_later_doubt() -> None:
    """Absence shows something only after a job's own grace: its prediction may appear in the history late."""
    service = aligned(echo=lambda inputs: inputs)
    lost: dict[str, float] = {}

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] not in lost:
            lost[body["prompt"]] = service.clock.monotonic()
            if body["prompt"] == "late":
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        if request.url.endswith("/api/v3/predictions") and service.clock.monotonic() < lost.get("late", math.inf) + 60:
            return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": []}})
        return None

    service.script = script
    async with open_session(service, grace=90) as kling:
        early = asyncio.create_task(kling.generate(prompt="early", image=IMAGE))
        await asyncio.sleep(60)
        late = asyncio.create_task(kling.generate(prompt="late", image=IMAGE))
        assert (await late).id == "p00000"
        assert (await early).output
    assert sorted(body["prompt"] for body in service.paid) == ["early", "late"]


async def test_looks_at_the_history_are_apart() -> None:
    """A job that stays in doubt is looked for three times."""
    service = aligned()
    looks = lose_reply(service, accepted=True)
    async with open_session(service) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(prompt="a", image=IMAGE)
    assert len(looks) == 3
    assert min(later - earlier for earlier, later in itertools.pairwise(looks)) > BETWEEN_LOOKS_S


@pytest.mark.promise(1)
async def test_prediction_that_appears_between_two_looks_is_adopted() -> None:
    """Another's prediction holds the job at the first look; its own arrives in the history some seconds later."""
    service = aligned(echo=lambda inputs: inputs)
    appears_at: list[float] = []

    def history(look: int) -> HttpResponse | None:
        appears_at.append(service.clock.monotonic() + 3)
        if service.clock.monotonic() >= appears_at[0]:
            return None
        other = {"id": "other", "status": "completed", "model": "", "outputs": []}
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": [other]}})

    lose_reply(service, accepted=True, history=history)
    async with open_session(service) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).id == "p00000"
    assert len(service.paid) == 1


async def test_history_that_cannot_be_read_is_asked_again_after_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    service = aligned(echo=lambda inputs: inputs)

    def history(look: int) -> HttpResponse | None:
        # Said until the session takes it for final.
        refused = "history could not be read" not in caplog.text
        return json_response({"code": 400, "message": "no"}, status=400) if refused else None

    looks = lose_reply(service, accepted=True, history=history)
    async with open_session(service) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).id == "p00000"
    assert len(looks) > 3
    # The first look begins 5 seconds after the doubt and ends with the final refusal; the next begins after 30 seconds.
    assert looks[-1] - looks[0] >= 24.9


@pytest.mark.parametrize("steady", [False, True])
async def test_history_is_read_whole_unless_the_service_clock_is_known_to_be_steady(*, steady: bool) -> None:
    service = aligned()
    starts: list[float | None] = []

    def spying(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.url.endswith("/api/v3/predictions"):
            after = body.get("created_after")
            starts.append(None if after is None else datetime.fromisoformat(after).timestamp())
        return losing(request, body)

    async with open_session(service, sole_user=True) as kling:
        if steady:
            await kling.submit(prompt="before", image=IMAGE)
            await asyncio.sleep(10_000)
        lose_reply(service, accepted=True)
        losing = cast("Callable[[HttpRequest, dict[str, Any]], HttpResponse | None]", service.script)
        service.script = spying
        sent = service.clock.now()
        doubtful = asyncio.create_task(kling.submit(prompt="a", image=IMAGE))
        await asyncio.sleep(30)
        if steady:
            await kling.submit(prompt="after", image=IMAGE)
        await doubtful
    # The looks before anything was accepted after it are whole too.
    assert starts[0] is None
    assert (starts[-1] is not None and sent - 200 < starts[-1] < sent) if steady else starts[-1] is None
