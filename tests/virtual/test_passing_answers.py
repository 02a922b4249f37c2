"""Answers that pass end no paid job: they are asked again, and the error at the end shows all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from kling_async import (
    ApiError,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    PredictionError,
    PredictionTimeoutError,
    Spent,
    WatchPolicy,
)
from kling_async._core.answers import RULES, Kind
from kling_async._core.http import Effect
from kling_async.testing import json_response
from support.answers import answering, html, is_list, is_read, said
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

PASSING = (302, 307, 403, 407, 408, 409, 425, 451, 499, 520, 524)


def jobs(count: int) -> list[Job]:
    return [Job(prompt=str(number), image=IMAGE) for number in range(count)]


async def outcomes(kling: KlingSession, count: int, **options: Any) -> list[Any]:
    async with kling.batch(jobs(count), **options) as batch:
        return [outcome async for outcome in batch]


# ---- status reads ----


@pytest.mark.promise(6)
@pytest.mark.parametrize("make", [html, said], ids=["html", "json"])
@pytest.mark.parametrize("status", PASSING)
async def test_passing_answer_to_status_read_fails_no_job(status: int, make: Callable[[int], HttpResponse]) -> None:
    service = Service(script=answering(is_read, iter([make(status)] * 9)))
    async with open_session(service, watch=WatchPolicy.fixed(5)) as kling:
        assert [outcome.error for outcome in await outcomes(kling, 3)] == [None] * 3
    assert len(service.paid) == 3


@pytest.mark.promise(6)
@pytest.mark.parametrize(
    "made",
    [
        pytest.param([html(404)] * 40, id="page of a gateway"),
        pytest.param([said(404)] * 3, id="thrice"),
        pytest.param([said(404), said(503)] * 20, id="other answers in between"),
        pytest.param([html(200)] * 20, id="page with status 200"),
        pytest.param([said(401)] * 5, id="key refused for a minute"),
        pytest.param([json_response({"code": 404, "message": "not found"})] * 2, id="envelope"),
        pytest.param([json_response({"detail": "Not Found"}, status=404)] * 40, id="other gateway"),
    ],
)
async def test_answer_that_is_not_known_to_be_final_fails_no_job(made: list[HttpResponse]) -> None:
    service = Service(script=answering(is_read, iter(made)))
    async with open_session(service, watch=WatchPolicy.fixed(5)) as kling:
        assert (await kling.generate(prompt="x", image=IMAGE, deadline=7200.0)).output


async def test_replica_lag_of_half_a_minute_loses_no_job() -> None:
    service = Service(seconds=20)

    def lagging(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        started = min((at for at, *_ in service.accepted.values()), default=0.0)
        return said(404) if is_read(request) and service.clock.monotonic() < started + 30 else None

    service.script = lagging
    async with open_session(service, watch=WatchPolicy.fixed(1)) as kling:
        assert [outcome.error for outcome in await outcomes(kling, 5)] == [None] * 5


@pytest.mark.parametrize(("status", "at_least"), [(404, 60.0), (410, 60.0), (401, 300.0)])
async def test_final_answer_ends_the_watching_when_it_is_repeated(status: int, at_least: float) -> None:
    service = Service(seconds=1e6, script=answering(is_read, itertools.repeat(said(status))))
    async with open_session(service, watch=WatchPolicy.fixed(5)) as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE)
        began = service.clock.monotonic()
        with pytest.raises(PredictionError, match=f"cannot be read: .* x HTTP {status}") as caught:
            await kling.wait(submitted, deadline=10_000.0)
        assert not isinstance(caught.value, PredictionTimeoutError)
        assert at_least <= service.clock.monotonic() - began <= at_least + 150
        assert isinstance(caught.value.__cause__, ApiError)


async def test_error_at_the_deadline_shows_every_answer_with_its_count() -> None:
    answers = [html(403)] * 4 + [said(503)] * 2 + [html(200)]
    service = Service(seconds=1e6, script=answering(is_read, itertools.chain(answers, itertools.repeat(html(407)))))
    async with open_session(service, watch=WatchPolicy.fixed(5)) as kling:
        (outcome,) = await outcomes(kling, 1, deadline=1800.0)
    assert isinstance(outcome.error, PredictionTimeoutError)
    text = str(outcome.error)
    for part in ("4 x HTTP 403", "2 x HTTP 503", "1 x HTTP 200 in an unknown form", "x HTTP 407", "was paid for"):
        assert part in text, text


async def test_answers_before_a_success_are_not_in_the_error() -> None:
    service = Service(seconds=1e6, script=answering(is_read, iter([html(403)] * 4)))
    async with open_session(service, watch=WatchPolicy.fixed(5)) as kling:
        with pytest.raises(PredictionTimeoutError) as caught:
            await kling.generate(prompt="x", image=IMAGE, deadline=1800.0)
    assert "HTTP" not in str(caught.value)


# ---- hints of the service ----


@pytest.mark.parametrize("status", [429, 503])
async def test_one_long_hint_pauses_reads_for_a_minute_at_most(status: int) -> None:
    hint = json_response({"code": status, "message": "later"}, status=status, headers={"retry-after": "3600"})
    service = Service(script=answering(is_read, iter([hint])))
    async with open_session(service) as kling:
        assert [outcome.error for outcome in await outcomes(kling, 5, deadline=1800.0)] == [None] * 5
    assert service.clock.monotonic() < 200


async def test_hint_for_status_reads_pauses_neither_submits_nor_other_kinds() -> None:
    at: dict[str, list[float]] = {"status": [], "list": [], "submit": [], "balance": []}
    service = Service(seconds=1e6)

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        kind = "status" if is_read(request) else "list" if is_list(request) else "submit"
        kind = "balance" if request.url.endswith("/balance") else kind
        at[kind].append(service.clock.monotonic())
        if kind == "status" and len(at["status"]) == 1:
            return json_response({"code": 429, "message": "slow"}, status=429, headers={"retry-after": "50"})
        return json_response({"code": 200, "data": {"balance": 1.5}}) if kind == "balance" else None

    service.script = script
    async with open_session(service, watch="list") as kling:
        # Two of another model are polled alone.
        alone = [Job(model="kling-v2.1-pro", prompt=str(number), image=IMAGE) for number in range(2)]
        async with kling.batch(jobs(30) + alone, deadline=100.0) as batch:
            async for _ in batch:
                pass
        limited = at["status"][0]
        assert [each for each in at["list"] if limited < each < limited + 50], "pages go on"
        assert not [each for each in at["status"] if limited + 1 < each < limited + 49]
        began = service.clock.monotonic()
        at["status"].clear()
        await kling.submit(prompt="later", image=IMAGE)
        await kling.balance()
        assert service.clock.monotonic() - began < 1


# ---- the list ----


@pytest.mark.parametrize(
    "made", [said(408), said(403), html(302), said(404), said(429)], ids=["408", "403", "302", "404", "429"]
)
async def test_list_is_read_again_after_a_page_was_refused(made: HttpResponse) -> None:
    service = Service(seconds=300)
    seen: list[float] = []

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        if is_list(request):
            seen.append(service.clock.monotonic())
        return made if is_list(request) and len(seen) == 1 else None

    service.script = script
    async with open_session(service, watch="list") as kling:
        assert not [outcome.error for outcome in await outcomes(kling, 40) if outcome.error]
    assert len(seen) > 1
    assert seen[1] - seen[0] < 60


async def test_list_that_is_refused_for_long_is_read_again_later() -> None:
    service = Service(seconds=3000)
    seen: list[float] = []

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        if is_list(request):
            seen.append(service.clock.monotonic())
        return said(403) if is_list(request) and service.clock.monotonic() < 1000 else None

    service.script = script
    async with open_session(service, watch="list") as kling:
        assert not [outcome.error for outcome in await outcomes(kling, 40, deadline=4000.0) if outcome.error]
        assert len(seen) == 3
        service.seconds = 300
        await outcomes(kling, 40)
    assert len(seen) > 6


async def test_prediction_that_the_list_shows_is_not_taken_for_deleted() -> None:
    """Single reads say "not found" for ever, as a replica that never catches up; the list shows all predictions."""
    service = Service(seconds=300, script=answering(is_read, itertools.repeat(said(404))))
    async with open_session(service, watch="list") as kling:
        assert [outcome.error for outcome in await outcomes(kling, 40)] == [None] * 40
    assert service.lists > 3


# ---- submits ----


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 407, 451])
async def test_page_of_a_gateway_refuses_no_job(status: int) -> None:
    """A portal answers for a minute before the service."""
    service = Service(seconds=20)
    ends = service.clock.monotonic() + 60
    service.script = lambda request, _: (
        html(status) if request.effect is Effect.PAID and service.clock.monotonic() < ends else None
    )
    async with open_session(service) as kling:
        assert [outcome.error for outcome in await outcomes(kling, 5)] == [None] * 5
    assert len(service.paid) == 5


async def test_gateway_that_goes_on_refuses_in_two_minutes_with_all_answers() -> None:
    answers = itertools.chain([html(403)] * 3, itertools.repeat(html(407)))
    service = Service(script=answering(lambda request: request.effect is Effect.PAID, answers))
    async with open_session(service) as kling:
        (outcome,) = await outcomes(kling, 1)
    assert isinstance(outcome.error, ApiError)
    assert outcome.error.spent is Spent.NO
    # The last answer is on its way when the time is over.
    assert 100 < service.clock.monotonic() <= RULES[Kind.SUBMIT].within + 1
    for part in ("3 x HTTP 403", "x HTTP 407", "nothing was spent"):
        assert part in str(outcome.error), str(outcome.error)


async def test_refusal_of_the_service_itself_is_final_at_once() -> None:
    service = Service(script=answering(lambda request: request.effect is Effect.PAID, iter([said(400)])))
    async with open_session(service) as kling:
        (outcome,) = await outcomes(kling, 1)
    assert isinstance(outcome.error, ApiError)
    assert not service.paid
