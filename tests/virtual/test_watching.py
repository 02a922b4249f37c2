"""Requests and delay of watching, measured at the service in virtual time."""

from __future__ import annotations

import random
from typing import Any

import anyio
import attrs
import looptime
import pytest

from kling_async import HttpRequest, HttpResponse, Job, KlingSession, Level, Prediction, Status, WatchPolicy, events
from kling_async._core.http import Effect
from kling_async._observers import Observers
from kling_async._watching.watcher import Watcher
from kling_async.ledger import MemoryLedger
from kling_async.providers import GPTProto
from kling_async.testing import LoopClock, ScriptedTransport, json_response
from support.fleet import Fleet, exponential, fixed, fleet, log_normal, watch
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

MEDIAN, SIGMA = 60.0, 0.557
"""Log-normal durations: half take longer than 60 s, one in twenty longer than 150 s."""


@pytest.fixture
def anyio_backend() -> object:
    # There is no real I/O, so time may advance without idle iterations of the loop.
    return "asyncio", {"loop_factory": lambda: looptime.new_event_loop(noop_cycles=1)}


def lists(service: Fleet) -> list[tuple[float, dict[str, Any]]]:
    return [(at, what) for at, what in service.sent if isinstance(what, dict)]


async def test_list_polling_needs_tenth_of_fixed_interval_requests_with_less_delay() -> None:
    times = log_normal(1000, MEDIAN, SIGMA)
    ours = await watch(fleet(times), WatchPolicy.balanced())
    requests, delay = fixed(times, 5.0)
    assert ours.requests <= requests / 10
    assert ours.delay <= delay


async def test_fixed_interval_policy_matches_stated_baseline() -> None:
    times = log_normal(100, MEDIAN, SIGMA)
    ours = await watch(fleet(times), WatchPolicy.fixed(5))
    requests, delay = fixed(times, 5.0)
    assert ours.requests == pytest.approx(requests, rel=0.1)
    assert ours.delay == pytest.approx(delay, rel=0.15)
    assert ours.pages == 0


async def test_single_read_polling_beats_fixed_and_growing_intervals() -> None:
    times = log_normal(600, MEDIAN, SIGMA)
    service = fleet(times, apart=0.5)
    ours = await watch(service, WatchPolicy.balanced(), provider=GPTProto(api_key="key"))
    assert not lists(service)
    for interval in range(1, 60):
        requests, delay = fixed(times, interval)
        assert requests > ours.requests or delay > ours.delay
    for first in (1.0, 2.0, 5.0):
        for growth in (1.1, 1.25, 1.5, 2.0):
            for cap in (5.0, 10.0, 20.0, 30.0, 60.0, float("inf")):
                requests, delay = exponential(times, first, growth, cap)
                assert requests > ours.requests or delay > ours.delay
    requests, delay = fixed_at(times, ours.requests)
    assert requests == pytest.approx(ours.requests, rel=0.02)
    assert ours.delay < delay


def fixed_at(times: list[float], requests: float) -> tuple[float, float]:
    """Compute the baseline for the fixed interval that sends this many requests per prediction."""
    low, high = 0.5, 300.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fixed(times, middle)[0] > requests else (low, middle)
    return fixed(times, high)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"lists": False}, id="has none"),
        pytest.param({"filters": False}, id="keeps to no filter"),
        pytest.param({"stale": 1e9}, id="says for ever that all run"),
        pytest.param({"stale": 30.0}, id="lags"),
        pytest.param({"foreign": 3}, id="has others in between"),
        pytest.param({"foreign": 200}, id="has others for the most part"),
        pytest.param({"apart": 0.0}, id="has them all at one time"),
        pytest.param({"apart": 0.5}, id="grows"),
    ],
)
async def test_all_ends_are_found_with_any_list_behaviour(options: dict[str, Any]) -> None:
    times = log_normal(200, MEDIAN, SIGMA)
    service = fleet(times, **options)
    figures = await watch(service, WatchPolicy.balanced())
    assert figures.watched.ended == 200
    assert figures.requests < fixed(times, 5.0)[0]
    assert figures.delay < (100 if "stale" in options else 60)
    if options == {"lists": False}:
        assert figures.pages == 1


async def test_list_error_does_not_stop_watching() -> None:
    rng = random.Random(5)

    def script(request: HttpRequest) -> HttpResponse | None:
        if rng.random() < 0.1:
            return json_response({"code": 500, "message": "try again"}, status=rng.choice((500, 502, 503)))
        return None

    service = fleet(log_normal(300, MEDIAN, SIGMA), script=script)
    figures = await watch(service, WatchPolicy.balanced())
    assert figures.watched.ended == 300
    assert figures.pages > 20
    assert figures.delay < 30


async def test_429_pauses_all_reads_for_retry_after() -> None:
    limited: list[float] = []
    service = fleet([60.0] * 100, apart=0.0)

    def script(request: HttpRequest) -> HttpResponse | None:
        if not limited:
            limited.append(service.now)
            return json_response({"code": 429, "message": "slow down"}, status=429, headers={"retry-after": "45"})
        return None

    service.script = script
    figures = await watch(service, attrs.evolve(WatchPolicy.fixed(7), jitter=0.0))
    (answered,) = limited
    assert not [at for at, _ in service.sent if answered < at < answered + 45]
    assert figures.watched.ended == 100


async def test_idle_pending_predictions_need_few_requests() -> None:
    service = fleet([1e9] * 2000, apart=0.001)
    with anyio.move_on_after(600):
        await watch(service, WatchPolicy.balanced())
    late = [what for at, what in service.sent if at > 300]
    assert len(late) < 300 / WatchPolicy.balanced().most * 2000 / 80 * 2, "a page a minute for each hundred"
    assert len(service.sent) < 2000, "ten minutes of 2,000 for less than one request each"


async def test_delivered_webhooks_need_no_reads() -> None:
    service = fleet([80.0 + number % 40 for number in range(300)])
    figures = await watch(service, WatchPolicy.webhook_first(), delivered=lambda _: True)
    assert service.sent == []
    assert figures.watched.told == figures.watched.ended == 300


@pytest.mark.parametrize("has_list", [True, False])
async def test_lost_deliveries_are_polled_at_no_extra_cost(has_list: bool) -> None:  # noqa: FBT001 -- a parameter
    times = log_normal(400, MEDIAN, SIGMA)
    balanced = await watch(fleet(times, apart=0.5, lists=has_list), WatchPolicy.balanced())
    service = fleet(times, apart=0.5, lists=has_list)
    lost = {record.id for record in service.records[::2]}
    figures = await watch(service, WatchPolicy.webhook_first(), delivered=lambda record: record.id not in lost)
    assert figures.watched.ended == 400
    assert figures.watched.told >= 150
    assert figures.requests <= balanced.requests


async def test_statistics_agree_with_service() -> None:
    service = fleet(log_normal(150, MEDIAN, SIGMA))
    figures = await watch(service, WatchPolicy.balanced())
    told = figures.watched
    assert (told.singles, told.pages, told.ended) == (figures.singles, figures.pages, 150)
    assert told.requests == len(service.sent)
    assert told.requests_per_end == pytest.approx(figures.requests)
    assert (told.watched, told.waiting) == (0, 0)
    assert told.delay is not None
    assert figures.delay <= told.delay <= 3 * figures.delay + service.latency


def delivery(prediction_id: str, status: str = "completed", *, output: bool = True) -> Prediction:
    outputs = ("https://outputs.example/told.mp4",) if output and status == "completed" else ()
    return Prediction(id=prediction_id, status=Status.of(status), raw_status=status, outputs=outputs)


async def test_delivery_wakes_waiter_and_duplicates_are_ignored() -> None:
    changes: list[str] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Changed):
            changes.append(event.prediction.raw_status)

    service = Service(seconds=60)
    async with open_session(service, observers=[observe], watch="webhook first") as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE, key="mine")
        handle = kling._engine.watcher.handle_webhook
        assert handle(delivery(submitted.id, "processing"))
        assert not handle(delivery(submitted.id, "processing"))
        assert not handle(delivery(submitted.id, "created"))
        assert not handle(delivery("of somebody else"))
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                began = service.clock.monotonic()
                done = await kling.wait(submitted)
                assert (done.output, done.key) == ("https://outputs.example/told.mp4", "mine")
                assert service.clock.monotonic() == pytest.approx(began + 7)

            tasks.start_soon(wait)
            await anyio.sleep(7)
            assert handle(delivery(submitted.id))
            assert not handle(delivery(submitted.id))
            assert not handle(delivery(submitted.id, "failed"))
        assert kling._engine.slots.taken == 0
        await anyio.sleep(600)
        assert service.reads == 0
    assert changes == ["processing", "completed"]


async def test_delivery_may_precede_submit_response() -> None:
    service = Service(seconds=1e6)
    async with open_session(service) as kling:
        assert not kling._engine.watcher.handle_webhook(delivery("p00000"))
        done = await kling.generate(prompt="x", image=IMAGE)
        assert done.output == "https://outputs.example/told.mp4"
    assert service.reads == 0


async def test_delivery_during_read_counts_once() -> None:
    service = Service(seconds=1e6, latency=5.0)

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            return None
        return json_response(
            {"code": 200, "data": {"id": "p00000", "status": "Completed", "outputs": ["https://x.example/1"]}}
        )

    service.script = script
    async with open_session(service, watch=WatchPolicy.fixed(10)) as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE)
        await anyio.sleep(12)
        assert len(sent(kling)) == 2, "it is being read"
        assert kling._engine.watcher.handle_webhook(delivery(submitted.id))
        assert (await kling.wait(submitted.id)).output
        await anyio.sleep(100)
        assert kling._engine.watcher.statistics().ended == 1
        assert (await kling.generate(prompt="y", image=IMAGE)).output, "the watching goes on"


def sent(kling: KlingSession) -> list[HttpRequest]:
    transport = kling._engine._transport
    assert isinstance(transport, ScriptedTransport)
    return transport.requests


async def test_delivered_end_without_outputs_is_confirmed_by_read() -> None:
    service = Service(seconds=30)
    async with open_session(service, watch="webhook first") as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE)
        await anyio.sleep(31)
        assert kling._engine.watcher.handle_webhook(delivery(submitted.id, output=False))
        done = await kling.wait(submitted)
        assert done.output == "https://outputs.example/p00000.mp4"
        assert service.clock.monotonic() < 33
    assert service.reads == 1


async def test_prediction_left_running_is_polled_early_in_next_session() -> None:
    """A prediction accepted long ago has probably ended, so its expected delay counts from acceptance."""
    service = Service(seconds=200)
    ledger = MemoryLedger()
    async with open_session(service, ledger=ledger, level=Level("test", 1000, 1000)) as kling:
        for _ in range(3):
            await kling.submit(prompt="x", image=IMAGE)
    await anyio.sleep(1000)
    reads = service.reads
    async with open_session(service, ledger=ledger) as kling:
        assert len(kling.running) == 3
        await anyio.sleep(3)
        assert kling._engine.watcher.statistics().ended == 3
    assert service.reads == reads + 3


async def test_watch_policy_is_selected_by_name() -> None:
    job = Job(prompt="x", image=IMAGE)
    for watching in ("gentle", WatchPolicy.eager()):
        service = Service()
        async with open_session(service, watch=watching) as kling:
            assert (await kling.generate(job)).output
    with pytest.raises(ValueError, match=r"watch policy: expected gentle, .* got 'lazy'"):
        KlingSession("key", watch="lazy")


async def test_webhook_end_advances_polls_of_others() -> None:
    clock = LoopClock()
    reads: list[tuple[str, float]] = []

    async def runs(request: HttpRequest) -> HttpResponse:
        id_ = request.url.rsplit("/", 2)[-2]
        reads.append((id_, clock.monotonic()))
        return json_response({"code": 200, "data": {"id": id_, "status": "processing"}})

    watcher = Watcher(
        transport=ScriptedTransport(runs),
        provider=GPTProto(api_key="key"),
        clock=clock,
        policy=WatchPolicy.balanced(),
        rng=random.Random(1),
        observe=Observers(()),
        forget_after=1e6,
    )
    planner = watcher._planner
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        await anyio.sleep(1)
        for number in range(2):
            watcher.add(Prediction(id=f"p{number}", model="m"))
        await anyio.sleep(15)
        before = planner.next_due
        watcher.handle_webhook(
            Prediction(id="p0", model="m", status=Status.COMPLETED, raw_status="completed", outputs=("u",))
        )
        await anyio.sleep(0.01)
        due = planner.next_due
        assert clock.monotonic() < due < before
        await clock.sleep(due - clock.monotonic() + 0.1)
        name, at = reads[-1]
        assert name == "p1"
        assert at == pytest.approx(due, abs=0.01)
        tasks.cancel_scope.cancel()
