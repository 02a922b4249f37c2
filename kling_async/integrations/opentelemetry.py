"""Traces and metrics through OpenTelemetry's API; without a configured SDK, nothing is recorded.

::

    telemetry = Telemetry()
    async with KlingSession(observers=[telemetry]) as kling:
        telemetry.measure(kling)
        ...
    telemetry.close()

Each job has one span, a child of its caller's current span, with children for upload, waiting, submit, generation and
download. It ends with the prediction, whether or not the caller still waits. A job that continues in another process,
or is paid for again, has a second span with a link to the first. Names are in `kling_async.integrations.names`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from kling_async import events
from kling_async._session.session import requests_of
from kling_async.errors import KlingError, SessionClosedError, SubmissionUncertainError

from . import names

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, StatusCode, TraceFlags
except ImportError as error:
    raise ImportError("OpenTelemetry is not installed: pip install 'kling-async[otel]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kling_async import KlingSession
    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction

__all__ = ["Telemetry", "Traces"]

Traces: TypeAlias = MutableMapping[str, str]
"""Spans of paid jobs: prediction id to `traceparent` (W3C Trace Context)."""

_MAX_ENDED_SPANS = 10_000
"""Contexts of ended spans that are kept as parents and link targets."""
_JobName: TypeAlias = tuple[str, str]
"""Batch and key of a job."""


@attrs.define(eq=False)
class _OpenJob:
    """Job whose span has not ended. Times are seconds since the epoch.

    Attributes:
        span: Span of the job.
        model: Model id, for the metrics.
        ready_at: Time since which it waits to be sent.
        uploads: Whether images have to be uploaded.
        submit: Span of the paid request; None outside of one.
        generation: Span of the prediction; None before acceptance.
        accepted_at: Time of acceptance in this process; 0 without one.
        ended: Whether an earlier process saw the prediction end.
    """

    span: Span
    model: str
    ready_at: float
    uploads: bool = False
    submit: Span | None = None
    generation: Span | None = None
    accepted_at: float = 0.0
    ended: bool = False


class Telemetry:
    """Observer for `KlingSession(observers=[...])` that records events as spans and metrics.

    Prompts are users' texts and URLs may grant access, so both are recorded on request only. Of errors, the type is
    recorded.

    Args:
        contents: Whether prompts and the URLs of images and outputs become attributes.
        traces: Mapping that keeps the spans of paid jobs for later processes, such as `shelve.open("run.traces")`;
            without one, links stay within this process.
        provider: Name of the provider whose price list gives the spend.
        tracer_provider: Tracer provider; by default the global one.
        meter_provider: Meter provider; by default the global one.
    """

    def __init__(
        self,
        *,
        contents: bool = False,
        traces: Traces | None = None,
        provider: str = "wavespeed",
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._contents = contents
        self._traces = traces
        self._provider = provider
        self._tracer = trace.get_tracer(names.SCOPE, tracer_provider=tracer_provider)
        self._meter = metrics.get_meter(names.SCOPE, meter_provider=meter_provider)
        self._jobs = self._meter.create_counter(names.METRIC_JOBS, "{job}", "Jobs by state")
        self._running = self._meter.create_up_down_counter(names.METRIC_RUNNING, "{job}", "Running predictions")
        self._waiting = self._meter.create_histogram(names.METRIC_WAITING, "s", "Time from ready to paid request")
        self._generation = self._meter.create_histogram(names.METRIC_GENERATION, "s", "Time from acceptance to end")
        self._spend = self._meter.create_counter(names.METRIC_SPEND, "USD", "Price of accepted jobs, by the price list")
        self._open: dict[_JobName, _OpenJob] = {}
        # Ended spans by job and by prediction: parents of downloads, and targets of links.
        self._ended: OrderedDict[_JobName | str, SpanContext] = OrderedDict()
        # Span of the failed prediction, by the job that is about to be paid for again.
        self._retried: dict[_JobName, SpanContext] = {}

    def measure(self, kling: KlingSession) -> None:
        """Observe the number of polling requests of an open session."""

        def requests(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            try:
                yield metrics.Observation(requests_of(kling))
            except SessionClosedError:
                return

        self._meter.create_observable_counter(names.METRIC_LOOKS, [requests], "{request}", "Polling requests")

    def close(self) -> None:
        """End the spans of jobs that still run, marked with `kling.left`. Call it after the session is closed."""
        for name, job in list(self._open.items()):
            job.span.set_attribute(names.LEFT, value=True)
            if job.accepted_at:
                self._running.add(-1, {names.MODEL: job.model})
            self._end(name, job, None)

    def __call__(self, event: events.Event) -> None:
        """Record an event."""
        name = (event.batch, event.key)
        job = self._open.get(name)
        match event:
            case events.Admitted(job=definition):
                self._start_job(name, definition, event.at)
            case events.Begun():
                self._record_begun(name, job, event)
            case events.Changed(prediction=prediction) if event.key:
                self._record_changed(name, job, prediction, event.at)
            case events.Retrying(prediction=prediction):
                self._count("retried", event.job.model)
                if (earlier := self._ended.get(prediction.id)) is not None:
                    self._retried[name] = earlier
            case events.Saved():
                self._record_saved(name, event)
            case _ if job is not None:
                self._record_progress(name, job, event)
            case _:
                pass

    def _record_progress(self, name: _JobName, job: _OpenJob, event: events.Event) -> None:
        match event:
            case events.Uploaded(since=since):
                if job.uploads:
                    self._child(job, names.SPAN_UPLOAD, since).end(_ns(event.at))
                job.ready_at = event.at
            case events.Submitting(attempt=attempt):
                self._child(job, names.SPAN_WAITING, job.ready_at).end(_ns(event.at))
                self._waiting.record(max(0.0, event.at - job.ready_at), {names.MODEL: job.model})
                job.submit = self._child(job, names.SPAN_SUBMIT, event.at, {names.ATTEMPT: attempt})
            case events.Accepted(prediction=prediction, job=definition):
                self._record_accepted(job, definition, prediction, event.at)
            case events.Refused(error=error) | events.Uncertain(error=error):
                self._end_submit(job, event.at, error)
                job.ready_at = event.at
            case events.Left(error=error):
                if error is not None:
                    self._count("uncertain" if isinstance(error, SubmissionUncertainError) else "refused", job.model)
                if error is not None or job.ended or not (job.accepted_at or job.generation):
                    self._end(name, job, event.at, error)
            case events.Finished(outcome=outcome) if not job.accepted_at:
                self._end(name, job, event.at, outcome.error)
            case _:
                pass

    def _start_job(
        self,
        name: _JobName,
        definition: Job | None,
        at: float,
        *,
        model: str = "",
        link: SpanContext | None = None,
        root: bool = False,
    ) -> _OpenJob:
        batch, key = name
        attributes: dict[str, str | int] = {names.KEY: key}
        if batch:
            attributes[names.BATCH] = batch
        if definition is not None:
            model = definition.model
            attributes[names.DURATION] = definition.duration
            if self._contents:
                attributes[names.PROMPT] = definition.prompt
                if isinstance(definition.image, str):
                    attributes[names.IMAGE] = definition.image
        attributes[names.MODEL] = model
        span = self._tracer.start_span(
            names.SPAN_JOB,
            context=Context() if root else None,
            attributes=attributes,
            links=[] if link is None else [Link(link)],
            start_time=_ns(at),
        )
        uploads = definition is not None and any(not isinstance(file, str) for file in definition.files.values())
        job = self._open[name] = _OpenJob(span, model, at, uploads)
        return job

    def _record_begun(self, name: _JobName, job: _OpenJob | None, event: events.Begun) -> None:
        link = self._retried.pop(name, None)
        if event.known is not None:
            link = self._paid_span(event.known)
        if job is None:
            job = self._start_job(name, event.job, event.at, link=link)
        elif link is not None:
            job.span.add_link(link)
        if event.known is not None:
            job.span.set_attributes({names.PREDICTION: event.known, names.RESUMED: True})
            job.ended = event.ended
            if not event.ended and job.generation is None:
                job.generation = self._child(job, names.SPAN_GENERATION, event.at)
        job.ready_at = event.at

    def _record_accepted(self, job: _OpenJob, definition: Job, prediction: Prediction, at: float) -> None:
        self._end_submit(job, at, None)
        job.span.set_attribute(names.PREDICTION, prediction.id)
        job.generation = self._child(job, names.SPAN_GENERATION, at)
        job.accepted_at = at
        self._keep_paid_span(prediction.id, job.span.get_span_context())
        self._count("accepted", job.model)
        self._running.add(1, {names.MODEL: job.model})
        usd = definition.price(self._provider).usd
        if usd is not None:
            self._spend.add(float(usd), {names.MODEL: job.model})

    def _record_changed(self, name: _JobName, job: _OpenJob | None, prediction: Prediction, at: float) -> None:
        if job is None:
            # Submitted by an earlier process and only watched here.
            link = self._paid_span(prediction.id)
            job = self._start_job(name, None, at, model=prediction.model, link=link, root=True)
            job.span.set_attributes({names.PREDICTION: prediction.id, names.RESUMED: True})
        if job.generation is None:
            job.generation = self._child(job, names.SPAN_GENERATION, at)
        job.generation.add_event(prediction.raw_status, timestamp=_ns(at))
        if not prediction.status.ended:
            return
        error = prediction.failure()
        self._count("completed" if error is None else "failed", job.model)
        if prediction.code is not None:
            job.span.set_attribute(names.CODE, prediction.code)
        if self._contents and prediction.output is not None:
            job.span.set_attribute(names.OUTPUT, prediction.output)
        if job.accepted_at:
            self._running.add(-1, {names.MODEL: job.model})
            self._generation.record(max(0.0, at - job.accepted_at), {names.MODEL: job.model})
        job.span.set_attribute(names.STATUS, prediction.raw_status)
        self._keep_paid_span(prediction.id, job.span.get_span_context())
        self._end(name, job, at, error)

    def _record_saved(self, name: _JobName, event: events.Saved) -> None:
        job = self._open.get(name)
        parent = job.span.get_span_context() if job is not None else self._ended.get(name)
        context = None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
        span = self._tracer.start_span(
            names.SPAN_DOWNLOAD,
            context=context,
            attributes={names.KEY: event.key, names.BYTES: event.file.bytes},
            start_time=_ns(event.at if event.since is None else event.since),
        )
        span.end(_ns(event.at))

    def _end_submit(self, job: _OpenJob, at: float, error: KlingError | None) -> None:
        if job.submit is not None:
            _close(job.submit, at, error)
            job.submit = None

    def _end(self, name: _JobName, job: _OpenJob, at: float | None, error: KlingError | None = None) -> None:
        for child in (job.submit, job.generation):
            if child is not None:
                _close(child, at, error)
        _close(job.span, at, error)
        del self._open[name]
        self._keep_ended(name, job.span.get_span_context())

    def _child(self, job: _OpenJob, name: str, at: float, attributes: dict[str, Any] | None = None) -> Span:
        context = trace.set_span_in_context(job.span)
        return self._tracer.start_span(name, context=context, attributes=attributes, start_time=_ns(at))

    def _count(self, state: str, model: str) -> None:
        self._jobs.add(1, {names.STATE: state, names.MODEL: model})

    def _keep_paid_span(self, prediction_id: str, context: SpanContext) -> None:
        self._keep_ended(prediction_id, context)
        if self._traces is not None and context.is_valid and prediction_id not in self._traces:
            self._traces[prediction_id] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def _keep_ended(self, name: _JobName | str, context: SpanContext) -> None:
        self._ended[name] = context
        if len(self._ended) > _MAX_ENDED_SPANS:
            self._ended.popitem(last=False)

    def _paid_span(self, prediction_id: str) -> SpanContext | None:
        """Return the span in which the prediction was paid for, if it is known."""
        known = self._ended.get(prediction_id)
        if known is not None or self._traces is None:
            return known
        try:
            _, trace_id, span_id, flags = self._traces[prediction_id].split("-")
            return SpanContext(
                int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
            )
        except (KeyError, ValueError):
            return None


def _close(span: Span, at: float | None, error: KlingError | None) -> None:
    if error is not None:
        span.set_attribute(names.ERROR, type(error).__name__)
        span.set_status(StatusCode.ERROR)
    span.end(None if at is None else _ns(at))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
