"""A `CancelledError` that nobody asked for ends one job or the batch with an error, and never hangs or hides one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from kling_async import HttpRequest, HttpResponse, Job, KlingError, Outcome, Spent, events
from kling_async._core.http import Effect
from kling_async.errors import SubmissionUncertainError
from kling_async.integrations.fastapi import JobService
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


def jobs(count: int) -> list[Job]:
    return [Job(prompt=str(number), image=IMAGE) for number in range(count)]


@contextmanager
def ends() -> Iterator[None]:
    """Fail if the body does not end, or ends by a `CancelledError`, which would pass for a test that was cancelled."""
    try:
        with anyio.fail_after(100_000):
            yield
    except asyncio.CancelledError:
        pytest.fail("the test was cancelled")


async def outcomes(service: Service, given: Any = None, **options: Any) -> list[Outcome]:
    """Run a batch to its end."""
    with ends():
        async with open_session(service, **options) as kling, kling.batch(given or jobs(5)) as batch:
            return [outcome async for outcome in batch]


def stray_once(service: Service, *, paid: bool) -> None:
    """Let the transport cancel itself in the second request of a kind."""
    count = 0

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        nonlocal count
        if (request.effect is Effect.PAID) == paid:
            count += 1
            if count == 2:
                raise asyncio.CancelledError
        return None

    service.script = script


async def test_transport_that_cancels_a_read_ends_no_job() -> None:
    service = Service()
    stray_once(service, paid=False)
    assert [outcome.error for outcome in await outcomes(service)] == [None] * 5


@pytest.mark.promise(1)
async def test_transport_that_cancels_a_submit_leaves_that_job_in_doubt() -> None:
    service = Service()
    stray_once(service, paid=True)
    ended = await outcomes(service, on_uncertain="hold")
    assert [type(outcome.error) for outcome in ended if outcome.error] == [SubmissionUncertainError]
    assert len(ended) == 5


async def test_every_reader_survives_transports_that_cancel_reads() -> None:
    """As many times as there are readers: a reader that ends silently is missed only when it was the last."""
    service = Service(seconds=20)
    strays = 0

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        nonlocal strays
        if request.effect is Effect.READ and strays < 100:
            strays += 1
            raise asyncio.CancelledError
        return None

    service.script = script
    ended = await outcomes(service, jobs(30))
    assert [outcome.error for outcome in ended] == [None] * 30


class Limiter:
    """Limiter that cancels its second caller."""

    def __init__(self) -> None:
        self.count = 0

    async def acquire(self) -> None:
        self.count += 1
        await anyio.sleep(0.1)
        if self.count == 2:
            raise asyncio.CancelledError


async def test_limiter_that_cancels_a_job_ends_that_job_unsent() -> None:
    service = Service()
    ended = await outcomes(service, rate_limiter=Limiter(), max_in_flight=1)
    (failed,) = [outcome.error for outcome in ended if outcome.error]
    assert "Limiter.acquire raised CancelledError" in str(failed)
    assert failed.spent is Spent.NO
    assert len(service.paid) == 4


async def test_limiter_that_cancels_a_single_job_raises_an_error() -> None:
    limiter = Limiter()
    limiter.count = 1
    with ends():
        async with open_session(Service(), rate_limiter=limiter) as kling:
            with pytest.raises(KlingError, match="it was not sent"):
                await kling.generate(prompt="x", image=IMAGE)
            assert (await kling.generate(prompt="x", image=IMAGE)).output


class StrayError(BaseException):
    """An exception that is no `Exception`."""


@pytest.mark.parametrize("kind", [asyncio.CancelledError, StrayError, ValueError])
async def test_observer_breaks_nothing(kind: type[BaseException]) -> None:
    seen: list[events.Event] = []

    def observe(event: events.Event) -> None:
        seen.append(event)
        raise kind

    service = Service()
    assert [outcome.error for outcome in await outcomes(service, observers=[observe])] == [None] * 5
    assert {type(event) for event in seen} >= {events.Submitting, events.Accepted, events.Changed, events.Finished}


async def async_input() -> AsyncIterator[Job]:
    for job in jobs(3):
        yield job
    await anyio.sleep(1)
    raise asyncio.CancelledError


def plain_input() -> Iterator[Job]:
    yield from jobs(3)
    raise asyncio.CancelledError


@pytest.mark.parametrize("made", [async_input, plain_input])
async def test_input_that_cancels_itself_ends_the_batch_with_an_error(made: Any) -> None:
    service = Service()
    seen: list[Outcome] = []
    with ends(), pytest.raises(KlingError, match="input of the batch raised CancelledError"):
        async with open_session(service) as kling, kling.batch(made()) as batch:
            async for outcome in batch:
                seen.append(outcome)  # noqa: PERF401 -- the error comes after them
    assert [outcome.error for outcome in seen] == [None] * 3


async def test_stray_cancellation_anywhere_in_a_job_is_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    count = 0
    async with open_session(service) as kling:
        money = kling._engine.money
        reserve = money.reserve

        async def stray(*given: Any) -> Any:
            nonlocal count
            count += 1
            if count == 2:
                raise asyncio.CancelledError
            return await reserve(*given)

        monkeypatch.setattr(money, "reserve", stray)
        with ends():
            async with kling.batch(jobs(4)) as batch:
                ended = [outcome async for outcome in batch]
    (failed,) = [outcome.error for outcome in ended if outcome.error]
    assert "CancelledError" in str(failed)


async def test_cancelled_batch_is_still_cancelled() -> None:
    service = Service(seconds=1000)
    async with open_session(service) as kling:
        with anyio.move_on_after(50) as scope:
            async with kling.batch(jobs(3)) as batch:
                async for _ in batch:
                    pass
        assert scope.cancelled_caught
        assert len(kling.running) == 3


async def test_job_service_survives_stray_cancellations() -> None:
    service = Service()
    stray_once(service, paid=False)

    def observe(_: events.Event) -> None:
        raise asyncio.CancelledError

    made = JobService()
    videos: list[str | None] = []
    with ends():
        async with open_session(service, observers=[observe]) as kling, made.open(kling):
            videos.append((await made.generate(jobs(1)[0])).output)
            limiter = Limiter()
            limiter.count = 1
            kling._engine.gate._limiter = limiter
            with pytest.raises(KlingError, match="nothing was spent"):
                await made.generate(jobs(2)[1])
            videos.append((await made.generate(Job(prompt="z", image=IMAGE))).output)
    # A hung call is cancelled, and the service swallows that when it closes.
    assert [bool(video) for video in videos] == [True, True]
