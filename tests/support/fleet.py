"""Predictions at an in-memory service, watched by a real `Watcher` in virtual time; counts requests and delays."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from statistics import NormalDist, fmean, median
from typing import Any

import anyio
import attrs

from kling_async import HttpRequest, HttpResponse, Job, Prediction, WatchPolicy
from kling_async._core.polling import WatchStatistics
from kling_async._core.read_rate import default_ceiling
from kling_async._core.secret import Secret
from kling_async._observers import Observers
from kling_async._watching.watcher import Watcher
from kling_async.providers import Provider, WaveSpeed
from kling_async.testing import LoopClock, json_response
from support import virtual

JOB = Job(model="kling-v2.1-pro", prompt="x", image="https://pictures.example/face.png")


@attrs.define
class Record:
    """A prediction at the service.

    Attributes:
        id: prediction id.
        created: time of the submit, in seconds since the start of the service.
        seconds: duration.
        ours: False for a prediction of another process on the same account.
    """

    id: str
    created: float
    seconds: float
    ours: bool = True

    @property
    def ends(self) -> float:
        return self.created + self.seconds


@attrs.define
class Fleet:
    """A service with a fixed set of predictions, each visible from its creation on.

    Attributes:
        records: predictions, in ascending order of creation.
        lists: False if the service has no list endpoint.
        latency: seconds per request.
        script: function that may return another response to a request; None for the regular one.
        stale: seconds by which the list lags behind; single reads do not.
        filters: False if the list ignores `created_before`.
        clock: the loop's clock.
        begun: time of `clock` at the start of the service, in seconds.
        sent: time of each request, with the body of a list request or the id of a single read.
    """

    records: list[Record]
    lists: bool = True
    latency: float = 0.2
    script: Callable[[HttpRequest], HttpResponse | None] | None = None
    stale: float = 0.0
    filters: bool = True
    clock: LoopClock = attrs.field(factory=LoopClock)
    begun: float = 0.0
    sent: list[tuple[float, str | dict[str, Any]]] = attrs.field(factory=list)
    _by_id: dict[str, Record] = attrs.field(init=False)
    _created: list[float] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._by_id = {record.id: record for record in self.records}
        self._created = [record.created for record in self.records]

    @property
    def now(self) -> float:
        """Seconds since the start of the service."""
        return self.clock.monotonic() - self.begun

    async def send(self, request: HttpRequest) -> HttpResponse:
        body = json.loads(request.body) if request.body else None
        name = request.url.rsplit("/", 2)[-2]
        self.sent.append((self.now, name if body is None else body))
        await anyio.sleep(self.latency)
        scripted = self.script(request) if self.script is not None else None
        if scripted is not None:
            return scripted
        if body is None:
            record = self._by_id.get(name)
            if record is None:
                return json_response({"code": 404, "message": "not found"}, status=404)
            return json_response({"code": 200, "data": self.prediction(record)})
        if not self.lists:
            return json_response({"code": 404, "message": "no such path"}, status=404)
        until = self.clock.now()
        if self.filters and "created_before" in body:
            until = min(until, datetime.fromisoformat(body["created_before"]).timestamp())
        count = bisect_right(self._created, until - self.clock.now() + self.now + 1e-6)
        last = count - (body["page"] - 1) * body["page_size"]
        page = self.records[max(0, last - body["page_size"]) : max(0, last)]
        items = [self.prediction(record, self.stale) for record in reversed(page)]
        return json_response({"code": 200, "data": {"page": body["page"], "items": items}})

    @property
    def busiest(self) -> int:
        """Most requests within any second."""
        times = [at for at, _ in self.sent]
        return max(bisect_left(times, at + 1) - number for number, at in enumerate(times))

    def prediction(self, record: Record, stale: float = 0.0) -> dict[str, Any]:
        """Return the prediction as it was `stale` seconds ago."""
        ended = self.now - stale >= record.ends
        created = datetime.fromtimestamp(self.clock.now() - self.now + record.created, UTC)
        return {
            "id": record.id,
            "model": JOB.model,
            "status": "completed" if ended else "processing",
            "outputs": [f"https://outputs.example/{record.id}.mp4"] if ended else [],
            "created_at": created.isoformat(timespec="microseconds"),
            "timings": {"inference": int(1000 * record.seconds) if ended else 0},
        }


@attrs.frozen
class Figures:
    """Cost and delay of watching, measured at the service.

    Attributes:
        requests: requests per prediction.
        singles: number of single reads.
        pages: number of list requests.
        delays: seconds from the end of each prediction to its notification, by its id.
        watched: the watcher's own statistics.
    """

    requests: float
    singles: int
    pages: int
    delays: Mapping[str, float]
    watched: WatchStatistics

    @property
    def delay(self) -> float:
        """Mean delay in seconds."""
        return fmean(self.delays.values())


def ids() -> Callable[[], str]:
    rng = random.Random(7)
    return lambda: f"{rng.getrandbits(128):032x}"


def fleet(times: Sequence[float], *, apart: float = 0.01, foreign: int = 0, **options: Any) -> Fleet:
    """Return a service with a prediction every `apart` seconds, each followed by `foreign` ones of others."""
    name = ids()
    records: list[Record] = []
    for number, seconds in enumerate(times):
        records.append(Record(name(), number * apart, seconds))
        records += [Record(name(), number * apart, 60.0, ours=False) for _ in range(foreign)]
    return Fleet(records, **options)


def log_normal(count: int, middle: float, sigma: float, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [middle * rng.lognormvariate(0, sigma) for _ in range(count)]


def quantiles(count: int, middle: float, sigma: float) -> list[float]:
    """Return `count` equally probable log-normal durations."""
    return [middle * math.exp(NormalDist(0, sigma).inv_cdf((number + 0.5) / count)) for number in range(count)]


def fixed(times: Sequence[float], interval: float, latency: float = 0.2) -> tuple[float, float]:
    """Compute the baseline: requests per prediction and mean delay in seconds with a read every `interval` seconds."""
    return exponential(times, interval, 1.0, interval, latency)


def exponential(
    times: Sequence[float], first: float, growth: float, cap: float, latency: float = 0.2
) -> tuple[float, float]:
    """Compute the same for intervals that grow up to a cap, each from a response to the next request."""
    requests, delays = 0, 0.0
    for seconds in times:
        gap, at = first, first
        requests += 1
        while at + latency < seconds:
            gap = min(gap * growth, cap)
            at += latency + gap
            requests += 1
        delays += at + latency - seconds
    return requests / len(times), delays / len(times)


def growing_intervals() -> Iterator[tuple[float, float, float]]:
    """Yield the first interval, growth and cap of fixed and growing intervals, to compare with."""
    yield from ((interval / 4, 1.0, interval / 4) for interval in range(4, 240))
    for first in (1.0, 2.0, 5.0, 10.0, 20.0):
        for growth in (1.1, 1.25, 1.5, 2.0):
            caps = (5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 60.0, math.inf)
            yield from ((first, growth, cap) for cap in caps if cap >= first)


def dominating(times: Sequence[float], requests: float, delay: float) -> list[tuple[float, float, float]]:
    """Return the fixed and growing intervals that send no more requests and add no more delay than given."""
    computed = {interval: exponential(times, *interval) for interval in growing_intervals()}
    return [interval for interval, (sent, late) in computed.items() if sent <= requests and late <= delay]


def run_watch(service: Fleet, policy: WatchPolicy, **options: Any) -> Figures:
    """Run `watch` on an event loop of its own, in virtual time."""
    # There is no real I/O, so time may advance without idle iterations of the loop.
    loop = virtual.new_event_loop(noop_cycles=1)
    try:
        return loop.run_until_complete(watch(service, policy, **options))
    finally:
        loop.close()


@attrs.frozen
class Compared:
    """Figures of watching beside those of a fixed 5 s interval for the same durations.

    Attributes:
        requests: requests per prediction.
        delays: seconds from the ends to their notification, ascending.
        fixed: requests per prediction and mean delay of the fixed interval.
    """

    requests: float
    delays: Sequence[float]
    fixed: tuple[float, float]

    @property
    def delay(self) -> float:
        """Mean delay in seconds."""
        return fmean(self.delays)

    @property
    def request_share(self) -> float:
        """Requests over those of the fixed interval."""
        return self.requests / self.fixed[0]

    @property
    def delay_share(self) -> float:
        """Mean delay over that of the fixed interval."""
        return self.delay / self.fixed[1]

    def percentile(self, share: float) -> float:
        """Return the delay that a share of the predictions does not exceed, in seconds."""
        return self.delays[min(int(share * len(self.delays)), len(self.delays) - 1)]


def alone(
    policy: WatchPolicy, times: Sequence[float], *, others: int = 0, sessions: int = 1, sigma: float = 0.0
) -> Compared:
    """Watch one prediction at a time: the first of its session, or the one after `others` of the same kind.

    The reads of a prediction do not depend on when it will end. So each session ends with a prediction that runs on,
    and the figures of all `times` follow from its reads.

    Args:
        policy: policy of the sessions.
        times: durations of the prediction.
        others: number of predictions before it, one after the other.
        sessions: number of sessions.
        sigma: sigma of the log-normal durations of the others; their median is that of `times`.
    """
    requests, delays = 0, []
    for seed in range(sessions):
        before = log_normal(others, median(times), sigma, seed=seed)
        service = fleet([*before, 2 * max(times)], apart=3600.0, lists=False)
        run_watch(service, policy)
        last = service.records[-1]
        reads = [at + service.latency - last.created for at, what in service.sent if what == last.id]
        found = [bisect_left(reads, seconds) for seconds in times]
        requests += sum(found) + len(found)
        delays += [reads[read] - seconds for read, seconds in zip(found, times, strict=True)]
    return Compared(requests / len(delays), sorted(delays), fixed(times, 5.0))


async def watch(
    service: Fleet,
    policy: WatchPolicy,
    *,
    provider: Provider | None = None,
    ceiling: float | None = None,
    delivered: Callable[[Record], bool] = lambda _: False,
) -> Figures:
    """Watch all predictions of this process until they have ended.

    Args:
        service: the service with the predictions.
        policy: policy of the watcher.
        provider: provider of the predictions; None uses WaveSpeed.
        ceiling: reads per second; None uses the default of as many slots as there are predictions.
        delivered: predicate that selects the predictions whose end a webhook reports, one second later.
    """
    clock = service.clock
    service.begun = clock.monotonic()
    delays: dict[str, float] = {}
    ours = [record for record in service.records if record.ours]
    done = anyio.Event()
    watcher = Watcher(
        transport=service,  # type: ignore[arg-type]  # only `send` is used
        provider=provider or WaveSpeed(api_key=Secret("wsk_key_of_the_test")),
        clock=clock,
        policy=policy,
        ceiling=default_ceiling(len(ours)) if ceiling is None else ceiling,
        rng=random.Random(3),
        observe=Observers(()),
        forget_after=1e6,
    )

    def ended(record: Record) -> Callable[[Prediction], None]:
        def on_end(last: Prediction) -> None:
            assert last.status.ended, "the watcher reported an end too early"
            delays[record.id] = service.now - record.ends
            if len(delays) == len(ours):
                done.set()

        return on_end

    async def deliver() -> None:
        for record in sorted((record for record in ours if delivered(record)), key=lambda record: record.ends):
            await clock.sleep(max(0.0, record.ends + 1.0 - service.now))
            watcher.handle_webhook(
                provider_.read_prediction(json_response({"code": 200, "data": service.prediction(record)}))
            )

    provider_ = provider or WaveSpeed(api_key=Secret("wsk_key_of_the_test"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        tasks.start_soon(deliver)
        for record in ours:
            await clock.sleep(max(0.0, record.created - service.now))
            created = provider_.read_prediction(json_response({"code": 200, "data": service.prediction(record)}))
            watcher.add(created, on_end=ended(record), job=JOB)
        await done.wait()
        tasks.cancel_scope.cancel()
    pages = sum(isinstance(what, dict) for _, what in service.sent)
    return Figures(
        requests=len(service.sent) / len(ours),
        singles=len(service.sent) - pages,
        pages=pages,
        delays=delays,
        watched=watcher.statistics(),
    )
