"""Parts of the blocking session and batch that are no calls: their lifetimes, and iteration."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from ._thread import Held, next_of, refuse_event_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

    from kling_async import KlingSession as AsyncSession
    from kling_async import Level, Outcome, Prediction, Provider
    from kling_async._session.batch import Batch as AsyncBatch

    from ._thread import LoopThread


class SessionBase:
    """Lifetime and attributes of a blocking session; the other methods are generated."""

    _session: AsyncSession
    _thread: LoopThread

    def __enter__(self) -> Self:
        self._thread.open(self._session)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the session. `with` calls this.

        Waits for paid requests in flight until their results are recorded. Predictions that still run go on at the
        service and are listed in `left_running`. A call that waits in another thread ends with an error that says so.
        """
        self._thread.close()

    def __repr__(self) -> str:
        return repr(self._session).replace("<KlingSession", "<blocking KlingSession", 1)

    def _repr_html_(self) -> str:
        return self._session._repr_html_()

    @property
    def provider(self) -> Provider:
        """The provider."""
        return self._session.provider

    @property
    def level(self) -> Level:
        """Limits of the account."""
        return self._session.level

    @property
    def max_in_flight(self) -> int:
        """Greatest number of predictions running at once."""
        return self._session.max_in_flight

    @property
    def left_running(self) -> tuple[Prediction, ...]:
        """Predictions that were still running when the session closed. They go on at the service."""
        return self._session.left_running


class BatchBase:
    """Lifetime and iteration of a blocking batch; the other methods are generated."""

    def __init__(self, thread: LoopThread, batch: AsyncBatch) -> None:
        self._thread = thread
        self._batch = batch
        self._held: Held[AsyncBatch] | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        # Before there is anything to leave, for which the loop's own thread could not wait.
        refuse_event_loop()
        held = Held(self._thread, self._batch)
        try:
            held.enter()
            self._held = held
            return self  # noqa: TRY300 -- an interrupt may come up to here
        except BaseException:
            held.leave()
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._held.leave()

    def __iter__(self) -> Self:
        aiter(self._batch)
        return self

    def __next__(self) -> Outcome:
        # Threads that share a batch take turns: each outcome goes to one of them.
        with self._turn:
            found = self._thread.run(lambda: next_of(self._batch))
        if found is None:
            raise StopIteration
        return found[0]

    @property
    def name(self) -> str:
        """Name of the batch."""
        return self._batch.name

    @property
    def total(self) -> int | None:
        """Number of jobs of the input; None if it has no length."""
        return self._batch.total

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Latest outcomes that did not succeed."""
        return self._thread.ask(lambda: tuple(self._batch.failures))


def iterate_as(batch: BatchBase, wrap: Callable[[AsyncBatch], AsyncIterator[Outcome]]) -> Iterator[Outcome]:
    """Yield the items of an asynchronous iterator over a batch, for other modules of this package."""
    return batch._thread.iterate(wrap(batch._batch))  # noqa: SLF001 -- the same module
