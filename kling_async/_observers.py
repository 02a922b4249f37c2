"""Who listens to what happens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ParamSpec

from ._log import hears, log_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._core.events import Event, Observer

log = logging.getLogger("kling_async")

P = ParamSpec("P")


class Observers:
    """The log and the observers of a session. Called with a kind of event and its fields, it tells them.

    An event is made when there is somebody to tell it to: every job has nine, and mostly there is nobody.

    Args:
        observers: Are told everything.
    """

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers

    def add(self, observer: Observer) -> None:
        """Tell one more of what happens from now on."""
        self._observers += (observer,)

    def __call__(self, kind: Callable[P, Event], *arguments: P.args, **fields: P.kwargs) -> None:
        """Tell everybody who listens."""
        observers = (log_event, *self._observers) if hears(kind) else self._observers
        if not observers:
            return
        event = kind(*arguments, **fields)
        for observer in observers:
            try:
                observer(event)
            except Exception:
                log.exception("an observer raised at %s", type(event).__name__)
