"""The state that an outcome shows is the one that the ledger has.

In real time, because the ledger writes in a thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import ConnectFailedError, HttpRequest, HttpResponse, Job, State, WatchPolicy, read_ledger
from kling_async._core.endings import state_of
from kling_async._core.http import Effect
from kling_async.testing import LoopClock, json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


class Hasty(LoopClock):
    """A clock whose pauses are a thousandth of what they should be."""

    async def sleep(self, seconds: float, /) -> None:
        await anyio.sleep(seconds / 1000)


def answer(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
    """Answer submits as their prompt says."""
    if request.effect is not Effect.PAID:
        return None
    match body["prompt"]:
        case "no connection":
            raise ConnectFailedError("no route to host")
        case "too long":
            return json_response({"code": 400, "message": "prompt is too long"}, status=400)
        case "no money":
            return json_response({"code": 402, "message": "insufficient balance"}, status=402)
    return None


async def states(ledger: Path, prompts: list[str], *, drain: bool = False) -> dict[str, State]:
    """Run a batch and return the states that its outcomes show, checked against the ledger."""
    failures = {"fails": {"error": "no video", "code": 1405}}
    service = Service(seconds=0.05, latency=0.001, script=answer, failures=failures)
    jobs = {prompt: Job(prompt=prompt, image=IMAGE) for prompt in prompts}
    options: dict[str, Any] = {"max_in_flight": 1, "watch": WatchPolicy.fixed(0.02), "clock": Hasty()}
    async with open_session(service, ledger=ledger, **options) as kling, kling.batch(jobs, name="n") as batch:
        shown = {}
        async for outcome in batch:
            shown[outcome.key] = state_of(outcome)
            if drain:
                batch.drain()
    assert shown == {row.key: row.state for row in read_ledger(ledger)}
    return shown


async def test_outcomes_show_the_states_of_the_ledger(tmp_path: Path) -> None:
    assert await states(tmp_path / "run.db", ["well", "fails", "too long", "no connection"]) == {
        "well": State.COMPLETED,
        "fails": State.FAILED,
        "too long": State.REJECTED,
        "no connection": State.PENDING,
    }


async def test_jobs_of_a_stopped_batch_are_skipped(tmp_path: Path) -> None:
    shown = await states(tmp_path / "run.db", ["no money", "never", "neither"])
    assert shown == dict.fromkeys(["no money", "never", "neither"], State.SKIPPED)


async def test_jobs_of_a_drained_batch_are_waiting(tmp_path: Path) -> None:
    shown = await states(tmp_path / "run.db", ["well", "later"], drain=True)
    assert shown == {"well": State.COMPLETED, "later": State.PENDING}
