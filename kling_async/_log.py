"""Events as log records of `kling_async`: what costs money at INFO, what needs an eye at WARNING, the rest at DEBUG."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ._core import events

if TYPE_CHECKING:
    from ._core.events import Event

log = logging.getLogger("kling_async")


def log_event(event: Event) -> None:
    """Write one event down."""
    match event:
        case events.Accepted(prediction=prediction):
            log.info("job %s was accepted as prediction %s", event.key, prediction.id)
        case events.Refused(error=error, again=None):
            log.warning("job %s was refused: %s", event.key, error.message)
        case events.Refused(error=error, again=again):
            log.info("job %s was not accepted, again in %.1f s: %s", event.key, again, error.message)
        case events.Uncertain(error=error):
            log.warning("job %s: %s", event.key, error)
        case events.Changed(prediction=prediction) if prediction.status.ended:
            log.info("prediction %s of job %s ended as %s", prediction.id, event.key, prediction.raw_status)
        case events.Changed(prediction=prediction):
            log.debug("prediction %s of job %s is %s", prediction.id, event.key, prediction.raw_status)
        case events.Saved(file=file):
            log.info("job %s was saved as %s", event.key, file)
        case events.Submitting(attempt=attempt):
            log.debug("job %s is being submitted, attempt %d", event.key, attempt)
        case events.Admitted() | events.Begun() | events.Uploaded() | events.Left() | events.Finished():
            pass
