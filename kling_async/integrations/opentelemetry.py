"""Traces and metrics, by OpenTelemetry's API alone: without an SDK that is set up, nothing is recorded.

::

    telemetry = Telemetry()
    async with KlingSession(observers=[telemetry]) as kling:
        telemetry.measure(kling)
        ...
    telemetry.close()

One span for each job, a child of whatever span its caller is in, with children for upload, waiting, submit, generation
and download. It lasts until the prediction ends, whoever waits; what goes on in another process, or is paid for again,
has another span with a link to the earlier one. Names are in `kling_async.integrations.names`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from kling_async import events
from kling_async._session.session import engine_of
from kling_async.errors import KlingError, SessionClosedError, SubmissionUncertainError

from . import names

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, StatusCode, TraceFlags
except ImportError as error:
    raise ImportError("OpenTelemetry is not there: pip install 'kling-async[otel]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kling_async import KlingSession
    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction

__all__ = ["Telemetry", "Traces"]

Traces: TypeAlias = MutableMapping[str, str]
"""Where the spans of paid jobs are remembered: prediction ids to `traceparent` (W3C Trace Context)."""

_REMEMBERED = 10_000
_Name: TypeAlias = tuple[str, str]


@attrs.define(eq=False)
class _Open:
    """A job whose span has not ended.

    Attributes:
        span: Its span.
        model: For the metrics.
        ready: Since when it waits.
        pictures: Whether images have to be uploaded.
        submit: The span of its paid request.
        generation: The span of its prediction.
        accepted: When it was.
        ended: Whether the prediction that is known of it has ended.
    """

    span: Span
    model: str
    ready: float
    pictures: bool = False
    submit: Span | None = None
    generation: Span | None = None
    accepted: float = 0.0
    ended: bool = False


class Telemetry:
    """An observer for `KlingSession(observers=[...])`: what happens, as spans and metrics.

    Prompts and URLs are what users say, and grant access: they are written down on request only. Errors are told by
    their kinds.

    Args:
        contents: Whether prompts, and URLs of images and outputs, become attributes.
        traces: Remembers the spans of paid jobs for later processes, such as `shelve.open("run.traces")`; without one,
            links lead no further than this process.
        provider: Whose list prices make the spend.
        tracer_provider: Instead of the global one.
        meter_provider: Instead of the global one.
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
        self._jobs = self._meter.create_counter(names.METRIC_JOBS, "{job}", "What became of jobs")
        self._running = self._meter.create_up_down_counter(names.METRIC_RUNNING, "{job}", "Predictions that run")
        self._waiting = self._meter.create_histogram(names.METRIC_WAITING, "s", "Ready until the paid request")
        self._generation = self._meter.create_histogram(names.METRIC_GENERATION, "s", "Acceptance until the end")
        self._spend = self._meter.create_counter(names.METRIC_SPEND, "USD", "What was accepted, by the price list")
        self._open: dict[_Name, _Open] = {}
        # Spans that have ended: the downloads are their children, and what comes later links to them.
        self._past: OrderedDict[_Name | str, SpanContext] = OrderedDict()
        self._again: dict[_Name, SpanContext] = {}

    def measure(self, kling: KlingSession) -> None:
        """Count the requests by which an open session finds out what has ended."""

        def looks(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            try:
                yield metrics.Observation(engine_of(kling).watcher.requests)
            except SessionClosedError:
                return

        self._meter.create_observable_counter(names.METRIC_LOOKS, [looks], "{request}", "Requests about ends")

    def close(self) -> None:
        """End the spans of jobs that have not ended; they say so. For when the session has closed."""
        for name, job in list(self._open.items()):
            job.span.set_attribute(names.LEFT, value=True)
            if job.accepted:
                self._running.add(-1, {names.MODEL: job.model})
            self._end(name, job, None)

    def __call__(self, event: events.Event) -> None:
        """Take an event."""
        name = (event.batch, event.key)
        job = self._open.get(name)
        match event:
            case events.Admitted(job=asked):
                self._begin(name, asked, event.at)
            case events.Begun():
                self._begun(name, job, event)
            case events.Changed(prediction=prediction) if event.key:
                self._changed(name, job, prediction, event.at)
            case events.Retrying(prediction=prediction):
                self._count("retried", event.job.model)
                if (earlier := self._past.get(prediction.id)) is not None:
                    self._again[name] = earlier
            case events.Saved():
                self._saved(name, event)
            case _ if job is not None:
                self._on_its_way(name, job, event)
            case _:
                pass

    def _on_its_way(self, name: _Name, job: _Open, event: events.Event) -> None:
        match event:
            case events.Uploaded(since=since):
                if job.pictures:
                    self._child(job, names.SPAN_UPLOAD, since).end(_ns(event.at))
                job.ready = event.at
            case events.Submitting(attempt=attempt):
                self._child(job, names.SPAN_WAITING, job.ready).end(_ns(event.at))
                self._waiting.record(max(0.0, event.at - job.ready), {names.MODEL: job.model})
                job.submit = self._child(job, names.SPAN_SUBMIT, event.at, {names.ATTEMPT: attempt})
            case events.Accepted(prediction=prediction, job=asked):
                self._accepted(job, asked, prediction, event.at)
            case events.Refused(error=error) | events.Uncertain(error=error):
                self._answered(job, event.at, error)
                job.ready = event.at
            case events.Left(error=error):
                if error is not None:
                    self._count("uncertain" if isinstance(error, SubmissionUncertainError) else "refused", job.model)
                if error is not None or job.ended or not (job.accepted or job.generation):
                    self._end(name, job, event.at, error)
            case events.Finished(outcome=outcome) if not job.accepted:
                self._end(name, job, event.at, outcome.error)
            case _:
                pass

    def _begin(
        self,
        name: _Name,
        asked: Job | None,
        at: float,
        *,
        model: str = "",
        link: SpanContext | None = None,
        root: bool = False,
    ) -> _Open:
        batch, key = name
        attributes: dict[str, str | int] = {names.KEY: key}
        if batch:
            attributes[names.BATCH] = batch
        if asked is not None:
            model = asked.model
            attributes[names.DURATION] = asked.duration
            if self._contents:
                attributes[names.PROMPT] = asked.prompt
                if isinstance(asked.image, str):
                    attributes[names.IMAGE] = asked.image
        attributes[names.MODEL] = model
        span = self._tracer.start_span(
            names.SPAN_JOB,
            context=Context() if root else None,
            attributes=attributes,
            links=[] if link is None else [Link(link)],
            start_time=_ns(at),
        )
        pictures = asked is not None and any(not isinstance(one, str | None) for one in (asked.image, asked.end_image))
        job = self._open[name] = _Open(span, model, at, pictures)
        return job

    def _begun(self, name: _Name, job: _Open | None, event: events.Begun) -> None:
        link = self._again.pop(name, None)
        if event.known is not None:
            link = self._earlier(event.known)
        if job is None:
            job = self._begin(name, event.job, event.at, link=link)
        elif link is not None:
            job.span.add_link(link)
        if event.known is not None:
            job.span.set_attributes({names.PREDICTION: event.known, names.RESUMED: True})
            job.ended = event.ended
            if not event.ended and job.generation is None:
                job.generation = self._child(job, names.SPAN_GENERATION, event.at)
        job.ready = event.at

    def _accepted(self, job: _Open, asked: Job, prediction: Prediction, at: float) -> None:
        self._answered(job, at, None)
        job.span.set_attribute(names.PREDICTION, prediction.id)
        job.generation = self._child(job, names.SPAN_GENERATION, at)
        job.accepted = at
        self._remember(prediction.id, job.span.get_span_context())
        self._count("accepted", job.model)
        self._running.add(1, {names.MODEL: job.model})
        usd = asked.price(self._provider).usd
        if usd is not None:
            self._spend.add(float(usd), {names.MODEL: job.model})

    def _changed(self, name: _Name, job: _Open | None, prediction: Prediction, at: float) -> None:
        if job is None:
            # Of an earlier process: it is watched, and nobody has asked for it.
            link = self._earlier(prediction.id)
            job = self._begin(name, None, at, model=prediction.model, link=link, root=True)
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
        if job.accepted:
            self._running.add(-1, {names.MODEL: job.model})
            self._generation.record(max(0.0, at - job.accepted), {names.MODEL: job.model})
        job.span.set_attribute(names.STATUS, prediction.raw_status)
        self._remember(prediction.id, job.span.get_span_context())
        self._end(name, job, at, error)

    def _saved(self, name: _Name, event: events.Saved) -> None:
        job = self._open.get(name)
        parent = job.span.get_span_context() if job is not None else self._past.get(name)
        context = None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
        span = self._tracer.start_span(
            names.SPAN_DOWNLOAD,
            context=context,
            attributes={names.KEY: event.key, names.BYTES: event.file.bytes},
            start_time=_ns(event.at if event.since is None else event.since),
        )
        span.end(_ns(event.at))

    def _answered(self, job: _Open, at: float, error: KlingError | None) -> None:
        if job.submit is not None:
            _close(job.submit, at, error)
            job.submit = None

    def _end(self, name: _Name, job: _Open, at: float | None, error: KlingError | None = None) -> None:
        for child in (job.submit, job.generation):
            if child is not None:
                _close(child, at, error)
        _close(job.span, at, error)
        del self._open[name]
        self._keep(name, job.span.get_span_context())

    def _child(self, job: _Open, name: str, at: float, attributes: dict[str, Any] | None = None) -> Span:
        context = trace.set_span_in_context(job.span)
        return self._tracer.start_span(name, context=context, attributes=attributes, start_time=_ns(at))

    def _count(self, state: str, model: str) -> None:
        self._jobs.add(1, {names.STATE: state, names.MODEL: model})

    def _remember(self, prediction_id: str, context: SpanContext) -> None:
        self._keep(prediction_id, context)
        if self._traces is not None and context.is_valid and prediction_id not in self._traces:
            self._traces[prediction_id] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def _keep(self, name: _Name | str, context: SpanContext) -> None:
        self._past[name] = context
        if len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)

    def _earlier(self, prediction_id: str) -> SpanContext | None:
        """The span in which the prediction was paid for."""
        known = self._past.get(prediction_id)
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
