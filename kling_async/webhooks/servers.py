"""Adapters of the receiver for aiohttp and for ASGI servers."""

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
"""ASGI message: a dictionary with a `type`."""
Receive: TypeAlias = Callable[[], Awaitable[Message]]
"""ASGI callable that returns the next message."""
Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""ASGI callable that sends a message."""

_ALLOW = "POST"
_METHOD_NOT_ALLOWED = 405


def aiohttp_handler(receiver: WebhookReceiver) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler for `app.router.add_route("*", path, ...)` and hide tokens in aiohttp's access log.

    The receiver's `max_body` applies, not the application's `client_max_size`.
    """
    from aiohttp import ClientError, web  # noqa: PLC0415 -- ASGI does not need it
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
        except (ClientError, HttpProcessingError, ConnectionError, web.RequestPayloadError):
            # The connection broke before the body was complete, or the body is not encoded as it says.
            raise web.HTTPBadRequest from None
        return web.Response(status=status, headers={"Allow": _ALLOW} if status == _METHOD_NOT_ALLOWED else None)

    return handle


def asgi_app(receiver: WebhookReceiver) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """Return an ASGI application, to be mounted at any path or served by itself.

    Hides tokens in the access logs of uvicorn, Hypercorn and Gunicorn.
    """
    _hide_tokens("uvicorn.access", "hypercorn.access", "gunicorn.access")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await _respond(receiver, scope, receive, send)

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    """Complete startup and shutdown, for servers that require it."""
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


async def _respond(receiver: WebhookReceiver, scope: Message, receive: Receive, send: Send) -> None:
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
            raise ConnectionResetError("the sender disconnected before the body was complete")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _hide_tokens(*loggers: str) -> None:
    for name in loggers:
        logging.getLogger(name).addFilter(HideTokens())
