"""Names of spans, metrics and attributes.

OpenTelemetry has no conventions yet for jobs that outlive their request; when it has, the names change here.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "kling_async"
"""Instrumentation scope of spans and metrics."""

SPAN_JOB: Final = "kling job"
"""Span from the start of a job until its prediction ends."""
SPAN_UPLOAD: Final = "kling upload"
"""Span of the upload of a job's images."""
SPAN_WAITING: Final = "kling waiting"
"""Span of waiting for a slot, for the rate limiter and after refusals."""
SPAN_SUBMIT: Final = "kling submit"
"""Span of one paid request, until its response is recorded."""
SPAN_GENERATION: Final = "kling generation"
"""Span from acceptance until the end of the prediction is known."""
SPAN_DOWNLOAD: Final = "kling download"
"""Span of the download of a video."""

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
"""Counter of jobs by `kling.state`: accepted, completed, failed, refused, uncertain or retried."""
METRIC_RUNNING: Final = "kling.running"
"""Number of running predictions."""
METRIC_WAITING: Final = "kling.waiting"
"""Histogram of seconds between a job being ready and its paid request."""
METRIC_GENERATION: Final = "kling.generation"
"""Histogram of seconds from acceptance until the end of the prediction is known."""
METRIC_SPEND: Final = "kling.spend"
"""Counter of USD for accepted jobs, by the price list."""
METRIC_LOOKS: Final = "kling.status_requests"
"""Counter of polling requests; divided by the completed and failed `kling.jobs`, the requests per job."""
