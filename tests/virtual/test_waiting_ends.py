"""A job that the service never accepts gives up, and says that nothing was spent."""

from __future__ import annotations

from typing import Any

import pytest

from kling_async import (
    ConnectFailedError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    KlingError,
    RateLimitedError,
    RequestRejectedError,
    Spent,
    SubmissionUncertainError,
)
from kling_async._core.http import Effect
from kling_async._session.session import engine_of
from kling_async.ledger import MemoryLedger
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


def refusing(service: Service, kind: str) -> list[float]:
    """Never accept a paid request; return the list that receives the times of attempts."""
    attempts: list[float] = []

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        attempts.append(service.clock.monotonic())
        match kind:
            case "rate limit":
                return json_response({"code": 429, "message": "slow down"}, status=429, headers={"retry-after": "30"})
            case "no connection":
                raise ConnectFailedError("refused")
            case _:
                raise ConnectionLostError("dropped")

    service.script = script
    return attempts


def hide_history(service: Service) -> None:
    """Refuse history requests; answer other requests as before."""
    script = service.script

    def hidden(request: HttpRequest, body: dict[str, Any]) -> Any:
        if request.url.endswith("/api/v3/predictions"):
            return json_response({"code": 403, "message": "no"}, status=403)
        return None if script is None else script(request, body)

    service.script = hidden


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("kind", "error", "most_attempts", "most_seconds"),
    [
        ("rate limit", RateLimitedError, 60, 1000),
        ("no connection", ConnectFailedError, 5, 60),
        ("dropped", ConnectionLostError, 3, 400),
    ],
)
async def test_job_that_is_never_accepted_gives_up(
    kind: str, error: type[KlingError], most_attempts: int, most_seconds: float
) -> None:
    service = Service()
    service.epoch = service.clock.now() - service.clock.monotonic()
    attempts = refusing(service, kind)
    async with open_session(service) as kling:
        began = service.clock.monotonic()
        with pytest.raises(error) as caught:
            await kling.submit(prompt="x", image=IMAGE, key="x")
        assert service.clock.monotonic() - began <= most_seconds
        engine = engine_of(kling)
        assert engine.slots.taken == 0
        assert ("", "x") not in engine._claims
    assert 1 < len(attempts) <= most_attempts
    assert caught.value.spent is Spent.NO
    assert caught.value.key == "x"


@pytest.mark.parametrize(
    ("history", "spent", "advice"),
    [
        (True, Spent.NO, "shown to be unaccepted each time; submit it again later"),
        (False, Spent.UNKNOWN, "may have been accepted; look for it in the account's history before"),
    ],
)
async def test_job_resubmitted_in_doubt_says_what_is_known_of_its_money(
    *, history: bool, spent: Spent, advice: str
) -> None:
    service = Service()
    service.epoch = service.clock.now() - service.clock.monotonic()
    attempts = refusing(service, "dropped")
    if not history:
        hide_history(service)
    async with open_session(service, on_uncertain="resubmit") as kling:
        with pytest.raises(ConnectionLostError) as caught:
            await kling.submit(prompt="x", image=IMAGE, key="x")
    assert len(attempts) == 3
    assert caught.value.spent is spent
    assert f"it was sent 3 times and {advice}" in caught.value.advice


@pytest.mark.parametrize("restarted", [False, True])
async def test_refusal_after_a_resubmission_does_not_say_that_nothing_was_spent(*, restarted: bool) -> None:
    service, ledger = Service(), MemoryLedger()
    if restarted:
        refusing(service, "dropped")
        async with open_session(service, ledger=ledger, on_uncertain="hold") as kling:
            with pytest.raises(SubmissionUncertainError):
                await kling.submit(prompt="x", image=IMAGE, key="x")
    sent = restarted

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        nonlocal sent
        if request.effect is not Effect.PAID:
            return None
        if not sent:
            sent = True
            raise ConnectionLostError("dropped")
        return json_response({"code": 400, "message": "no"}, status=400)

    service.script = script
    hide_history(service)
    async with open_session(service, ledger=ledger, on_uncertain="resubmit") as kling:
        with pytest.raises(RequestRejectedError) as caught:
            await kling.submit(prompt="x", image=IMAGE, key="x")
    assert caught.value.spent is Spent.UNKNOWN
