"""Cleanup of ended waits in the watcher, and responses that arrive after a prediction's end."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import anyio
import pytest

from kling_async import (
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    Prediction,
    PredictionError,
    PredictionTimeoutError,
    SessionClosedError,
    Status,
    WatchPolicy,
)
from kling_async._core.secret import Secret
from kling_async._observers import Observers
from kling_async._watching.watcher import MAX_RECENT_ENDS, Watcher
from kling_async.providers import WaveSpeed
from kling_async.testing import LoopClock, ScriptedTransport, json_response

pytestmark = pytest.mark.anyio


def watcher(reply: Callable[[HttpRequest], object], interval: float = 10.0) -> tuple[Watcher, ScriptedTransport]:
    transport = ScriptedTransport(reply)  # type: ignore[arg-type]  # a response, or what awaits one
    made = Watcher(
        transport=transport,
        provider=WaveSpeed(api_key=Secret("wsk_key_of_the_test")),
        clock=LoopClock(),
        policy=WatchPolicy.fixed(interval),
        ceiling=100.0,
        rng=random.Random(3),
        observe=Observers(()),
        forget_after=1e9,
    )
    return made, transport


def prediction(id_: str, status: str = "processing") -> Prediction:
    return Prediction(id=id_, model="m", status=Status(status), raw_status=status)


def processing(request: HttpRequest) -> HttpResponse:
    name = request.url.rsplit("/", 2)[-2]
    return json_response({"code": 200, "data": {"id": name, "status": "processing", "outputs": []}})


# ---- deadlines ----


async def cancelled_waits(made: Watcher, count: int, seed: int = 1) -> None:
    """Wait `count` times for a prediction with deadlines far away, and give up at once."""
    rng = random.Random(seed)
    for _ in range(count):
        task = asyncio.create_task(made.wait(prediction("p"), deadline=rng.uniform(50_000, 90_000)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])


async def test_deadlines_of_ended_waits_are_not_kept() -> None:
    made, _ = watcher(processing)
    await cancelled_waits(made, 5000)
    assert len(made._deadlines._heap) <= 1024
    assert made.statistics().waiting == 0


async def test_deadlines_of_waits_that_go_on_survive_compaction_in_their_order() -> None:
    """They are few among thousands, each at a time of its own, and pushed before and between compactions."""
    made, _ = watcher(processing)
    clock = LoopClock()
    rng = random.Random(5)
    ended: list[tuple[float, float]] = []

    async def wait(deadline: float) -> None:
        due = clock.monotonic() + deadline
        with pytest.raises(PredictionTimeoutError):
            await made.wait(prediction("p"), deadline=deadline)
        ended.append((due, clock.monotonic()))

    async with anyio.create_task_group() as tasks:
        running = asyncio.create_task(made.run())
        for _ in range(6):
            for _ in range(20):
                tasks.start_soon(wait, rng.uniform(100, 4000))
            await asyncio.sleep(0)
            await cancelled_waits(made, 600)
    assert len(ended) == 120
    assert all(abs(at - due) < 0.01 for due, at in ended), "late, or early"
    running.cancel()


async def test_compaction_is_rarer_the_more_waits_go_on() -> None:
    """Compaction scans all deadlines, so a fixed threshold would scan them for every long wait."""
    made, _ = watcher(processing)
    tasks = [asyncio.create_task(made.wait(prediction("p"), deadline=90_000)) for _ in range(3000)]
    await asyncio.sleep(0)
    assert made._deadlines.compact_at > len(made._deadlines._heap)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# ---- replies after the end ----


def dropped() -> HttpResponse:
    raise ConnectionLostError("dropped")


LATE: dict[str, Callable[[], HttpResponse]] = {
    "server error": lambda: json_response({"code": 503, "message": "busy"}, status=503),
    "rate limit": lambda: json_response({"code": 429, "message": "slow"}, status=429),
    "dropped": dropped,
    "not found": lambda: json_response({"code": 404, "message": "not found"}, status=404),
    "refused": lambda: json_response({"code": 400, "message": "no"}, status=400),
    "still processing": lambda: json_response(
        {"code": 200, "data": {"id": "p", "status": "processing", "outputs": []}}
    ),
    "failed": lambda: json_response({"code": 200, "data": {"id": "p", "status": "failed", "error": "late"}}),
    "deleted": lambda: json_response({"code": 200, "data": {"id": "p", "status": "deleted", "outputs": []}}),
    "spelled otherwise": lambda: json_response(
        {"code": 200, "data": {"id": "p", "status": "Completed", "outputs": ["https://o.example/2.mp4"]}}
    ),
    "completed again": lambda: json_response(
        {"code": 200, "data": {"id": "p", "status": "completed", "outputs": ["https://o.example/2.mp4"]}}
    ),
}


@pytest.mark.promise(6)
@pytest.mark.parametrize("late", LATE)
async def test_reply_after_the_end_changes_nothing(late: str) -> None:
    """A webhook reports the end while a read is on its way; another prediction is watched on."""
    reads: list[str] = []
    ends: list[Prediction] = []

    async def reply(request: HttpRequest) -> HttpResponse:
        name = request.url.rsplit("/", 2)[-2]
        reads.append(name)
        if name == "p":
            await anyio.sleep(5)
            return LATE[late]()
        ended = reads.count("other") > 20
        outputs = ["https://o.example/other.mp4"] if ended else []
        status = "completed" if ended else "processing"
        return json_response({"code": 200, "data": {"id": "other", "status": status, "outputs": outputs}})

    made, _ = watcher(reply)
    running = asyncio.create_task(made.run())
    made.add(prediction("p"), on_end=ends.append)
    made.add(prediction("other"))
    waits = [asyncio.create_task(made.wait(prediction(name), deadline=10_000)) for name in ("p", "other")]
    while "p" not in reads:  # noqa: ASYNC110 -- nothing signals it
        await anyio.sleep(0.1)
    done = Prediction(
        id="p", model="m", status=Status.COMPLETED, raw_status="completed", outputs=("https://o.example/p.mp4",)
    )
    assert made.handle_webhook(done)
    assert (await waits[0]).output == "https://o.example/p.mp4"
    assert (await waits[1]).output == "https://o.example/other.mp4"
    assert reads.count("p") == 1, "read again after its end"
    assert [each.output for each in ends] == ["https://o.example/p.mp4"]
    assert (await made.wait(prediction("p"), deadline=1)).output == "https://o.example/p.mp4"
    assert not running.done()
    running.cancel()


@pytest.mark.promise(6)
@pytest.mark.parametrize("trouble", ["server error", "rate limit", "dropped"])
async def test_passing_trouble_of_reads_fails_no_wait(trouble: str) -> None:
    reads = 0

    def reply(_: HttpRequest) -> HttpResponse:
        nonlocal reads
        reads += 1
        return LATE[trouble]() if reads < 8 else LATE["completed again"]()

    made, _ = watcher(reply)
    running = asyncio.create_task(made.run())
    assert (await made.wait(prediction("p"), deadline=10_000)).output
    assert made.statistics().watched == 0
    running.cancel()


@pytest.mark.parametrize(("lag", "gone"), [(59.0, False), (10_000.0, True)])
@pytest.mark.parametrize("interval", [1.0, 10.0])
async def test_prediction_is_taken_for_deleted_after_a_minute_of_not_found(
    lag: float, interval: float, *, gone: bool
) -> None:
    """However close to one another the reads are: a lag of half a minute after a submit loses no job."""
    clock = LoopClock()
    times: list[float] = []

    def reply(_: HttpRequest) -> HttpResponse:
        times.append(clock.monotonic())
        return LATE["not found"]() if times[-1] - times[0] < lag else LATE["completed again"]()

    made, _ = watcher(reply, interval)
    running = asyncio.create_task(made.run())
    wait = asyncio.create_task(made.wait(prediction("p"), deadline=10_000))
    await asyncio.wait([wait])
    error = wait.exception()
    assert (error is not None) == gone
    if gone:
        assert 60 <= times[-1] - times[0] <= 240
        assert f"answers within {times[-1] - times[0]:.0f} s: {len(times)} x HTTP 404" in str(error)
    running.cancel()


async def test_not_found_replies_count_only_in_a_row() -> None:
    reads = 0

    def reply(request: HttpRequest) -> HttpResponse:
        nonlocal reads
        reads += 1
        if reads == 12:
            return LATE["completed again"]()
        return processing(request) if reads % 4 == 0 else LATE["not found"]()

    made, _ = watcher(reply)
    running = asyncio.create_task(made.run())
    assert (await made.wait(prediction("p"), deadline=10_000)).output
    assert reads == 12
    running.cancel()


async def test_reads_that_fail_are_apart() -> None:
    times: list[float] = []
    clock = LoopClock()

    def reply(_: HttpRequest) -> HttpResponse:
        times.append(clock.monotonic())
        return LATE["server error"]() if len(times) < 6 else LATE["completed again"]()

    made, _ = watcher(reply)
    running = asyncio.create_task(made.run())
    assert (await made.wait(prediction("p"), deadline=10_000)).output
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # From 5 s, doubled up to 60 s, and three tenths to either side; no sooner than the policy's interval.
    assert all(gap >= max(10, 0.69 * pause) for gap, pause in zip(gaps, (5, 10, 20, 40, 60), strict=True))
    running.cancel()


async def test_latest_ends_are_kept_for_later_callers() -> None:
    """A webhook may be faster than the reply to a submit; of ends without a caller the oldest are forgotten first."""
    made, transport = watcher(processing)
    for number in range(MAX_RECENT_ENDS + 1):
        assert not made.handle_webhook(prediction(str(number), "completed"))
    newest = await made.wait(prediction(str(MAX_RECENT_ENDS)), deadline=1)
    assert newest.status is Status.COMPLETED
    assert not transport.requests
    assert made.seen("0") is None
    with pytest.raises(PredictionTimeoutError):
        async with asyncio.timeout(100):
            running = asyncio.create_task(made.run())
            await made.wait(prediction("0"), deadline=20)
    running.cancel()


async def test_prediction_whose_age_is_impossible_is_watched_from_now() -> None:
    """The service's clock and ours differ: a time in the future, or longer ago than anything is watched."""
    reads: list[float] = []
    clock = LoopClock()

    def reply(request: HttpRequest) -> HttpResponse:
        reads.append(clock.monotonic())
        return LATE["completed again"]()

    for offset in (-1e6, 1e12):
        made, _ = watcher(reply)
        running = asyncio.create_task(made.run())
        made.add(prediction("p"), submitted_at=clock.now() + offset)
        began = clock.monotonic()
        assert (await made.wait(prediction("p"), deadline=10_000)).output
        assert clock.monotonic() - began < 100
        running.cancel()


async def test_closed_watcher_watches_nothing_more() -> None:
    made, transport = watcher(processing)
    running = asyncio.create_task(made.run())
    made.add(prediction("p"))
    wait = asyncio.create_task(made.wait(prediction("p"), deadline=1000))
    await asyncio.sleep(0)
    assert [each.id for each in made.close()] == ["p"]
    with pytest.raises(PredictionError, match="session closed"):
        await wait
    ends: list[Prediction] = []
    made.add(prediction("q"), on_end=ends.append)
    assert [each.id for each in ends] == ["q"], "its slot would be held for ever"
    with pytest.raises(SessionClosedError):
        await made.wait(prediction("q"), deadline=1000)
    assert made.running == ()
    requests = len(transport.requests)
    await anyio.sleep(1000)
    assert len(transport.requests) == requests
    running.cancel()
