"""Server of the live page, on loopback: it sends changes as server-sent events."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from aiohttp import web

from kling_async._core.marks import Mark
from kling_async.errors import KlingError

from .page import about, as_data, policy, prepare, render

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from kling_async._core.clock import Clock

    from .cards import Card, Deck
    from .page import Link

_HOST: Final = "127.0.0.1"
_CARDS_PER_MESSAGE: Final = 500
_SHUTDOWN_TIMEOUT_S: Final = 2.0
_MAX_MARK_BYTES: Final = 1024
_RECONNECT_DELAY_MS: Final = 1000
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NUMBER: Final = re.compile(r"[0-9]{1,12}")
_MEDIA_TYPES: Final = {
    ".mp4": "video/mp4",
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}


class Live:
    """Serves the page of a deck and the files of its cards, and nothing else.

    Every path begins with a secret, so that other users of the computer cannot read the page. Requests for other hosts
    are refused, as a protection against DNS rebinding.

    Args:
        deck: Cards of the page.
        clock: Clock of the session, for the elapsed time on the page.
        refresh: Minimum seconds between two messages to a page.
        pulse: Maximum seconds between two messages to a page, which advance its clock.
        keep: Keeps the mark of a card, or without one removes it; None if the page takes no marks.
    """

    def __init__(
        self,
        deck: Deck,
        clock: Clock,
        *,
        refresh: float = 0.25,
        pulse: float = 1.0,
        keep: Callable[[Card, Mark | None], Awaitable[None]] | None = None,
    ) -> None:
        self._deck = deck
        self._clock = clock
        self._refresh = refresh
        self._pulse = pulse
        self._keep = keep
        self._secret = secrets.token_urlsafe(16)
        self._hosts: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._kept: str | None = None
        app = web.Application(middlewares=[self._guard], client_max_size=_MAX_MARK_BYTES)
        app.router.add_get("/{secret}/", self._page)
        app.router.add_get("/{secret}/events", self._events)
        app.router.add_get("/{secret}/files/{number:[0-9]{1,12}}/{name:[a-z-]+}", self._file)
        if keep is not None:
            app.router.add_post("/{secret}/marks", self._mark)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
        self.url = ""

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncGenerator[None, None]:
        """Serve during the block; `url` is the address of the page.

        Args:
            port: Port to listen on; 0 takes a free one.
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

    def notify(self) -> None:
        """Wake up the event streams because cards have changed."""
        # Waiting streams hold the old event.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def end(self, kept: str) -> None:
        """Signal the end of the stream.

        Args:
            kept: Path of the written page; empty if there is none.
        """
        self._kept = kept
        self.notify()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        # A foreign host name that resolves to this server would let the foreign site's scripts read it.
        if request.host not in self._hosts:
            return web.Response(status=403, text="Wrong host.", headers=_HEADERS)
        if not secrets.compare_digest(request.match_info.get("secret", "").encode(), self._secret.encode()):
            return web.Response(
                status=404, text="Not found. The full address was printed at the start.", headers=_HEADERS
            )
        response: web.StreamResponse = await handler(request)
        return response

    async def _page(self, request: web.Request) -> web.Response:
        del request
        headers = _HEADERS | {"Content-Security-Policy": policy(live=True) + "; frame-ancestors 'none'"}
        html = render(self._deck, marks=self._keep is not None)
        return web.Response(text=html, content_type="text/html", headers=headers)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        card = self._deck.numbered(int(request.match_info["number"]))
        path = None if card is None else card.files.get(request.match_info["name"])
        if path is None or not await anyio.Path(path).is_file():
            return web.Response(status=404, headers=_HEADERS)
        # From a fixed list: an image file may be called `x.html`.
        media_type = {"Content-Type": _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")}
        sandbox = {"Content-Security-Policy": "default-src 'none'; sandbox", "Cache-Control": "no-cache"}
        return web.FileResponse(path, headers=_HEADERS | media_type | sandbox)

    async def _mark(self, request: web.Request) -> web.Response:
        """Keep a mark of a video; 409 with the reason if it cannot be kept."""
        # Forms of other sites can neither send JSON nor name this origin.
        origin = request.headers.get("Origin")
        if request.content_type != "application/json" or origin not in {None, f"http://{request.host}"}:
            return web.Response(status=403, text="Wrong origin.", headers=_HEADERS)
        try:
            given = json.loads(await request.text())
            number, name = given["n"], given["mark"]
            mark = None if name is None else Mark(name)
        # LookupError: a field is missing, or the charset is unknown.
        except (ValueError, LookupError, TypeError, RecursionError):
            return web.Response(status=400, text="Expected a number and a mark.", headers=_HEADERS)
        # Truth values are integers, too.
        card = self._deck.numbered(number) if type(number) is int else None
        if card is None or card.prediction_id is None or self._keep is None:
            return web.Response(status=404, text="There is no such video.", headers=_HEADERS)
        try:
            await self._keep(card, mark)
        except (KlingError, OSError) as error:
            return web.Response(status=409, text=str(error), headers=_HEADERS)
        card.mark = mark
        self._deck.touch(card)
        self.notify()
        return web.json_response({"v": card.version}, headers=_HEADERS)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send all cards, or after a reconnect those changed since; then every change."""
        response = web.StreamResponse(headers=_HEADERS | {"Content-Type": "text/event-stream"})
        await response.prepare(request)
        last = request.headers.get("Last-Event-ID", "")
        films: object = None
        seen = int(last) if _NUMBER.fullmatch(last) and int(last) <= self._deck.version else 0
        try:
            await response.write(f"retry: {_RECONNECT_DELAY_MS}\n\n".encode())
            while True:
                changes, kept = self._changed, self._kept
                cards = self._deck.changed_since(seen)
                for first in range(0, len(cards), _CARDS_PER_MESSAGE):
                    chunk = cards[first : first + _CARDS_PER_MESSAGE]
                    seen = chunk[-1].version
                    await response.write(_message("cards", [as_data(card, _links(card)) for card in chunk], seen))
                shown = about(self._deck, marks=self._keep is not None)
                # They may be as many as the cards, and change with new cards alone.
                if films is self._deck.films:
                    del shown["films"]
                films = self._deck.films
                await response.write(_message("about", shown | {"now": self._clock.now()}))
                if kept is not None:
                    await response.write(_message("end", kept))
                    return response
                with anyio.move_on_after(self._pulse):
                    await changes.wait()
                if self._kept is None:
                    await asyncio.sleep(self._refresh)
        except ConnectionError:
            return response  # the page was closed


def _links(card: Card) -> Link:
    """Return a function that makes links to files of a card, without their paths."""

    def link(path: Path) -> str:
        # Looked up on each call, since a thread adds posters.
        name = next(name for name, file in card.files.items() if file == path)
        return f"files/{card.number}/{name}"

    return link


def _message(kind: str, data: object, number: int | None = None) -> bytes:
    head = f"event: {kind}\n" + ("" if number is None else f"id: {number}\n")
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
