"""The receiver behind a web server: aiohttp, or any that speaks ASGI."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs

from .tokens import TOKEN_PARAMETER, HideTokens

if TYPE_CHECKING:
    from aiohttp import web

    from .receiver import WebhookReceiver

Message: TypeAlias = MutableMapping[str, Any]
"""What ASGI passes: a dictionary with a `type`."""
Receive: TypeAlias = Callable[[], Awaitable[Message]]
"""ASGI: gives the next message."""
Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""ASGI: takes a message."""

_ALLOW = "POST"
_METHOD_NOT_ALLOWED = 405


def aiohttp_handler(receiver: WebhookReceiver) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler for `app.router.add_route("*", path, ...)`; aiohttp's access log shows no tokens from then on.

    The receiver's own cap counts, and not `client_max_size` of the application.
    """
    from aiohttp import ClientError, web  # noqa: PLC0415 -- ASGI does without it
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415 -- as above

    _hide_tokens("aiohttp.access")

    async def handle(request: web.Request) -> web.Response:
        try:
            status = await receiver.receive(
                request.headers,
                request.content.iter_any(),
                token=request.query.get(TOKEN_PARAMETER),
                method=request.method,
            )
        except (ClientError, HttpProcessingError, ConnectionError):
            # The body broke off: nobody may be there to read it.
            raise web.HTTPBadRequest from None
        return web.Response(status=status, headers={"Allow": _ALLOW} if status == _METHOD_NOT_ALLOWED else None)

    return handle


def asgi_app(receiver: WebhookReceiver) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """A plain ASGI application, to be mounted in another or served by itself; its path is whatever it is mounted at.

    The access logs of uvicorn, Hypercorn and Gunicorn show no tokens from then on.
    """
    _hide_tokens("uvicorn.access", "hypercorn.access", "gunicorn.access")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await _answer(receiver, scope, receive, send)

    return app


async def _live(receive: Receive, send: Send) -> None:
    """Start and stop with nothing to do, for servers that insist."""
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


async def _answer(receiver: WebhookReceiver, scope: Message, receive: Receive, send: Send) -> None:
    query = parse_qs(scope["query_string"].decode("latin-1"))
    async with aclosing(_chunks(receive)) as body:
        try:
            status = await receiver.receive(
                {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
                body,
                token=query.get(TOKEN_PARAMETER, [None])[0],
                method=scope["method"],
            )
        except ConnectionError:
            return
    headers = [(b"content-length", b"0")]
    if status == _METHOD_NOT_ALLOWED:
        headers.append((b"allow", _ALLOW.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _chunks(receive: Receive) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the sender went away before the body was complete")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _hide_tokens(*loggers: str) -> None:
    for name in loggers:
        logging.getLogger(name).addFilter(HideTokens())
