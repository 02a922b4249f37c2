"""Publish a session's events to its observers and to the log.

Logger `kling_async`: events that cost money are logged at INFO, those that need attention at WARNING, others at DEBUG.
Each record has the fields `kling_event`, `kling_key` and `kling_batch` for structured logs, and `kling_prediction` if
there is a prediction. No record contains a prompt or the URL of an image.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ParamSpec

from kling_async._log import log

from . import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import Event, Observer

P = ParamSpec("P")

_WARNINGS = frozenset({events.Refused, events.Uncertain})
"""Events that may be logged at WARNING; others are logged at INFO at most."""


class Observers:
    """The observers of a session, and the log.

    Args:
        observers: Receive every event.
    """

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers

    def add(self, observer: Observer) -> None:
        """Add an observer of later events."""
        self._observers += (observer,)

    def remove(self, observer: Observer) -> None:
        """Publish no later events to an observer."""
        self._observers = tuple(each for each in self._observers if each is not observer)

    def __call__(self, kind: Callable[P, Event], *arguments: P.args, **fields: P.kwargs) -> None:
        """Publish an event, given as its type and its fields.

        The event is created only if something receives it, because every job has nine.

        Args:
            kind: Type of the event.
            arguments: Its positional arguments.
            fields: Its keyword arguments.
        """
        logged = kind in _WARNINGS or log.isEnabledFor(logging.INFO)
        observers = (log_event, *self._observers) if logged else self._observers
        if not observers:
            return
        event = kind(*arguments, **fields)
        for observer in observers:
            try:
                observer(event)
            except (KeyboardInterrupt, SystemExit):
                raise
            # A `CancelledError` too: a plain call is no place at which the running task can be cancelled.
            except BaseException:
                log.exception("an observer raised at %s", type(event).__name__)


def log_event(event: Event) -> None:
    """Log one event."""
    match event:
        case events.Accepted(prediction=prediction):
            _log(logging.INFO, event, "job %s was accepted as prediction %s", event.key, prediction.id)
        case events.Refused(error=error, again=None):
            _log(logging.WARNING, event, "job %s was refused: %s", event.key, error.message)
        case events.Refused(error=error, again=again):
            _log(logging.INFO, event, "job %s was refused, retry in %.1f s: %s", event.key, again, error.message)
        case events.Uncertain(error=error):
            _log(logging.WARNING, event, "job %s: %s", event.key, error)
        case events.Changed(prediction=prediction):
            level = logging.INFO if prediction.status.ended else logging.DEBUG
            verb = "ended as" if prediction.status.ended else "is"
            _log(level, event, "prediction %s of job %s %s %s", prediction.id, event.key, verb, prediction.raw_status)
        case events.Saved(file=file):
            _log(logging.INFO, event, "job %s was saved as %s", event.key, file)
        case events.Submitting(attempt=attempt):
            _log(logging.DEBUG, event, "job %s is being submitted, attempt %d", event.key, attempt)
        case _:
            pass


def _log(level: int, event: Event, message: str, *arguments: object) -> None:
    if not log.isEnabledFor(level):
        return
    fields = {"kling_event": type(event).__name__, "kling_key": event.key, "kling_batch": event.batch}
    prediction = getattr(event, "prediction", None)
    if prediction is not None:
        fields["kling_prediction"] = prediction.id
    log.log(level, message, *arguments, extra=fields)
