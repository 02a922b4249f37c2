"""Events as log records of `kling_async`: what costs money at INFO, what needs an eye at WARNING, the rest at DEBUG.

Each record has `kling_event`, `kling_key` and `kling_batch` as fields for structured logs, and `kling_prediction` where
there is one. No prompt and no URL of an image is in any.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ._core import events

if TYPE_CHECKING:
    from ._core.events import Event

log = logging.getLogger("kling_async")


def hears(kind: object) -> bool:
    """Whether events of a kind may be written down."""
    return log.isEnabledFor(logging.INFO) or kind in _TROUBLES


def log_event(event: Event) -> None:
    """Write one event down."""
    match event:
        case events.Accepted(prediction=prediction):
            _write(logging.INFO, event, "job %s was accepted as prediction %s", event.key, prediction.id)
        case events.Refused(error=error, again=None):
            _write(logging.WARNING, event, "job %s was refused: %s", event.key, error.message)
        case events.Refused(error=error, again=again):
            _write(logging.INFO, event, "job %s was not accepted, again in %.1f s: %s", event.key, again, error.message)
        case events.Uncertain(error=error):
            _write(logging.WARNING, event, "job %s: %s", event.key, error)
        case events.Changed(prediction=prediction):
            level = logging.INFO if prediction.status.ended else logging.DEBUG
            said = "ended as" if prediction.status.ended else "is"
            word = prediction.raw_status
            _write(level, event, "prediction %s of job %s %s %s", prediction.id, event.key, said, word)
        case events.Saved(file=file):
            _write(logging.INFO, event, "job %s was saved as %s", event.key, file)
        case events.Submitting(attempt=attempt):
            _write(logging.DEBUG, event, "job %s is being submitted, attempt %d", event.key, attempt)
        case _:
            pass


_TROUBLES = frozenset({events.Refused, events.Uncertain})
"""The rest is told at INFO at most."""


def _write(level: int, event: Event, message: str, *arguments: object) -> None:
    if not log.isEnabledFor(level):
        return
    fields = {"kling_event": type(event).__name__, "kling_key": event.key, "kling_batch": event.batch}
    prediction = getattr(event, "prediction", None)
    if prediction is not None:
        fields["kling_prediction"] = prediction.id
    log.log(level, message, *arguments, extra=fields)
