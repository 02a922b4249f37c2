"""The names of spans, metrics, attributes and fields of log records: all of them, in one place.

OpenTelemetry has none yet for a job that outlives its submit; when it has, they change here.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "kling_async"
"""The instrumentation scope of spans and metrics."""

SPAN_JOB: Final = "kling job"
"""From the moment that a job is taken in hand until its prediction ends."""
SPAN_UPLOAD: Final = "kling upload"
"""Its images on their way."""
SPAN_WAITING: Final = "kling waiting"
"""For a slot, the rate, and after refusals."""
SPAN_SUBMIT: Final = "kling submit"
"""One paid request, until its answer is written down."""
SPAN_GENERATION: Final = "kling generation"
"""From acceptance until the end is known."""
SPAN_DOWNLOAD: Final = "kling download"
"""The video on its way to its file."""

KEY: Final = "kling.key"
BATCH: Final = "kling.batch"
MODEL: Final = "kling.model"
STATE: Final = "kling.state"
DURATION: Final = "kling.video.seconds"
ATTEMPT: Final = "kling.attempt"
PREDICTION: Final = "kling.prediction.id"
STATUS: Final = "kling.status"
CODE: Final = "kling.code"
RESUMED: Final = "kling.resumed"
LEFT: Final = "kling.left"
BYTES: Final = "kling.bytes"
ERROR: Final = "error.type"
PROMPT: Final = "kling.prompt"
IMAGE: Final = "kling.image"
OUTPUT: Final = "kling.output"

METRIC_JOBS: Final = "kling.jobs"
"""Counts what became of jobs: `kling.state` is accepted, completed, failed, refused, uncertain or retried."""
METRIC_RUNNING: Final = "kling.running"
"""Predictions that run."""
METRIC_WAITING: Final = "kling.waiting"
"""Seconds from the moment that a job is ready until its paid request."""
METRIC_GENERATION: Final = "kling.generation"
"""Seconds from acceptance until the end is known."""
METRIC_SPEND: Final = "kling.spend"
"""USD of what was accepted, by the price list."""
METRIC_LOOKS: Final = "kling.status_requests"
"""Requests by which ends were found out; by the completed and failed of `kling.jobs`, how many each job needs."""
