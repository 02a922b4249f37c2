"""Submissions in doubt: settled by evidence, never resent on a guess, never lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from kling_async import (
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    InvalidJobError,
    Job,
    Prediction,
    SessionClosedError,
    Spent,
    SubmissionUncertainError,
)
from kling_async._core.http import Effect
from kling_async.events import Accepted, Event, Uncertain
from kling_async.ledger import Content, Entry, MemoryLedger, Row, State
from kling_async.testing import json_response
from kling_async.webhooks import TOKEN_PARAMETER, Delivery, token_hash
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


def same(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs


def drop(service: Service, *, before: AbstractSet[str] = frozenset(), after: AbstractSet[str] = frozenset()) -> None:
    """Lose the first reply to these prompts, before or after the service has accepted the job."""
    left = {"before": set(before), "after": set(after)}

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        if body["prompt"] in left["after"]:
            left["after"].discard(body["prompt"])
            service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        if body["prompt"] in left["before"]:
            left["before"].discard(body["prompt"])
            raise ConnectionLostError("dropped")
        return None

    service.script = script


async def test_echo_adopts_accepted_submission_and_resends_lost_one() -> None:
    service = Service(echo=same)
    drop(service, before={"b"}, after={"a"})
    async with open_session(service) as kling:
        done = await asyncio.gather(*(kling.generate(prompt=prompt, image=IMAGE, key=prompt) for prompt in "abc"))
    assert Counter(body["prompt"] for body in service.paid) == {"a": 1, "b": 1, "c": 1}
    by_id = {id_: inputs["prompt"] for id_, (_, _, inputs) in service.accepted.items()}
    assert [by_id[prediction.id] for prediction in done] == ["a", "b", "c"]


async def test_submission_without_orphan_is_resent_after_grace_period() -> None:
    service = Service()
    drop(service, before={"a"})
    async with open_session(service, grace=300) as kling:
        began = service.clock.monotonic()
        assert (await kling.generate(prompt="a", image=IMAGE)).output
        assert service.clock.monotonic() - began > 300
    assert len(service.paid) == 1


@pytest.mark.promise(1)
async def test_orphan_without_echo_on_shared_key_holds_job_with_candidates() -> None:
    service = Service()
    drop(service, after={"a"})
    async with open_session(service) as kling:
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.generate(prompt="a", image=IMAGE, key="a")
        assert kling._engine.slots.taken == 0
    assert caught.value.candidates == ("p00000",)
    assert caught.value.spent is Spent.UNKNOWN
    assert len(service.paid) == 1


async def test_sole_user_adopts_single_orphan_by_count() -> None:
    service = Service()
    drop(service, after={"a"})
    async with open_session(service, sole_user=True) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).id == "p00000"
    assert len(service.paid) == 1


@pytest.mark.promise(1)
async def test_two_orphans_of_two_jobs_are_not_assigned_by_guess() -> None:
    service = Service()
    drop(service, after={"a", "b"})
    async with open_session(service, sole_user=True) as kling:
        ends = await asyncio.gather(
            *(kling.generate(prompt=prompt, image=IMAGE) for prompt in "ab"), return_exceptions=True
        )
    for end in ends:
        assert isinstance(end, SubmissionUncertainError)
        assert end.spent is Spent.YES
        assert set(end.candidates) == {"p00000", "p00001"}
    assert len(service.paid) == 2


async def test_rewritten_echo_is_no_evidence() -> None:
    """A known prediction whose echo differs from its request shows that echoes are unreliable."""
    service = Service(echo=lambda inputs: inputs | {"prompt": inputs["prompt"].upper()})
    drop(service, after={"b"})
    async with open_session(service) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).output
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.generate(prompt="b", image=IMAGE)
    assert caught.value.candidates == ("p00001",)
    assert len(service.paid) == 2


async def test_hold_sends_nothing_and_resubmit_is_opt_in() -> None:
    service = Service()
    drop(service, after={"a"})
    async with open_session(service, on_uncertain="hold") as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(prompt="a", image=IMAGE)
    assert service.lists == 0
    assert len(service.paid) == 1


async def test_gptproto_without_history_holds_job() -> None:
    service = Service()
    drop(service, after={"a"})
    async with open_session(service, provider="gptproto") as kling:
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.generate(prompt="a", image=IMAGE)
    assert caught.value.spent is Spent.UNKNOWN
    assert service.lists == 0
    assert len(service.paid) == 1


async def test_unreadable_history_holds_job() -> None:
    service = Service(echo=same)
    drop(service, after={"a"})
    inner = service.script
    assert inner is not None

    def script(request: HttpRequest, body: dict[str, Any]) -> Any:
        if request.url.endswith("/predictions"):
            return json_response({"code": 500, "message": "oops"}, status=500)
        return inner(request, body)

    service.script = script
    async with open_session(service) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(prompt="a", image=IMAGE)
    assert len(service.paid) == 1


def jobs(count: int) -> Iterator[Job]:
    return (Job(prompt=f"number {number}", image=IMAGE) for number in range(count))


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.promise(1)
@pytest.mark.repeats
async def test_random_faults_neither_pay_twice_nor_lose_jobs(seed: int, *, echo: bool) -> None:
    rng = random.Random(seed)
    service = Service(echo=same if echo else None)

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        chance = rng.random()
        if chance > 0.1:
            return None
        if request.effect is Effect.PAID and chance < 0.03:
            service.accept(body, request.url.partition("/api/v3/")[2])
        if chance < 0.07:
            raise ConnectionLostError("dropped")
        return json_response({"code": 503, "message": "busy"}, status=503)

    service.script = script
    async with open_session(service, max_in_flight=50) as kling, kling.batch(jobs(300)) as batch:
        outcomes = [outcome async for outcome in batch]
    paid = Counter(body["prompt"] for body in service.paid)
    assert max(paid.values()) == 1
    assert len(outcomes) == 300
    held = [outcome for outcome in outcomes if isinstance(outcome.error, SubmissionUncertainError)]
    # About one in several thousand is in doubt three times in a row and is given up as unaccepted.
    given_up = [outcome for outcome in outcomes if not outcome.ok and outcome not in held]
    assert all(outcome.error is not None and outcome.error.spent is Spent.NO for outcome in given_up)
    assert not {outcome.job.prompt for outcome in given_up} & paid.keys()
    assert len(service.paid) >= 300 - len(held) - len(given_up)
    if echo:
        assert held == []


@pytest.mark.promise(1)
async def test_key_with_request_in_flight_is_not_sent_twice() -> None:
    """Regression: a caller that timed out and retried paid twice."""
    service = Service(latency=10)
    async with open_session(service) as kling:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(kling.generate(prompt="x", image=IMAGE, key="K"), 5)
        with pytest.raises(InvalidJobError, match="being submitted already"):
            await kling.generate(prompt="x", image=IMAGE, key="K")
        await asyncio.sleep(20)
        assert (await kling.generate(prompt="x", image=IMAGE, key="K")).id == "p00000"
    assert len(service.paid) == 1


async def test_absence_from_truncated_history_is_no_evidence() -> None:
    service = Service()
    drop(service, after={"a"})
    async with open_session(service, grace=8 * 86_400) as kling:
        task = asyncio.create_task(kling.generate(prompt="a", image=IMAGE))
        await asyncio.sleep(5)
        service.accepted.clear()
        with pytest.raises(SubmissionUncertainError):
            await task
    assert len(service.paid) == 1


async def test_slow_clock_does_not_hide_accepted_submission() -> None:
    service = Service(echo=same)
    service.epoch -= 600
    drop(service, after={"a"})
    async with open_session(service) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).output
    assert len(service.paid) == 1


async def test_close_rejects_slot_waiters() -> None:
    service = Service(seconds=1e6)
    async with open_session(service, max_in_flight=1) as kling:
        await kling.submit(prompt="first", image=IMAGE)
        waiting = asyncio.create_task(kling.submit(prompt="second", image=IMAGE))
        await asyncio.sleep(1)
    with pytest.raises(SessionClosedError, match="nothing was sent"):
        await waiting
    assert len(service.paid) == 1


# ---- clocks that jump, and the bill ----


class Jumping:
    """Session clock that equals the service's until it is set."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.off = 0.0

    def now(self) -> float:
        return self.service.clock.now() + self.off

    def monotonic(self) -> float:
        return self.service.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.service.clock.sleep(seconds)


def late(service: Service, clock: Jumping, jump: float, shown_after: float) -> None:
    """Accept the first job, lose the response, set the session's clock, and list the prediction later."""
    accepted_at: list[float] = []

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and not accepted_at:
            service.accept(body, request.url.partition("/api/v3/")[2])
            accepted_at.append(service.clock.monotonic())
            clock.off = jump
            raise ConnectionLostError("dropped")
        if request.url.endswith("/api/v3/predictions") and service.clock.monotonic() < accepted_at[0] + shown_after:
            return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": []}})
        return None

    service.script = script


@pytest.mark.parametrize("jump", [-40 * 86_400.0, -86_400.0, -3600.0, 0.0, 3600.0, 86_400.0])
async def test_clock_jump_keeps_grace_period_and_finds_paid_prediction(jump: float) -> None:
    service = Service(echo=same)
    service.epoch = service.clock.now() - service.clock.monotonic()
    clock = Jumping(service)
    late(service, clock, jump, shown_after=60)
    async with open_session(service, clock=clock) as kling:
        began = clock.monotonic()
        assert (await kling.generate(prompt="a", image=IMAGE)).output
        assert clock.monotonic() - began < 300, "nor is anybody kept waiting for the old time to come again"
    assert len(service.paid) == 1


@pytest.mark.parametrize("sole_user", [False, True])
async def test_billed_but_unlisted_submission_is_neither_resent_nor_adopted(*, sole_user: bool) -> None:
    """The charge may belong to another key."""
    service = Service()
    asked = 0

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        nonlocal asked
        if request.effect is Effect.PAID and body["prompt"] == "a":
            service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        if request.url.endswith("/api/v3/predictions"):
            return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": []}})
        if request.url.endswith("/api/v3/billings/search"):
            asked += 1
            items = [
                {"uuid": f"b{id_}", "billing_type": "deduct", "price": 0.28, "prediction": {"uuid": id_}}
                for id_ in service.accepted
            ]
            return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": items}})
        return None

    service.script = script
    async with open_session(service, sole_user=sole_user) as kling:
        await kling.generate(prompt="b", image=IMAGE)
        assert asked == 0, "nobody is in doubt"
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.generate(prompt="a", image=IMAGE)
    assert caught.value.candidates == ("p00001",)
    assert len(service.paid) == 2
    assert asked


@pytest.mark.parametrize(("kind", "age"), [("deduct", 60.0), ("refund", -50.0)], ids=["charge from before", "refund"])
async def test_line_of_the_bill_that_cannot_be_the_submission_holds_nothing(kind: str, age: float) -> None:
    """Jobs that were accepted before and after the doubt prove the times of the service's clock."""
    service = Service(seconds=5)
    service.epoch = service.clock.now() - service.clock.monotonic()
    lost = ["a"]

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.url.endswith("/api/v3/billings/search"):
            line = {
                "uuid": "b",
                "billing_type": kind,
                "price": 0.28,
                "prediction": {"uuid": "of-others"},
                "created_at": str(int((began - age) * 1000)),
            }
            items = [line] if body["page"] == 1 else []
            return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": items}})
        if request.effect is Effect.PAID and body["prompt"] in lost:
            lost.clear()
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    began = service.clock.now()
    async with open_session(service) as kling:
        await kling.generate(prompt="before", image=IMAGE)
        doubt = asyncio.create_task(kling.generate(prompt="a", image=IMAGE))
        await asyncio.sleep(1)
        await kling.generate(prompt="after", image=IMAGE)
        assert (await doubt).output
    assert sorted(body["prompt"] for body in service.paid) == ["a", "after", "before"]


async def test_unreadable_bill_is_retried() -> None:
    service = Service()
    troubles = [503, 503]
    lost = ["a"]

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.url.endswith("/api/v3/billings/search"):
            status = troubles.pop() if troubles else 200
            data = {"page": 1, "items": []}
            return json_response({"code": status, "message": "said", "data": data}, status=status)
        if request.effect is Effect.PAID and lost:
            lost.clear()
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with open_session(service) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).output
    assert len(service.paid) == 1
    assert not troubles


@pytest.mark.parametrize("accepted", [True, False])
async def test_doubt_is_settled_by_other_job_while_waiting_for_slot(accepted: bool) -> None:  # noqa: FBT001 -- a case
    # One after another: a ledger in memory drops rows that have ended.
    service = Service(seconds=lambda body: 300 * (1 + int(body["prompt"][-1])), echo=same)
    ledger = MemoryLedger()
    jobs = {f"job {number}": Job(prompt=f"number {number}", image=IMAGE) for number in range(4)}
    prompts = {job.prompt for job in jobs.values()}
    drop(service, before=set() if accepted else prompts, after=prompts if accepted else set())
    async with (
        open_session(service, ledger=ledger, on_uncertain="hold") as kling,
        kling.batch(jobs, name="b") as batch,
    ):
        assert not any([outcome.ok async for outcome in batch])
    async with open_session(service, ledger=ledger, max_in_flight=1) as kling:
        async with kling.batch(jobs, name="b") as batch:
            errors = [outcome.error async for outcome in batch]
        assert kling._engine.slots.taken == 0
    assert errors == [None] * 4
    assert len(service.paid) == 4


async def test_webhook_during_history_read_outweighs_absence() -> None:
    service = Service(seconds=600)
    hooks: dict[str, str] = {}

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | Awaitable[HttpResponse] | None:
        if request.effect is Effect.PAID and body["prompt"] not in hooks:
            (hooks[body["prompt"]],) = parse_qs(urlsplit(request.url).query)["webhook"]
            service.accept(body)
            raise ConnectionLostError("dropped")
        return lagging() if request.url.endswith("/api/v3/predictions") else None

    async def lagging() -> HttpResponse:
        await asyncio.sleep(5)
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": []}})

    service.script = script
    async with open_session(service, webhook_url="https://me.example/hook", sole_user=True) as kling:
        made = [asyncio.create_task(kling.generate(prompt=prompt, image=IMAGE, key=prompt)) for prompt in "ab"]
        await asyncio.sleep(93)
        for prompt, id_ in zip("ab", list(service.accepted), strict=True):
            (token,) = parse_qs(urlsplit(hooks[prompt]).query)[TOKEN_PARAMETER]
            told = Prediction(id=id_, model="")
            await kling.deliver(Delivery(prediction=told, token_hash=token_hash(token), webhook_id=id_, sent_at=0))
        assert [(await each).id for each in made] == list(service.accepted)
    assert len(service.paid) == 2


async def test_possibly_paid_submission_is_never_reported_unsent() -> None:
    service = Service()
    ledger = MemoryLedger()
    jobs = {key: Job(prompt=key, image=IMAGE) for key in "ab"}
    drop(service, after={"a", "b"})
    async with (
        open_session(service, ledger=ledger, on_uncertain="hold") as kling,
        kling.batch(jobs, name="b") as batch,
    ):
        assert not any([outcome.ok async for outcome in batch])

    def refuse(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if request.effect is Effect.PAID:
            return json_response({"code": 401, "message": "no"}, status=401)
        return None

    service.script = refuse
    first = {"first": Job(prompt="first", image=IMAGE)}
    async with (
        open_session(service, ledger=ledger, max_in_flight=1) as kling,
        kling.batch(first | jobs, name="b") as batch,
    ):
        errors = {outcome.key: outcome.error async for outcome in batch}
    for error in (errors["a"], errors["b"]):
        assert isinstance(error, SubmissionUncertainError)
        assert error.spent is Spent.UNKNOWN


async def test_charges_during_history_read_delay_no_job() -> None:
    """Others keep submitting meanwhile: the bill has what the history shows only when it is read again."""
    service = Service()
    shown: list[str] = []
    service.epoch = service.clock.now() - service.clock.monotonic()
    lost = ["a"]

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.url.endswith("/api/v3/billings/search"):
            shown.append("fresh")
            line = {
                "uuid": "b",
                "billing_type": "deduct",
                "price": 0.28,
                "prediction": {"uuid": "fresh"},
                "created_at": str(int(service.clock.now() * 1000)),
            }
            return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": [line]}})
        if request.url.endswith("/api/v3/predictions"):
            items = [{"id": id_, "status": "processing", "outputs": []} for id_ in shown] if body["page"] == 1 else []
            return json_response({"code": 200, "message": "success", "data": {"page": body["page"], "items": items}})
        if request.effect is Effect.PAID and lost:
            lost.clear()
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with open_session(service) as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).output
    assert len(service.paid) == 1


async def after(seconds: float, reply: Callable[[], HttpResponse]) -> HttpResponse:
    await asyncio.sleep(seconds)
    return reply()


async def test_verdict_on_one_attempt_does_not_apply_to_next() -> None:
    service = Service(seconds=600)
    sent: Counter[str] = Counter()
    readable = False

    class Slow(MemoryLedger):
        async def record(self, entry: Entry) -> Row:
            nonlocal readable
            if entry.key == "a" and entry.state is State.PENDING and not readable:
                # Reconciliation found nothing for "a" and finds "b"; "a" is still in doubt when the second one begins.
                readable = True
                await asyncio.sleep(5)
            return await super().record(entry)

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | Awaitable[HttpResponse] | None:
        if request.effect is Effect.PAID:
            sent[body["prompt"]] += 1
            if sent[body["prompt"]] == 1:
                raise ConnectionLostError("dropped")
            return after(100, lambda: service.accept(body))
        if request.url.endswith("billings/search"):
            # Long enough for "a" to be in flight again when its first attempt is shown to be unaccepted.
            nothing = {"code": 200, "message": "success", "data": {"page": 1, "items": []}}
            return after(20, lambda: json_response(nothing))
        return None if readable else json_response({"code": 500, "message": "no"}, status=500)

    service.script = script
    ledger = Slow()
    async with open_session(service, ledger=ledger, on_uncertain="resubmit") as kling:
        made = [asyncio.create_task(kling.submit(prompt=key, image=IMAGE, key=key)) for key in "ab"]
        assert {(await each).id for each in made} == set(service.accepted)
        assert (await ledger.known(service.accepted)).keys() == service.accepted.keys()
    assert sent == {"a": 2, "b": 2}


@pytest.mark.promise(1)
async def test_doubt_about_a_later_attempt_is_not_settled_by_a_bill_read_for_the_first() -> None:
    """In a shared ledger another process settles the job, sends it again, and loses that reply too."""
    service = Service(seconds=600)
    ledger = MemoryLedger()
    states: list[State] = []

    async def sent_again() -> HttpResponse:
        if not states:
            moves = (State.PENDING, None), (State.INTENT, 2), (State.UNCERTAIN, None)
            for state, attempt in moves:
                step = Entry(batch="", key="a", state=state, at=service.clock.now(), attempt=attempt, fingerprint="f")
                await ledger.record(step)
        states.append(State.UNCERTAIN)
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": []}})

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | Awaitable[HttpResponse] | None:
        if request.effect is Effect.PAID:
            raise ConnectionLostError("dropped")
        return sent_again() if request.url.endswith("billings/search") else None

    service.script = script
    async with open_session(service, ledger=ledger) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.submit(prompt="a", image=IMAGE, key="a")
        (row,) = await ledger.rows(State)
    assert (row.state, row.attempt, len(states)) == (State.UNCERTAIN, 2, 1)


async def test_job_given_up_before_reconciliation_is_not_resent() -> None:
    """In a shared ledger another process may give up a job that this session has in doubt."""
    service = Service()

    class GivenUp(MemoryLedger):
        given_up: Row | None = None

        async def record(self, entry: Entry) -> Row:
            row = await super().record(entry)
            if entry.state is State.UNCERTAIN:
                by_hand = Entry(batch=entry.batch, key=entry.key, state=State.ABANDONED, at=entry.at)
                self.given_up = await super().record(by_hand)
            return row

        async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
            # The memory ledger drops such rows; a shared ledger keeps them.
            return (self.given_up, Content("")) if self.given_up else await super().find(batch, key)

    drop(service, before={"a"})
    async with open_session(service, ledger=GivenUp()) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.submit(prompt="a", image=IMAGE, key="a")
    assert not service.accepted


@pytest.mark.parametrize("waits", [True, False])
async def test_webhook_before_reconciliation_settles_doubt(waits: bool) -> None:  # noqa: FBT001 -- a case
    service = Service(seconds=600)
    hooks: list[str] = []
    slow = 1.0 if waits else 0.0

    class Slow(MemoryLedger):
        async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
            await asyncio.sleep(slow)
            return await super().find(batch, key)

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and not hooks:
            hooks.extend(parse_qs(urlsplit(request.url).query)["webhook"])
            service.accept(body)
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    deliveries: list[asyncio.Task[None]] = []

    def deliver(event: Event) -> None:
        if isinstance(event, Uncertain):
            (token,) = parse_qs(urlsplit(hooks[0]).query)[TOKEN_PARAMETER]
            told = Delivery(
                prediction=Prediction(id="p00000", model=""), token_hash=token_hash(token), webhook_id="w", sent_at=0
            )
            deliveries.append(asyncio.create_task(kling.deliver(told)))

    hooked = open_session(service, ledger=Slow(), webhook_url="https://me.example/hook", observers=[deliver])
    async with hooked as kling:
        assert (await kling.generate(prompt="a", image=IMAGE)).id == "p00000"
        await asyncio.gather(*deliveries)
        assert kling._engine.slots.taken == 0
        assert (
            kling.statistics().spent
            == kling._engine._running.spent
            == Job(prompt="a", image=IMAGE).price("wavespeed").usd
        )
    assert len(service.paid) == 1


async def test_doubt_settled_while_waiting_for_slot_is_published() -> None:
    service = Service(seconds=lambda body: 2000 if body["prompt"] == "a" else 1000)
    hooks: list[str] = []

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "a":
            hooks.extend(parse_qs(urlsplit(request.url).query)["webhook"])
            service.accept(body)
            raise ConnectionLostError("dropped")
        return json_response({"code": 500}, status=500) if request.url.endswith("/api/v3/predictions") else None

    service.script = script
    seen: list[Event] = []
    ledger = MemoryLedger()
    async with open_session(
        service, ledger=ledger, on_uncertain="hold", webhook_url="https://me.example/hook"
    ) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(prompt="a", image=IMAGE, key="a")
    async with open_session(
        service, ledger=ledger, on_uncertain="resubmit", max_in_flight=1, observers=[seen.append]
    ) as kling:
        busy = asyncio.create_task(kling.generate(prompt="b", image=IMAGE, key="b"))
        await asyncio.sleep(1)
        doubtful = asyncio.create_task(kling.generate(prompt="a", image=IMAGE, key="a"))
        # The history cannot be read: the job is about to be sent again once there is a slot.
        await asyncio.sleep(800)
        assert kling.statistics().waiting_for_slot == 1
        (token,) = parse_qs(urlsplit(hooks[0]).query)[TOKEN_PARAMETER]
        told = Prediction(id="p00000", model="")
        await kling.deliver(Delivery(prediction=told, token_hash=token_hash(token), webhook_id="w", sent_at=0))
        assert (await doubtful).id == "p00000"
        await busy
    assert len(service.paid) == 2
    published = [event.prediction.id for event in seen if isinstance(event, Accepted) and event.key == "a"]
    assert published == ["p00000"]
