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
    Spent,
)
from kling_async._core.http import Effect
from kling_async._session.session import engine_of
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
