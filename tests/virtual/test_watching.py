"""Requests and delay of watching, measured at the service in virtual time."""

from __future__ import annotations

import itertools
import random
from statistics import fmean
from typing import Any

import anyio
import pytest

from kling_async import (
    ConfigurationError,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    Level,
    Prediction,
    Status,
    WatchPolicy,
    events,
)
from kling_async._core.http import Effect
from kling_async.ledger import MemoryLedger
from kling_async.testing import ScriptedTransport, json_response
from support import virtual
from support.fleet import (
    Fleet,
    alone,
    dominating,
    fixed,
    fleet,
    log_normal,
    quantiles,
    run_watch,
    watch,
)
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

MEDIAN, SIGMA = 60.0, 0.557
"""Log-normal durations: half take longer than 60 s, one in twenty longer than 150 s."""


@pytest.fixture
def anyio_backend() -> object:
    # There is no real I/O, so time may advance without idle iterations of the loop.
    return "asyncio", {"loop_factory": lambda: virtual.new_event_loop(noop_cycles=1)}


def lists(service: Fleet) -> list[tuple[float, dict[str, Any]]]:
    return [(at, what) for at, what in service.sent if isinstance(what, dict)]


@pytest.mark.parametrize("median", [60.0, 120.0])
def test_caller_who_waits_for_one_video_pays_nothing_for_patience(median: float) -> None:
    """First of its session: nothing is known but the catalogue's usual time, which is 120 s."""
    ours = alone(WatchPolicy.balanced(), quantiles(3000, median, 0.4))
    assert ours.delay_share <= 1.15
    assert ours.request_share <= 0.75
    worst_of_400 = alone(WatchPolicy.balanced(), quantiles(400, median, 0.4)).delays[-1]
    assert worst_of_400 <= 9.0


@pytest.mark.parametrize("median", [60.0, 120.0])
@pytest.mark.repeats
def test_learned_durations_save_requests_at_the_same_delay(median: float) -> None:
    ours = alone(WatchPolicy.balanced(), quantiles(3000, median, 0.4), others=50, sessions=20, sigma=0.4)
    assert ours.delay_share <= 1.15
    assert ours.request_share <= 0.6
    assert ours.percentile(0.95) <= 12.0


@pytest.mark.parametrize("sigma", [SIGMA, 0.4, 0.15])
@pytest.mark.repeats
def test_thousand_pending_are_read_within_the_ceiling(sigma: float) -> None:
    times = log_normal(1000, MEDIAN, sigma)
    service = fleet(times, lists=False)
    ours = run_watch(service, WatchPolicy.balanced())
    assert service.busiest <= 100
    assert ours.delay <= 4.0
    assert not dominating(times, ours.requests, ours.delay)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_learned_schedule_is_on_the_frontier_of_intervals(count: int) -> None:
    figures, times = [], []
    for seed in range(200 // count):
        some = log_normal(count, MEDIAN, SIGMA, seed=seed)
        figures.append(run_watch(fleet(some, apart=10 / count, lists=False), WatchPolicy.balanced()))
        times += some
    requests, delay = (sum(getattr(each, name) for each in figures) / len(figures) for name in ("requests", "delay"))
    assert not dominating(times, requests, delay)


@pytest.mark.parametrize("name", ["gentle", "balanced", "eager", "webhook first"])
async def test_named_policies_read_no_list(name: str) -> None:
    """The vendor asks not to poll it for status (docs: predictions)."""
    service = fleet(log_normal(200, MEDIAN, SIGMA))
    await watch(service, WatchPolicy.named(name))
    assert not lists(service)


async def test_list_policy_needs_fifteenth_of_fixed_interval_requests() -> None:
    times = log_normal(1000, MEDIAN, SIGMA)
    ours = await watch(fleet(times), WatchPolicy.listed())
    requests, delay = fixed(times, 5.0)
    assert ours.requests <= requests / 15
    assert ours.delay <= 1.1 * delay


async def test_fixed_interval_policy_matches_stated_baseline() -> None:
    times = log_normal(100, MEDIAN, SIGMA)
    ours = await watch(fleet(times), WatchPolicy.fixed(5))
    requests, delay = fixed(times, 5.0)
    assert ours.requests == pytest.approx(requests, rel=0.02)
    assert ours.delay == pytest.approx(delay, rel=0.02)
    assert ours.pages == 0


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
@pytest.mark.repeats
async def test_all_ends_are_found_with_any_list_behaviour(options: dict[str, Any]) -> None:
    times = log_normal(200, MEDIAN, SIGMA)
    service = fleet(times, **options)
    figures = await watch(service, WatchPolicy.listed())
    assert figures.watched.ended == 200
    assert figures.requests < fixed(times, 5.0)[0]
    assert figures.delay < (100 if "stale" in options else 60)
    if options == {"lists": False}:
        assert figures.pages <= 3


async def test_list_error_does_not_stop_watching() -> None:
    rng = random.Random(5)

    def script(request: HttpRequest) -> HttpResponse | None:
        if rng.random() < 0.1:
            return json_response({"code": 500, "message": "try again"}, status=rng.choice((500, 502, 503)))
        return None

    service = fleet(log_normal(300, MEDIAN, SIGMA), script=script)
    figures = await watch(service, WatchPolicy.listed())
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
    figures = await watch(service, WatchPolicy.fixed(7))
    (answered,) = limited
    assert not [at for at, _ in service.sent if answered < at < answered + 45]
    assert figures.watched.ended == 100


async def test_refused_read_halves_the_reads_which_recover() -> None:
    """Without `Retry-After`, the read is repeated later, and the others go on at half the rate."""
    service = fleet([1e9] * 2000, apart=0.001, lists=False)
    refused: list[float] = []

    def script(request: HttpRequest) -> HttpResponse | None:
        if service.now > 60 and not refused:
            refused.append(service.now)
            return json_response({"code": 429, "message": "slow down"}, status=429)
        return None

    service.script = script
    with anyio.move_on_after(150):
        await watch(service, WatchPolicy.fixed(5), ceiling=100.0)

    def rate(start: float) -> float:
        return sum(start <= at < start + 5 for at, _ in service.sent) / 5

    (at,) = refused
    assert rate(at - 5.5) == pytest.approx(100, abs=4)
    assert rate(at + 0.5) == pytest.approx(52, abs=6)
    assert rate(at + 15) == pytest.approx(79, abs=6)
    assert rate(at + 31) == pytest.approx(100, abs=4)


async def test_refused_reads_slow_no_submits() -> None:
    times: list[float] = []
    service = Service(seconds=60)

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            times.append(service.clock.monotonic())
            return None
        return json_response({"code": 429, "message": "slow down"}, status=429)

    service.script = script
    async with open_session(service, max_in_flight=1000) as kling:
        for number in range(600):
            await kling.submit(prompt=str(number), image=IMAGE)
        assert kling.statistics().watch.ceiling < 20
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) == pytest.approx(service.latency, abs=0.01)


@pytest.mark.parametrize(("slots", "given", "ceiling"), [(300, None, 100), (3000, None, 300), (300, 7, 7)])
async def test_ceiling_is_the_sessions(slots: int, given: float | None, ceiling: float) -> None:
    async with open_session(Service(), max_in_flight=slots, max_reads_per_second=given) as kling:
        assert kling.statistics().watch.ceiling == ceiling


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_ceiling_has_to_be_positive(wrong: float) -> None:
    with pytest.raises(ConfigurationError, match="max_reads_per_second: expected a positive number of reads"):
        KlingSession("key", max_reads_per_second=wrong)


async def test_delivered_webhooks_need_few_reads() -> None:
    times = log_normal(1000, MEDIAN, SIGMA)
    figures = await watch(fleet(times), WatchPolicy.webhook_first(), delivered=lambda _: True)
    assert figures.requests <= 0.1 * fixed(times, 5.0)[0]
    assert figures.watched.told >= 950, "some are read before their delivery"


@pytest.mark.parametrize("lost", [1, 2, 20])
@pytest.mark.parametrize(("median", "sigma"), [(60.0, SIGMA), (120.0, 0.4), (60.0, 0.15)])
async def test_lost_delivery_is_found_soon(lost: int, median: float, sigma: float) -> None:
    """However many are lost: all, every second or every twentieth."""
    times = log_normal(400, median, sigma)
    service = fleet(times, apart=0.5)
    missed = {record.id for record in service.records[::lost]}
    figures = await watch(service, WatchPolicy.webhook_first(), delivered=lambda record: record.id not in missed)
    assert figures.watched.ended == 400
    assert fmean(figures.delays[id_] for id_ in missed) <= 20.0
    assert figures.requests <= fixed(times, 5.0)[0] / 5


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


@pytest.mark.parametrize(("named", "interval"), [("gentle", 10.0), ("eager", 2.0), ("", 5.45)])
async def test_environment_names_the_default_policy(
    named: str, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLING_WATCH", named)
    service = Service(seconds=40)
    async with open_session(service) as kling:
        for _ in range(2):
            await kling.submit(prompt="x", image=IMAGE)
        await anyio.sleep(interval - 0.5)
        assert service.reads == 0
        await anyio.sleep(1.0)
        assert service.reads > 0


async def test_unknown_policy_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLING_WATCH", "restless")
    with pytest.raises(ConfigurationError, match=r"^KLING_WATCH: .*restless"):
        open_session(Service())


async def test_watch_policy_is_selected_by_name() -> None:
    job = Job(prompt="x", image=IMAGE)
    for watching in ("gentle", WatchPolicy.eager()):
        service = Service()
        async with open_session(service, watch=watching) as kling:
            assert (await kling.generate(job)).output
    with pytest.raises(ValueError, match=r"watch policy: expected gentle, .* got 'lazy'"):
        KlingSession("key", watch="lazy")
