"""The page while it lives: a server on loopback that tells the page what changes."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from aiohttp import web

from .page import about, as_data, policy, prepare, render

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from kling_async._core.clock import Clock

    from .cards import Card, Deck
    from .page import Link

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 500
"""Cards in one message."""
_CLOSING_SECONDS: Final = 2.0
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES: Final = {
    ".mp4": "video/mp4",
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}


class Live:
    """Serves the page of a deck, the files on its cards, and nothing else.

    Every path begins with a secret, so that other users of the computer find nothing; only requests that name this
    server as their host are answered, so that no other site can be made to look like it.

    Args:
        deck: What the page shows.
        clock: The session's clock: what the page counts the time by.
        refresh: Seconds between two messages to a page at least.
        pulse: Seconds between two messages at most: the page's clock goes by them.
    """

    def __init__(self, deck: Deck, clock: Clock, *, refresh: float = 0.25, pulse: float = 1.0) -> None:
        self._deck = deck
        self._clock = clock
        self._refresh = refresh
        self._pulse = pulse
        self._secret = secrets.token_urlsafe(16)
        self._hosts: frozenset[str] = frozenset()
        self._news = asyncio.Event()
        self._kept: str | None = None
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/{secret}/", self._page)
        app.router.add_get("/{secret}/events", self._events)
        app.router.add_get("/{secret}/files/{number:[0-9]{1,12}}/{name:[a-z-]+}", self._file)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_CLOSING_SECONDS)
        self.url = ""

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncGenerator[None, None]:
        """Serve while the block runs; `url` is the page's address.

        Args:
            port: Where to listen; 0 takes a free port.
        """
        await anyio.to_thread.run_sync(prepare)
        runner = self._runner
        await runner.setup()
        try:
            await web.TCPSite(runner, _HOST, port).start()
            bound = runner.addresses[0][1]
            self._hosts = frozenset({f"{_HOST}:{bound}", f"localhost:{bound}"})
            self.url = f"http://{_HOST}:{bound}/{self._secret}/"
            yield
        finally:
            if self._kept is None:
                self.end("")
            with anyio.CancelScope(shield=True):
                await runner.cleanup()

    def tell(self) -> None:
        """Let the pages know that cards have changed."""
        # Who waits holds the old one.
        news, self._news = self._news, asyncio.Event()
        news.set()

    def end(self, kept: str) -> None:
        """Let the pages know that nothing more comes.

        Args:
            kept: Where the frozen page is.
        """
        self._kept = kept
        self.tell()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        # The name of another site that leads here (DNS rebinding) would make its scripts ours.
        if request.host not in self._hosts:
            return web.Response(status=403, text="This is not that host.", headers=_HEADERS)
        if not secrets.compare_digest(request.match_info.get("secret", "").encode(), self._secret.encode()):
            return web.Response(
                status=404, text="Not here. The whole address was printed at the start.", headers=_HEADERS
            )
        response: web.StreamResponse = await handler(request)
        return response

    async def _page(self, request: web.Request) -> web.Response:
        del request
        headers = _HEADERS | {"Content-Security-Policy": policy(live=True) + "; frame-ancestors 'none'"}
        return web.Response(text=render(self._deck), content_type="text/html", headers=headers)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        card = self._deck.numbered(int(request.match_info["number"]))
        path = None if card is None else card.files.get(request.match_info["name"])
        if path is None or not await anyio.Path(path).is_file():
            return web.Response(status=404, headers=_HEADERS)
        # By a list of ours and never by guess: a picture may be called `x.html`.
        kind = {"Content-Type": _TYPES.get(path.suffix.lower(), "application/octet-stream")}
        closed = {"Content-Security-Policy": "default-src 'none'; sandbox", "Cache-Control": "no-cache"}
        return web.FileResponse(path, headers=_HEADERS | kind | closed)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """All cards, or those that changed since the page was cut off; and then every change."""
        response = web.StreamResponse(headers=_HEADERS | {"Content-Type": "text/event-stream"})
        await response.prepare(request)
        last = request.headers.get("Last-Event-ID", "")
        seen = int(last) if last.isdecimal() and int(last) <= self._deck.version else 0
        try:
            await response.write(b"retry: 1000\n\n")
            while True:
                news, kept = self._news, self._kept
                changed = self._deck.changed_since(seen)
                for first in range(0, len(changed), _CHUNK):
                    chunk = changed[first : first + _CHUNK]
                    seen = chunk[-1].version
                    await response.write(_message("cards", [as_data(card, _links(card)) for card in chunk], seen))
                await response.write(_message("about", about(self._deck) | {"now": self._clock.now()}))
                if kept is not None:
                    await response.write(_message("end", kept))
                    return response
                await _first_of(news, self._pulse)
                if self._kept is None:
                    await asyncio.sleep(self._refresh)
        except ConnectionError:
            return response  # the page was closed


def _links(card: Card) -> Link:
    """Links to the files of a card, which say nothing of where they are."""

    def link(path: Path) -> str:
        # Asked only now: pictures come in from a thread.
        name = next(name for name, file in card.files.items() if file == path)
        return f"files/{card.number}/{name}"

    return link


async def _first_of(news: asyncio.Event, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await news.wait()


def _message(kind: str, data: object, number: int | None = None) -> bytes:
    head = f"event: {kind}\n" + ("" if number is None else f"id: {number}\n")
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
