"""An error that has the id of a prediction: the job is accepted, followed by its id, and never sent again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kling_async import HttpRequest, HttpResponse, PredictionError, PredictionFailedError, State
from kling_async._core.http import Effect
from kling_async.ledger import Entry, MemoryLedger, Row
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.promise(1, 2)]


def with_error(service: Service, status: int, data: dict[str, Any]) -> None:
    """Accept paid requests and answer with an error that has the id."""

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        record = json.loads(service.accept(body).body)["data"]
        return json_response({"code": 400, "message": "odd", "data": {"id": record["id"], **data}}, status=status)

    service.script = script


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("data", [{}, {"status": "processing"}], ids=["id alone", "with a status"])
async def test_its_video_is_made(status: int, data: dict[str, Any]) -> None:
    service = Service(seconds=30)
    with_error(service, status, data)
    async with open_session(service) as kling:
        prediction = await kling.generate(prompt="x", image=IMAGE)
    assert prediction.output == "https://outputs.example/p00000.mp4"
    assert len(service.paid) == 1


async def test_its_failure_has_its_id() -> None:
    service = Service()
    with_error(service, 200, {"status": "failed", "error": "no face", "code": 1402})
    async with open_session(service) as kling:
        with pytest.raises(PredictionFailedError, match="no face") as caught:
            await kling.generate(prompt="x", image=IMAGE)
    assert caught.value.prediction_id == "p00000"
    assert len(service.paid) == 1


class Recording(MemoryLedger):
    """A ledger in memory that keeps what is recorded in it."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []

    async def record(self, entry: Entry) -> Row:
        self.entries.append(entry)
        return await super().record(entry)


async def test_id_of_nothing_is_kept() -> None:
    """The service says that it has no such prediction: an error with the id, which is in the ledger."""
    service = Service()
    with_error(service, 200, {"id": "nothing"})
    began = service.clock.monotonic()
    ledger = Recording()
    async with open_session(service, ledger=ledger) as kling:
        with pytest.raises(PredictionError, match=r"404.*prediction nothing"):
            await kling.generate(prompt="x", image=IMAGE)
    assert ledger.entries[-1].state is State.SUBMITTED
    assert ledger.entries[-1].prediction_id == "nothing"
    assert len(service.paid) == 1
    assert 60 <= service.clock.monotonic() - began < 600
