"""Single calls and reads of the history: answers that pass are asked again, those that are repeated end them."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import pytest

from kling_async import (
    ApiError,
    AuthenticationError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    NotFoundError,
    PermissionDeniedError,
    ServerError,
)
from kling_async._core.answers import RULES, Kind
from kling_async._core.http import Effect
from kling_async.ledger import MemoryLedger
from kling_async.testing import json_response
from support.answers import answering, html, is_list, is_read, said
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


# ---- single calls ----


@pytest.mark.parametrize("made", [html(302), html(403), html(407), said(408), said(425), html(451), html(200)], ids=str)
async def test_passing_answer_to_single_call_is_asked_again(made: HttpResponse) -> None:
    service = Service(seconds=1e6)
    async with open_session(service) as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE)
        service.script = answering(is_read, iter([made] * 4))
        assert (await kling.get(submitted.id)).id == submitted.id


@pytest.mark.parametrize(
    ("made", "kind"),
    [(said(401), AuthenticationError), (said(403), PermissionDeniedError), (said(404), NotFoundError)],
    ids=["401", "403", "404"],
)
async def test_refused_single_call_raises_after_three_answers_within_seconds(
    made: HttpResponse, kind: type[ApiError]
) -> None:
    service = Service(script=answering(is_read, itertools.repeat(made)))
    async with open_session(service) as kling:
        with pytest.raises(kind, match=f"x HTTP {made.status}"):
            await kling.get("p1")
        assert 1 <= service.clock.monotonic() < 5
        assert (await kling.submit(prompt="x", image=IMAGE)).id
        service.script = answering(is_read, iter([made] * 2))
        assert (await kling.get("p00000")).id, "twice is not final"


async def test_single_call_ends_at_its_bound_with_all_answers() -> None:
    answers = itertools.chain([said(503), said(503), html(408)], itertools.repeat(html(403)))
    service = Service(script=answering(is_read, answers))
    async with open_session(service) as kling:
        with pytest.raises(ServerError) as caught:
            await kling.get("p1")
        assert 10 < service.clock.monotonic() <= RULES[Kind.CALL].within + 1
    assert caught.value.status == 403
    for part in ("2 x HTTP 503", "1 x HTTP 408", "x HTTP 403", "nothing was spent"):
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("by_id", [True, False])
async def test_wait_outlives_an_outage_and_for_a_known_prediction_a_lag(*, by_id: bool) -> None:
    service = Service(seconds=100)
    async with open_session(service) as first:
        submitted = await first.submit(prompt="x", image=IMAGE)
    answers = [html(403)] * 9 if by_id else [said(404)] * 3 + [html(403)] * 9
    service.script = answering(is_read, iter(answers))
    async with open_session(service) as kling:
        assert (await kling.wait(submitted.id if by_id else submitted)).output


async def test_wait_by_id_ends_at_its_deadline() -> None:
    service = Service(script=answering(is_read, itertools.repeat(html(407))))
    async with open_session(service) as kling:
        with pytest.raises(ServerError, match="x HTTP 407"):
            await kling.wait("p1", deadline=300.0)
        assert 200 < service.clock.monotonic() <= 301


async def test_hint_pauses_concurrent_calls_of_its_kind() -> None:
    times: list[float] = []
    service = Service()

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        times.append(service.clock.monotonic())
        if len(times) == 1:
            return json_response({"code": 429, "message": "slow"}, status=429, headers={"retry-after": "20"})
        return json_response({"code": 200, "data": {"balance": 1.5}})

    service.script = script
    async with open_session(service) as kling, anyio.create_task_group() as tasks:
        tasks.start_soon(kling.balance)
        await anyio.sleep(1)
        tasks.start_soon(kling.balance)
    assert len(times) == 3
    assert min(times[1:]) >= times[0] + 20


# ---- the history ----


@pytest.mark.parametrize(
    "made", [said(408), said(403), html(403), html(200), said(404)], ids=["408", "403", "proxy", "portal", "404"]
)
async def test_history_that_is_refused_for_seconds_settles_the_doubt_all_the_same(made: HttpResponse) -> None:
    service = Service(seconds=10, echo=lambda inputs: inputs)
    lists = iter([made] * 4)
    lost = iter([True])

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and next(lost, False):
            service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return next(lists, None) if is_list(request) else None

    service.script = script
    async with open_session(service) as kling:
        assert (await kling.generate(prompt="x", image=IMAGE)).id == "p00000"
    assert len(service.paid) == 1


async def test_old_job_is_taken_for_expired_only_when_the_service_says_so_for_a_minute() -> None:
    service, ledger = Service(seconds=100), MemoryLedger()
    async with open_session(service, ledger=ledger) as kling:
        await kling.submit(prompt="x", image=IMAGE, key="old")
    await anyio.sleep(8 * 86_400)
    lag_ends = service.clock.monotonic() + 50
    service.script = lambda request, _: said(404) if is_read(request) and service.clock.monotonic() < lag_ends else None
    async with open_session(service, ledger=ledger) as kling:
        assert (await kling.generate(prompt="x", image=IMAGE, key="old")).output
    assert len(service.paid) == 1
