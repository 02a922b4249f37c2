"""Binding of objects to the event loop whose futures, tasks and connections they hold."""

from __future__ import annotations

import asyncio

from .errors import WrongLoopError


class LoopBinding:
    """The event loop that an object belongs to, from `bind` on. Before, `check` accepts any.

    Args:
        subject: Name of the object in errors, such as "the session".
        loop: The loop, if it is known already.
    """

    __slots__ = ("_loop", "_subject")

    def __init__(self, subject: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._subject = subject
        self._loop = loop

    def bind(self) -> None:
        """Bind the object to the running event loop.

        Raises:
            WrongLoopError: No event loop of asyncio runs here.
        """
        loop = _running_loop()
        if loop is None:
            raise self._not_asyncio()
        self._loop = loop

    def bind_or_check(self) -> None:
        """Check that the object belongs to the running event loop; bind it if it has none, or a closed one.

        Raises:
            WrongLoopError: It belongs to another one, or no event loop of asyncio runs here.
        """
        if self._loop is None or self._loop.is_closed():
            self.bind()
        else:
            self.check()

    def check(self) -> None:
        """Check that the object belongs to the running event loop.

        Raises:
            WrongLoopError: It belongs to another one.
        """
        loop = _running_loop()
        if loop is self._loop or self._loop is None:
            return
        if loop is None:
            raise self._not_asyncio()
        if self._loop.is_closed():
            raise WrongLoopError(
                f"{self._subject} belongs to an event loop that is closed: expected a call in that loop",
                advice=f"make and open {self._subject.replace('the', 'a', 1)} in each event loop",
            )
        raise WrongLoopError(f"{self._subject} belongs to another event loop: expected a call in that loop")

    def _not_asyncio(self) -> WrongLoopError:
        return WrongLoopError(
            f"{self._subject} needs asyncio: expected a running event loop of asyncio, got none",
            advice="call it in a coroutine that asyncio.run runs; other libraries, such as trio, are not supported",
        )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
