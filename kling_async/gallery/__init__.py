"""The gallery page: served while a batch runs, written to a folder at its end. Needs the extra `gallery`.

```python
async with Gallery("out/gallery", title="spring", total=len(jobs)) as gallery:
    print(gallery.url)  # on this computer only
    async with KlingSession(observers=[gallery.observer("wavespeed")]) as kling: ...
# open out/gallery/index.html from the disk
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
from kling_async._loops import LoopBinding
from kling_async.errors import LedgerError
from kling_async.ledger import read_marks

from .cards import MAX_CARDS, Deck
from .live import Live
from .page import INDEX, freeze, prepare
from .past import gallery_of_ledger, serve_gallery
from .pictures import Pictures

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from kling_async._core.clock import Clock
    from kling_async._core.marks import Marked
    from kling_async.events import Event, Observer

    from .cards import Card

__all__ = ["Gallery", "gallery_of_ledger", "serve_gallery"]


class Gallery(anyio.AsyncContextManagerMixin):
    """A page of jobs, served during the `async with` block and written to a folder at its end, even after an error.

    Args:
        folder: Folder for the page and small copies of the input images. Videos are not copied; the page links to them
            by relative paths.
        title: Title of the page.
        total: Number of jobs; None if unknown.
        clock: Clock of the observed sessions; None is the system's clock.
        live: Serve the page during the block.
        port: Port on loopback; 0 takes a free one.
        limit: Maximum number of jobs on the page; beyond it the oldest ended ones are dropped.
        ledger: Ledger of the sessions, as file or URL; the page shows the marks that its videos have.
        account: Name of the account in a database.

    Raises:
        ConfigurationError: On entry: Jinja2 is not installed.
        WrongLoopError: On entry: no event loop of asyncio runs.
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
        limit: int = MAX_CARDS,
        ledger: str | os.PathLike[str] | None = None,
        account: str = "default",
    ) -> None:
        self.folder = Path(folder).absolute()
        self._deck = Deck(title, total=total, limit=limit)
        self._pictures = Pictures(self.folder)
        self._live = Live(self._deck, clock or SystemClock()) if live else None
        self._port = port
        self._ledger = ledger
        self._account = account
        self._pending: deque[Card] = deque()
        self._has_pending = asyncio.Event()

    @property
    def url(self) -> str | None:
        """Address of the live page, on this computer only; None while it is not served."""
        return None if self._live is None else self._live.url or None

    @property
    def index(self) -> Path:
        """File of the page, written at the end of the block."""
        return self.folder / INDEX

    def observer(self, provider: str = "wavespeed") -> Observer:
        """Return an observer for a session of a provider."""

        def observe(event: Event) -> None:
            card = self._deck.update(event, provider)
            if any(picture.source is not None for picture in card.pictures):
                self._pending.append(card)
                self._has_pending.set()
            self._notify()

        return observe

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        LoopBinding("the gallery").bind()
        # Raises before any job is paid for.
        await anyio.to_thread.run_sync(prepare)
        if self._ledger is not None:
            self._deck.marks = await anyio.to_thread.run_sync(self._read_marks, self._ledger)
        raised: BaseException | None = None
        async with AsyncExitStack() as stack:
            if self._live is not None:
                await stack.enter_async_context(self._live.serve(self._port))
            # Runs before the server ends, which sends the path of the file to open pages.
            stack.push_async_callback(self._freeze)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._make_posters)
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

    def _read_marks(self, ledger: str | os.PathLike[str]) -> Mapping[str, Marked]:
        try:
            return read_marks(ledger, account=self._account)
        except LedgerError:
            return {}  # a new one; the session says what is wrong with another

    def _notify(self) -> None:
        if self._live is not None:
            self._live.notify()

    async def _make_posters(self) -> None:
        """Make small copies of input images, one card after the other, during the run."""
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            while self._pending:
                card = self._pending.popleft()
                await anyio.to_thread.run_sync(self._make_files, card)
                self._deck.touch(card)
                self._notify()

    def _make_files(self, card: Card) -> None:
        for picture in card.pictures:
            self._pictures.make_files(picture)

    async def _freeze(self) -> None:
        # A snapshot: a session that is still open goes on changing them.
        cards = self._deck.cards
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._write, cards)
        if self._live is not None:
            self._live.end(str(self.index))

    def _write(self, cards: Sequence[Card]) -> None:
        for card in cards:
            self._make_files(card)
        freeze(self._deck, cards, self.folder)
