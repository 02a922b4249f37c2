"""Evidence that settles a submission in doubt: echoes, models, the bill, webhooks; and its watching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest

from kling_async import ConnectionLostError, HttpRequest, HttpResponse, Job, Prediction, SubmissionUncertainError
from kling_async._core.http import Effect
from kling_async._session.session import engine_of
from kling_async.ledger import Entry, MemoryLedger, Row, State
from kling_async.testing import json_response
from kling_async.webhooks import TOKEN_PARAMETER, Delivery, token_hash
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

STANDARD, PRO = "kling-v2.1-standard", "kling-v2.1-pro"
JOB = Job(prompt="a", image=IMAGE)


@attrs.define
class Losing:
    """Loses the first reply to each of these prompts.

    Attributes:
        accepted: prompts that the service accepts all the same.
        refused: prompts that never reach it.
        foreign: predictions of others, in the history before all else.
        hidden: True if the history is empty.
        billing: function to call when the bill is read; None for nothing.
        hooks: webhook URL of each prompt.
    """

    service: Service
    accepted: set[str] = attrs.field(factory=set)
    refused: set[str] = attrs.field(factory=set)
    foreign: list[dict[str, Any]] = attrs.field(factory=list)
    hidden: bool = False
    billing: Callable[[], Awaitable[None]] | None = None
    hooks: dict[str, str] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.service.epoch = self.service.clock.now() - self.service.clock.monotonic()
        self.service.script = self.script

    def script(self, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | Awaitable[HttpResponse] | None:
        if request.effect is Effect.PAID:
            self.hooks[body["prompt"]] = request.url
            if body["prompt"] in self.accepted:
                self.accepted.discard(body["prompt"])
                self.service.accept(body, request.url.partition("/api/v3/")[2])
                raise ConnectionLostError("dropped")
            if body["prompt"] in self.refused:
                self.refused.discard(body["prompt"])
                raise ConnectionLostError("dropped")
        if request.url.endswith("/api/v3/predictions") and (self.foreign or self.hidden):
            return self.history(body)
        if request.url.endswith("/api/v3/billings/search"):
            return self.bill()
        return None

    def history(self, body: dict[str, Any]) -> HttpResponse:
        own = [
            self.service.record(id_) | ({"input": self.service.echo(inputs)} if self.service.echo else {})
            for id_, (_, _, inputs) in reversed(self.service.accepted.items())
        ]
        items = [*self.foreign, *own] if body["page"] == 1 and not self.hidden else []
        return json_response({"code": 200, "message": "success", "data": {"page": body["page"], "items": items}})

    async def bill(self) -> HttpResponse:
        if self.billing is not None:
            await self.billing()
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": []}})

    def delivery(self, prompt: str, id_: str) -> Delivery:
        """Return the webhook of a prompt's submission."""
        (hook,) = parse_qs(urlsplit(self.hooks[prompt]).query)["webhook"]
        (token,) = parse_qs(urlsplit(hook).query)[TOKEN_PARAMETER]
        return Delivery(
            prediction=Prediction(id=id_, model=""), token_hash=token_hash(token), webhook_id=id_, sent_at=0
        )


def of_others(service: Service, **fields: Any) -> dict[str, Any]:
    created = datetime.fromtimestamp(service.clock.now() + 1, UTC).isoformat()
    return {"id": "foreign", "status": "processing", "outputs": [], "created_at": created, **fields}


async def test_faithful_echo_excludes_the_predictions_of_others() -> None:
    """A known prediction whose echo equals what was sent shows that a differing echo is another job's."""
    service = Service(echo=lambda inputs: inputs)
    losing = Losing(service, refused={"b"})
    async with open_session(service) as kling:
        known = await kling.submit(prompt="a", image=IMAGE)
        losing.foreign.append(of_others(service, model="", input={"prompt": "theirs", "image": IMAGE}))
        assert (await kling.submit(prompt="b", image=IMAGE)).id != known.id
    assert [body["prompt"] for body in service.paid] == ["a", "b"]


async def test_unproven_echo_excludes_nothing() -> None:
    service = Service(echo=lambda inputs: inputs)
    losing = Losing(service, refused={"b"})
    losing.foreign.append(of_others(service, model="", input={"prompt": "theirs", "image": IMAGE}))
    async with open_session(service) as kling:
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.submit(prompt="b", image=IMAGE)
    assert caught.value.candidates == ("foreign",)
    assert not service.paid


async def test_model_that_is_spelled_as_sent_excludes_other_models() -> None:
    service = Service()
    losing = Losing(service, refused={"b"})
    async with open_session(service) as kling:
        # Both models are spelled in the history as they were sent.
        await kling.submit(model=STANDARD, prompt="a", image=IMAGE)
        await kling.submit(model=PRO, prompt="c", image=IMAGE)
        losing.foreign.append(of_others(service, model=service.models["p00001"]))
        assert (await kling.submit(model=STANDARD, prompt="b", image=IMAGE)).id == "p00002"


async def test_model_that_no_known_prediction_spells_excludes_nothing() -> None:
    service = Service()
    losing = Losing(service, refused={"b"})
    losing.foreign.append(of_others(service, model="somebody/elses-model"))
    async with open_session(service) as kling:
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.submit(model=STANDARD, prompt="b", image=IMAGE)
    assert caught.value.candidates == ("foreign",)


async def test_bill_read_for_one_job_does_not_hold_another() -> None:
    """Counting adopts one job's prediction although another job of the same look was not accepted."""
    service = Service(seconds=1e5)
    losing = Losing(service)
    async with open_session(service, sole_user=True, forget_after=1e6) as kling:
        await kling.submit(model=STANDARD, prompt="known 1", image=IMAGE)
        await kling.submit(model=PRO, prompt="known 2", image=IMAGE)
        losing.accepted.add("a")
        losing.refused.add("b")
        made = [
            asyncio.create_task(kling.submit(model=model, prompt=prompt, image=IMAGE))
            for model, prompt in ((STANDARD, "a"), (PRO, "b"))
        ]
        assert {(await each).id for each in made} == {"p00002", "p00003"}
    assert len(service.paid) == 4


@pytest.mark.promise(1)
async def test_webhook_that_comes_while_the_bill_is_read_prevents_a_second_payment() -> None:
    """The history does not show it yet, nor does the bill."""
    service = Service(seconds=600)
    losing = Losing(service, accepted={"a"}, hidden=True)
    async with open_session(service, webhook_url="https://me.example/hook", sole_user=True) as kling:

        async def deliver() -> None:
            losing.billing = None
            await kling.deliver(losing.delivery("a", "p00000"))

        losing.billing = deliver
        assert (await kling.submit(prompt="a", image=IMAGE)).id == "p00000"
    assert len(service.paid) == 1


@pytest.mark.promise(1)
async def test_webhook_settles_a_doubt_without_waiting_for_its_grace() -> None:
    service = Service(seconds=1e5)
    losing = Losing(service, accepted={"a"})
    async with open_session(service, webhook_url="https://me.example/hook", grace=5000) as kling:
        made = asyncio.create_task(kling.submit(prompt="a", image=IMAGE))
        await asyncio.sleep(3)
        began = service.clock.monotonic()
        await kling.deliver(losing.delivery("a", "p00000"))
        assert (await made).id == "p00000"
        assert service.clock.monotonic() - began < 100
        assert service.lists == 0, "a signed witness needs no history"
    assert len(service.paid) == 1


async def test_webhook_of_another_job_does_not_shorten_the_grace() -> None:
    service = Service(seconds=1e5)
    losing = Losing(service, accepted={"a", "b"})
    async with open_session(service, webhook_url="https://me.example/hook", grace=500, sole_user=True) as kling:
        began = service.clock.monotonic()
        made = [asyncio.create_task(kling.submit(prompt=prompt, image=IMAGE)) for prompt in "ab"]
        await asyncio.sleep(10)
        await kling.deliver(losing.delivery("a", "p00000"))
        assert (await made[0]).id == "p00000"
        assert (await made[1]).id == "p00001"
        assert service.clock.monotonic() - began > 500
    assert len(service.paid) == 2


# ---- who follows what was found ----


class Remembering(MemoryLedger):
    """A ledger that keeps every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Entry] = []

    async def record(self, entry: Entry) -> Row:
        row = await super().record(entry)
        self.steps.append(entry)
        return row

    def note(self, entry: Entry) -> None:
        self.steps.append(entry)
        super().note(entry)

    def ends(self) -> list[Entry]:
        return [step for step in self.steps if step.state.ended]


async def test_adopted_prediction_holds_one_slot_until_its_end_is_recorded() -> None:
    service, ledger = Service(seconds=1000, echo=lambda inputs: inputs), Remembering()
    Losing(service, accepted={"a"})
    async with open_session(service, ledger=ledger, max_in_flight=2) as kling:
        engine = engine_of(kling)
        adopted = await kling.submit(prompt="a", image=IMAGE, key="a")
        assert [each.id for each in kling.running] == [adopted.id]
        assert (engine.slots.taken, engine.slots.running) == (1, 1)
        assert kling.statistics().spent == engine._running.spent > 0
        await kling.wait(adopted)
        assert engine.slots.taken == 0
    (end,) = ledger.ends()
    assert (end.key, end.state, end.prediction_id) == ("a", State.COMPLETED, adopted.id)


async def test_prediction_that_a_later_session_adopts_holds_one_slot_until_its_end_is_recorded() -> None:
    service, ledger = Service(seconds=1000, echo=lambda inputs: inputs), Remembering()
    Losing(service, accepted={"a"})
    async with open_session(service, ledger=ledger, on_uncertain="hold") as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.submit(prompt="a", image=IMAGE, key="a")
    async with open_session(service, ledger=ledger) as kling:
        engine = engine_of(kling)
        adopted = await kling.submit(prompt="a", image=IMAGE, key="a")
        assert [each.id for each in kling.running] == [adopted.id]
        assert (engine.slots.taken, engine.slots.running) == (1, 1)
        await kling.wait(adopted)
        assert engine.slots.taken == 0
    (end,) = ledger.ends()
    assert (end.key, end.state, end.prediction_id) == ("a", State.COMPLETED, adopted.id)
    assert len(service.paid) == 1


@pytest.mark.promise(2)
@pytest.mark.parametrize("accepted", [True, False])
async def test_doubt_that_is_settled_for_a_cancelled_caller_is_followed_up(*, accepted: bool) -> None:
    """The caller is cancelled while what was found is written."""
    service = Service(seconds=1000, echo=lambda inputs: inputs)
    Losing(service, accepted={"a"} if accepted else set(), refused=set() if accepted else {"a"})
    writing = asyncio.Event()

    class Slow(Remembering):
        async def record(self, entry: Entry) -> Row:
            if entry.expected_version is not None:
                writing.set()
                await asyncio.sleep(5)
            return await super().record(entry)

    ledger = Slow()
    async with open_session(service, ledger=ledger) as kling:
        engine = engine_of(kling)
        made = asyncio.create_task(kling.submit(prompt="a", image=IMAGE, key="a"))
        await writing.wait()
        made.cancel()
        await asyncio.wait([made])
        await asyncio.sleep(10)
        assert [each.id for each in kling.running] == (["p00000"] if accepted else [])
        assert engine.slots.taken == int(accepted)
        assert ("", "a") not in engine._claims
        await asyncio.sleep(2000)
        assert engine.slots.taken == 0
    assert [end.prediction_id for end in ledger.ends()] == (["p00000"] if accepted else [])


@pytest.mark.parametrize(
    ("failure", "state", "code", "error", "output"),
    [
        ({}, State.COMPLETED, None, None, "https://outputs.example/p00000.mp4"),
        ({"code": 1405, "error": "no face"}, State.FAILED, 1405, "no face", None),
        ({"status": "completed", "error": ""}, State.FAILED, None, None, None),
    ],
)
async def test_end_of_a_prediction_is_recorded_with_what_the_service_said(
    failure: dict[str, Any], state: State, code: int | None, error: str | None, output: str | None
) -> None:
    service, ledger = Service(failures={"a": failure} if failure else {}), Remembering()
    async with open_session(service, ledger=ledger) as kling, kling.batch({"k": JOB}, name="b") as batch:
        assert len([outcome async for outcome in batch]) == 1
        ended_at = service.clock.now()
    (end,) = ledger.ends()
    assert (end.batch, end.key, end.prediction_id) == ("b", "k", "p00000")
    assert (end.state, end.code, end.error or None, end.output) == (state, code, error, output)
    assert abs(end.at - ended_at) < 1


@pytest.mark.promise(1)
@pytest.mark.parametrize("ahead", [0.0, 600.0])
async def test_bill_is_read_by_the_clock_of_the_service(ahead: float) -> None:
    """The history shows nothing yet. The service's clock, in its header and its bill, is ahead of ours."""
    service = Service()
    losing = Losing(service, accepted={"a"}, hidden=True)
    script = losing.script

    def dated(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | Awaitable[HttpResponse] | None:
        date = format_datetime(datetime.fromtimestamp(service.clock.now() + ahead, UTC), usegmt=True)
        if request.url.endswith("/api/v3/billings/search"):
            billed_at = service.epoch + service.accepted["p00000"][0] + ahead
            line = {"uuid": "b", "billing_type": "deduct", "price": 0.28, "prediction": {"uuid": "p00000"}}
            items = [line | {"created_at": str(int(billed_at * 1000))}] if body["page"] == 1 else []
            data = {"page": body["page"], "items": items}
            return json_response({"code": 200, "message": "success", "data": data}, headers={"date": date})
        response = script(request, body)
        if isinstance(response, HttpResponse):
            return attrs.evolve(response, headers={**response.headers, "date": date})
        return response

    service.script = dated
    async with open_session(service) as kling:
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.submit(prompt="a", image=IMAGE)
    assert caught.value.candidates == ("p00000",)
    assert len(service.paid) == 1


async def test_job_that_is_given_up_during_its_grace_is_not_sent_again() -> None:
    service = Service()
    Losing(service, refused={"a"})
    ledger = MemoryLedger()
    async with open_session(service, ledger=ledger) as kling:
        made = asyncio.create_task(kling.submit(prompt="a", image=IMAGE, key="a"))
        await asyncio.sleep(10)
        await ledger.record(Entry(batch="", key="a", state=State.ABANDONED, at=service.clock.now()))
        with pytest.raises(SubmissionUncertainError):
            await made
    assert not service.paid


async def test_webhooks_of_unknown_submissions_are_kept_up_to_a_bound() -> None:
    service = Service(seconds=1e5)
    losing = Losing(service, accepted={"a"})
    async with open_session(service, webhook_url="https://me.example/hook") as kling:
        for number in range(10_001):
            unknown = Prediction(id=f"u{number}", model="")
            await kling.deliver(Delivery(prediction=unknown, token_hash=str(number), webhook_id=str(number), sent_at=0))
        made = asyncio.create_task(kling.submit(prompt="a", image=IMAGE))
        await asyncio.sleep(10)
        await kling.deliver(losing.delivery("a", "p00000"))
        assert (await made).id == "p00000"
