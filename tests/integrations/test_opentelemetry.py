"""Spans and metrics of runs over the emulator, as the SDK's exporters receive them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kling_async import BudgetExceededError, Job, KlingSession, Level, NoLimit, PredictionFailedError
from kling_async.emulator import Emulator, faults
from kling_async.integrations import names
from kling_async.integrations.opentelemetry import Telemetry
from support.pictures import png

pytestmark = pytest.mark.anyio

PICTURE = png()


@attrs.define
class Backend:
    """OpenTelemetry SDK with exporters in memory, and the observer."""

    spans: InMemorySpanExporter = attrs.field(factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = attrs.field(factory=InMemoryMetricReader)
    tracers: TracerProvider = attrs.field(factory=TracerProvider)
    telemetry: Telemetry = attrs.field(init=False)

    def start(self, **options: Any) -> Telemetry:
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        meters = MeterProvider([self.reader])
        self.telemetry = Telemetry(tracer_provider=self.tracers, meter_provider=meters, **options)
        return self.telemetry

    def named(self, name: str) -> Sequence[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def metric(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def jobs(self) -> dict[str, int]:
        return {point.attributes[names.STATE]: point.value for point in self.metric(names.METRIC_JOBS)}


def session(emulator: Emulator, backend: Backend, **options: Any) -> KlingSession:
    return KlingSession(
        emulator.api_key,
        base_url=emulator.base_url,
        clock=emulator.clock,
        level=Level("test", 1_000_000, 100),
        rate_limiter=NoLimit(),
        observers=[backend.telemetry],
        **options,
    )


def emulated(**options: Any) -> Emulator:
    return Emulator(level="ultra", profile="tiny", speed=100, timing=20.0, downloads=False, **options)


async def test_job_span_is_child_of_caller_with_phases(tmp_path: Path) -> None:
    backend = Backend()
    backend.start()
    async with emulated() as emulator, session(emulator, backend) as kling:
        backend.telemetry.measure(kling)
        emulator.faults.add("submit", faults.Status(429))
        with backend.tracers.get_tracer("app").start_as_current_span("request") as request:
            made = await kling.generate(prompt="A secret wish", image=PICTURE, duration=10)
        await kling.save(made, tmp_path)
        looks = kling._engine.watcher.requests
        assert [point.value for point in backend.metric(names.METRIC_LOOKS)] == [looks]
    (job,) = backend.named(names.SPAN_JOB)
    assert job.parent is not None
    assert job.parent.span_id == request.get_span_context().span_id
    assert job.attributes is not None
    assert job.attributes[names.PREDICTION] == made.id
    assert job.attributes[names.DURATION] == 10
    children = [span for span in backend.spans.get_finished_spans() if span.parent and span.parent == job.context]
    counted = Counter(span.name for span in children)
    assert counted == {
        names.SPAN_UPLOAD: 1,
        names.SPAN_WAITING: 2,
        names.SPAN_SUBMIT: 2,
        names.SPAN_GENERATION: 1,
        names.SPAN_DOWNLOAD: 1,
    }
    (generation,) = backend.named(names.SPAN_GENERATION)
    assert [event.name for event in generation.events][-1] == "completed"
    ordered = [backend.named(name)[0] for name in (names.SPAN_UPLOAD, names.SPAN_WAITING, names.SPAN_SUBMIT)]
    ordered += [generation, *backend.named(names.SPAN_DOWNLOAD)]
    for before, after in pairwise(ordered):
        assert before.start_time is not None
        assert before.end_time is not None
        assert after.start_time is not None
        assert before.start_time <= before.end_time <= after.start_time
    everything = "".join(span.to_json() for span in backend.spans.get_finished_spans())
    assert "secret" not in everything
    assert "http" not in everything
    assert emulator.api_key not in everything
    assert backend.jobs() == {"accepted": 1, "completed": 1}
    assert [point.value for point in backend.metric(names.METRIC_RUNNING)] == [0]
    assert [point.value for point in backend.metric(names.METRIC_SPEND)] == [pytest.approx(0.50)]
    assert [point.count for point in backend.metric(names.METRIC_GENERATION)] == [1]
    assert [point.count for point in backend.metric(names.METRIC_WAITING)] == [2]


async def test_contents_are_recorded_on_request() -> None:
    backend = Backend()
    backend.start(contents=True)
    async with emulated() as emulator, session(emulator, backend) as kling:
        made = await kling.generate(prompt="A wish", image="https://pictures.example/a.png")
    (job,) = backend.named(names.SPAN_JOB)
    assert job.attributes is not None
    assert job.attributes[names.PROMPT] == "A wish"
    assert job.attributes[names.IMAGE] == "https://pictures.example/a.png"
    assert job.attributes[names.OUTPUT] == made.output
    assert not backend.named(names.SPAN_UPLOAD)


async def test_failed_and_unsent_jobs_end_as_errors() -> None:
    backend = Backend()
    backend.start()
    async with emulated() as emulator, session(emulator, backend, budget="0.6") as kling:
        emulator.faults.add("submit", faults.FailTask(code=1200, seconds=1))
        with pytest.raises(PredictionFailedError):
            await kling.generate(prompt="Waves", image=PICTURE)
        await kling.generate(prompt="Wind", image=PICTURE)
        with pytest.raises(BudgetExceededError):
            await kling.generate(prompt="Rain", image=PICTURE, duration=10)
    kinds = [(span.attributes or {}).get(names.ERROR) for span in backend.named(names.SPAN_JOB)]
    assert kinds == ["PredictionFailedError", None, "BudgetExceededError"]
    ok = [span.status.is_ok for span in backend.named(names.SPAN_JOB)]
    assert ok == [False, True, False]
    assert backend.jobs() == {"accepted": 2, "completed": 1, "failed": 1, "refused": 1}
    backend.telemetry.close()
    assert len(backend.named(names.SPAN_JOB)) == 3


@pytest.mark.parametrize("asked", [True, False], ids=["requested again", "only watched"])
async def test_span_of_other_process_links_to_paid_span(tmp_path: Path, *, asked: bool) -> None:
    traces: dict[str, str] = {}
    first, second = Backend(), Backend()
    first.start(traces=traces)
    second.start(traces=traces)
    job = Job(prompt="Waves", image=PICTURE)
    async with emulated() as emulator:
        async with session(emulator, first, ledger=tmp_path / "l.db") as kling:
            made = await kling.submit(job, key="k")
        assert first.named(names.SPAN_JOB) == []
        first.telemetry.close()
        (paid,) = first.named(names.SPAN_JOB)
        assert (paid.attributes or {})[names.LEFT] is True
        assert [point.value for point in first.metric(names.METRIC_RUNNING)] == [0]
        async with session(emulator, second, ledger=tmp_path / "l.db") as kling:
            if asked:
                await kling.generate(job, key="k")
            else:
                await kling.wait(made.id)
            if asked:
                # A job that has ended has a span that ends at once.
                await kling.generate(job, key="k")
    spans = second.named(names.SPAN_JOB)
    assert len(spans) == 1 + asked
    assert paid.context is not None
    assert [link.context.span_id for link in spans[0].links] == [paid.context.span_id]
    assert [link.context.trace_id for link in spans[0].links] == [paid.context.trace_id]
    assert (spans[0].attributes or {})[names.RESUMED] is True
    assert len(second.named(names.SPAN_GENERATION)) == 1
    assert second.jobs() == {"completed": 1}
    assert not second.telemetry._open


async def test_retried_job_has_second_span_with_link() -> None:
    backend = Backend()
    backend.start()
    async with emulated() as emulator, session(emulator, backend, retry_failed=1) as kling:
        emulator.faults.add("submit", faults.FailTask(code=5000, seconds=1))
        await kling.generate(prompt="Waves", image=PICTURE)
    failed, made = backend.named(names.SPAN_JOB)
    assert failed.context is not None
    assert [link.context.span_id for link in made.links] == [failed.context.span_id]
    assert backend.jobs() == {"accepted": 2, "failed": 1, "retried": 1, "completed": 1}


async def test_batch_ends_all_spans_and_downloads_are_children(tmp_path: Path) -> None:
    backend = Backend()
    backend.start()
    jobs = [Job(prompt=f"number {number}", image=PICTURE) for number in range(20)]
    async with emulated() as emulator:
        emulator.faults.add("submit", faults.Status(400), times=2)
        async with (
            session(emulator, backend, max_in_flight=5) as kling,
            kling.batch(jobs, name="spring", save_to=tmp_path) as batch,
        ):
            outcomes = [outcome async for outcome in batch]
    assert Counter(outcome.ok for outcome in outcomes) == {True: 18, False: 2}
    assert not backend.telemetry._open
    spans = {span.context.span_id: span for span in backend.named(names.SPAN_JOB) if span.context}
    assert len(spans) == 20
    downloads = backend.named(names.SPAN_DOWNLOAD)
    assert {span.parent.span_id for span in downloads if span.parent} <= spans.keys()
    assert len(downloads) == 18


async def test_without_sdk_nothing_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    async with emulated() as emulator:
        telemetry = Telemetry()
        with caplog.at_level(logging.DEBUG, logger="kling_async"):
            async with KlingSession(
                emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, observers=[telemetry]
            ) as kling:
                telemetry.measure(kling)
                made = await kling.generate(prompt="A secret wish", image=PICTURE, key="k")
    assert not [record for record in caplog.records if record.exc_info]
    fields = [vars(record) for record in caplog.records if "kling_event" in vars(record)]
    logged = [one["kling_event"] for one in fields]
    assert list(dict.fromkeys(logged)) == ["Submitting", "Accepted", "Changed"]
    assert {one["kling_key"] for one in fields} == {"k"}
    assert fields[1]["kling_prediction"] == made.id
    assert "secret" not in caplog.text
