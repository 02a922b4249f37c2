"""The page people look at: live while a batch runs, frozen to one folder at its end. It needs the extra `gallery`.

```python
async with Gallery("out/gallery", title="spring", total=len(jobs)) as gallery:
    print(gallery.url)  # on this computer alone
    async with KlingSession(observers=[gallery.observer("wavespeed")]) as kling: ...
# out/gallery/index.html opens from the disk
```
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread

from kling_async._clock import SystemClock

from .cards import LIMIT, Deck
from .live import Live
from .page import INDEX, freeze, prepare
from .past import gallery_of_ledger
from .pictures import Pictures

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Sequence

    from kling_async._core.clock import Clock
    from kling_async.events import Event, Observer

    from .cards import Card

__all__ = ["Gallery", "gallery_of_ledger"]


class Gallery(anyio.AsyncContextManagerMixin):
    """One page, two lives: served while the block runs, written to a folder when it is left, however it is left.

    Args:
        folder: Where the page is written, with small copies of the input images. The videos stay where they are; the
            page refers to them relatively.
        title: What the page is called.
        total: How many jobs there will be, if that is known.
        clock: The clock of the sessions that it watches, if it is not the system's.
        live: Whether to serve it meanwhile.
        port: Where to serve it, on loopback; 0 takes a free port.
        limit: Jobs that the page holds; beyond them the oldest that have ended leave it.

    Raises:
        ConfigurationError: When it is entered: Jinja2 is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        title: str = "Kling",
        total: int | None = None,
        clock: Clock | None = None,
        live: bool = True,
        port: int = 0,
        limit: int = LIMIT,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._deck = Deck(title, total=total, limit=limit)
        self._pictures = Pictures(self.folder)
        self._live = Live(self._deck, clock or SystemClock()) if live else None
        self._port = port
        self._unsettled: deque[Card] = deque()
        self._work = asyncio.Event()

    @property
    def url(self) -> str | None:
        """The address of the live page while it is served; it works on this computer alone."""
        return None if self._live is None else self._live.url or None

    @property
    def index(self) -> Path:
        """The frozen page, which is there when the block is left."""
        return self.folder / INDEX

    def observer(self, provider: str = "wavespeed") -> Observer:
        """What to give to a session of that provider as an observer."""

        def observe(event: Event) -> None:
            card = self._deck.take(event, provider)
            if any(picture.given is not None for picture in card.pictures):
                self._unsettled.append(card)
                self._work.set()
            self._tell()

        return observe

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        # What is missing is told before a job is paid for.
        await anyio.to_thread.run_sync(prepare)
        raised: BaseException | None = None
        async with AsyncExitStack() as stack:
            if self._live is not None:
                await stack.enter_async_context(self._live.serve(self._port))
            # Before the server ends: the pages are told where they are kept.
            stack.push_async_callback(self._freeze)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._settle)
                try:
                    yield self
                except asyncio.CancelledError:
                    raise
                except BaseException as error:  # noqa: BLE001 -- raised again below, not wrapped in a group
                    raised = error
                finally:
                    tasks.cancel_scope.cancel()
            if raised is not None:
                raise raised

    def _tell(self) -> None:
        if self._live is not None:
            self._live.tell()

    async def _settle(self) -> None:
        """Find and make the files of the input images, one after the other beside the run."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._unsettled:
                card = self._unsettled.popleft()
                await anyio.to_thread.run_sync(self._settle_one, card)
                self._deck.touch(card)
                self._tell()

    def _settle_one(self, card: Card) -> None:
        for picture in card.pictures:
            self._pictures.settle(picture)

    async def _freeze(self) -> None:
        # As they are now: a session that goes on changes them while the page is written.
        cards = self._deck.cards
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._write, cards)
        if self._live is not None:
            self._live.end(str(self.index))

    def _write(self, cards: Sequence[Card]) -> None:
        for card in cards:
            self._settle_one(card)
        freeze(self._deck, cards, self.folder)
