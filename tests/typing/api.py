"""Types of the public names. Not run: checked by mypy --strict and by pyright.

Each wrong call has the comment that silences its error. Both checkers report a comment that silences
nothing, so each comment proves that the call is refused.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, assert_type

from aiolimiter import AsyncLimiter
from PIL import Image

from kling_async import (
    Batch,
    BatchStatistics,
    Clock,
    GPTProto,
    HttpRequest,
    HttpResponse,
    Job,
    KlingError,
    KlingSession,
    Ledger,
    Level,
    NoLimit,
    Outcome,
    Prediction,
    Price,
    Provider,
    RateLimiter,
    SavedFile,
    StartsPerWindow,
    Status,
    WaveSpeed,
    events,
    read_ledger,
)
from kling_async.blocking import Batch as BlockingBatch
from kling_async.blocking import KlingSession as BlockingSession
from kling_async.integrations.fastapi import JobDesk, Jobs, JobStatus, Session, lifespan
from kling_async.integrations.opentelemetry import Telemetry
from kling_async.ledger import MemoryLedger, Row, SQLiteLedger
from kling_async.limits import ListeningRateLimiter
from kling_async.limits.shared import SharedStartsPerWindow
from kling_async.manifest import Manifest, read_manifest
from kling_async.progress import progress
from kling_async.providers import AccountProvider, UploadProvider
from kling_async.testing import LoopClock, ScriptedTransport, json_response


async def one_video(kling: KlingSession, job: Job, file: BinaryIO) -> None:
    assert_type(await kling.generate(job), Prediction)
    assert_type(await kling.generate(prompt="Waves", image=Path("face.png")), Prediction)
    everything = await kling.generate(
        model="kling-v2.1-pro-start-end-frame",
        prompt="Waves",
        image=b"...",
        end_image=Image.new("RGB", (300, 300)),
        negative_prompt="blur",
        guidance_scale=0.5,
        duration="5",
        sound=False,
        extra={"seed": 1},
        key="a",
        deadline=60,
    )
    assert_type(everything, Prediction)
    assert_type(await kling.submit(prompt="Waves", image=file, duration=10), Prediction)
    assert_type(await kling.wait(everything, deadline=5.0), Prediction)
    assert_type(await kling.wait("p1"), Prediction)
    assert_type(await kling.get("p1"), Prediction)
    assert_type(await kling.save(everything, "out/"), SavedFile)
    assert_type(await kling.save("p1", Path("out") / "a.mp4"), SavedFile)
    assert_type(await kling.upload(bytearray()), str)
    async for change in kling.follow("p1"):
        assert_type(change, Prediction)
        assert_type(change.status, Status)
        assert_type(change.outputs, tuple[str, ...])
        assert_type(change.output, str | None)
    assert_type(kling.running, tuple[Prediction, ...])
    assert_type(kling.left_running, tuple[Prediction, ...])


async def names_and_types_of_fields_are_checked(kling: KlingSession) -> None:
    await kling.generate(promt="Waves", image="https://a.example/face.png")  # type: ignore[call-arg]  # a wrong name
    await kling.generate(prompt=5, image="https://a.example/face.png")  # type: ignore[arg-type]  # a wrong type
    await kling.generate(prompt="Waves", image=5)  # type: ignore[arg-type]  # a wrong type
    await kling.submit(prompt="Waves", image="https://a.example/f.png", seed=1)  # type: ignore[call-arg]  # a wrong name
    await kling.submit(prompt="Waves", image="https://a.example/f.png", duration=5.0)  # type: ignore[arg-type]  # a type
    await kling.generate("Waves")  # type: ignore[arg-type]  # a prompt is given by its name
    await kling.get(5)  # type: ignore[arg-type]  # an id is text
    Job(prompt="Waves", image="https://a.example/face.png", cfg_scale=1)  # type: ignore[call-arg]  # a wrong name
    Job(prompt="Waves", image=None)  # type: ignore[arg-type]  # an image is not None
    Job("Waves")  # type: ignore[call-arg]  # fields are given by their names


async def many_videos(kling: KlingSession, jobs: list[Job], stream: AsyncIterator[tuple[str, Job]]) -> None:
    async with kling.batch(jobs, name="spring", save_to="out/", ordered=True, window=10) as batch:
        assert_type(batch, Batch)
        async for outcome in batch:
            assert_type(outcome, Outcome)
            assert_type(outcome.prediction, Prediction | None)
            assert_type(outcome.saved, SavedFile | None)
            assert_type(outcome.error, KlingError | None)
            assert_type(outcome.cost, Decimal | None)
            assert_type(outcome.unwrap(), Prediction)
            assert_type(outcome.ok, bool)
        assert_type(batch.statistics(), BatchStatistics)
        assert_type(batch.failures, deque[Outcome])
        assert_type(batch.stopped, KlingError | None)
    async with kling.batch(stream) as batch:
        async for prediction in batch.completed():
            assert_type(prediction, Prediction)
    kling.batch({"a": jobs[0]})
    kling.batch((str(number), job) for number, job in enumerate(jobs))
    kling.batch(read_manifest("jobs.jsonl"))
    assert_type(read_manifest("jobs.jsonl"), Manifest)
    kling.batch(["https://a.example/face.png"])  # type: ignore[list-item]  # jobs, not images
    kling.batch(jobs[0])  # type: ignore[arg-type]  # many of them


async def a_session(kling: KlingSession, own: Provider) -> None:
    async with KlingSession("key") as entered:
        assert_type(entered, KlingSession)
    assert_type(kling.with_options(deadline=5.0, model="kling-v2.1-pro"), KlingSession)
    KlingSession(provider=own, level=Level("ours", 10, 20), ledger=Path("paid.jsonl"), images="inline")
    KlingSession(provider=WaveSpeed(api_key="key"), rate_limiter=AsyncLimiter(2, 60))
    KlingSession(provider=GPTProto(api_key="key", auth_scheme="bearer"), clock=LoopClock())
    KlingSession(transport=ScriptedTransport(lambda _: json_response({})), observers=[observe])
    KlingSession(images="urls")  # type: ignore[arg-type]  # a wrong word
    KlingSession(rate_limiter=5)  # type: ignore[arg-type]  # no limiter
    KlingSession("key", "wavespeed")  # type: ignore[call-arg]  # all but the key is given by name
    GPTProto(api_key="key", auth_scheme="basic")  # type: ignore[arg-type]  # a wrong word


class Subclass(KlingSession):
    """Subclass whose type is kept by `async with`."""


async def a_subclass(kling: Subclass) -> None:
    async with kling as entered:
        assert_type(entered, Subclass)


def protocols_are_satisfied_as_they_are(clock: LoopClock) -> None:
    shared = SharedStartsPerWindow("redis://localhost", 2)
    limiters: list[RateLimiter] = [AsyncLimiter(2, 60), StartsPerWindow(2), NoLimit(), shared]
    listening: list[ListeningRateLimiter] = [StartsPerWindow(2), shared]
    ledgers: list[Ledger] = [MemoryLedger(), SQLiteLedger("paid.jsonl")]
    providers: list[Provider] = [WaveSpeed(api_key="key"), GPTProto(api_key="key")]
    accounts: list[AccountProvider] = [WaveSpeed(api_key="key")]
    uploads: list[UploadProvider] = [WaveSpeed(api_key="key")]
    accounts.append(GPTProto(api_key="key"))  # type: ignore[arg-type]  # it has no account endpoints
    clocks: list[Clock] = [clock]
    for each in (limiters, listening, ledgers, providers, accounts, uploads, clocks):
        assert each


async def in_a_web_application(kling: Session, jobs: Jobs, job: Job) -> None:
    assert_type((await kling.generate(job)).id, str)
    assert_type(await jobs.submit(job), JobStatus)
    assert_type((await jobs.generate(job)).output, str | None)
    lifespan(lambda: KlingSession(observers=[Telemetry()]), desk=lambda: JobDesk(queue=5))


def observe(event: events.Event) -> None:
    match event:
        case events.Accepted(prediction=prediction):
            assert_type(prediction, Prediction)
        case events.Finished(outcome=outcome):
            assert_type(outcome, Outcome)
        case _:
            assert_type(event.key, str)


def values(job: Job, request: HttpRequest, script: Callable[[HttpRequest], HttpResponse]) -> None:
    assert_type(job.price(), Price)
    assert_type(job.price().usd, Decimal | None)
    assert_type(job.duration, int)
    assert_type(script(request).status, int)
    for row in read_ledger("run.db"):
        assert_type(row, Row)
    job.duration = 10  # type: ignore[misc]  # it is frozen


def blocking(kling: BlockingSession, path: Path) -> None:
    with kling as entered:
        assert_type(entered, BlockingSession)
    assert_type(kling.generate(prompt="x", image=path, key="k", deadline=1.0), Prediction)
    assert_type(kling.generate(Job(prompt="x", image="u")), Prediction)
    kling.generate(prompt="x", image=path, duraton=5)  # type: ignore[call-arg]  # no such field
    kling.generate(prompt=5, image=path)  # type: ignore[arg-type]  # a prompt is text
    assert_type(kling.save("id", path), SavedFile)
    assert_type(kling.follow("id"), Iterator[Prediction])
    assert_type(kling.balance(), Decimal)
    assert_type(kling.with_options(deadline=5.0), BlockingSession)
    assert_type(kling.batch([Job(prompt="x", image="u")], save_to=path), BlockingBatch)
    with kling.batch({"a": Job(prompt="x", image="u")}) as batch:
        assert_type(batch, BlockingBatch)
        for outcome in batch:
            assert_type(outcome, Outcome)
        assert_type(batch.completed(), Iterator[Prediction])
        assert_type(batch.statistics(), BatchStatistics)
        assert_type(batch.stopped, KlingError | None)
    BlockingSession(grade="gold")  # type: ignore[call-arg]  # no such option
    BlockingSession(client_session=None)  # type: ignore[call-arg]  # left out


async def shown(batch: Batch, other: BlockingBatch) -> None:
    assert_type(progress(batch), AsyncIterator[Outcome])
    assert_type(progress(other, total=3), Iterator[Outcome])
    assert_type(batch.total, int | None)
