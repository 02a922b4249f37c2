"""One request and its response: faults before and after the handler, authentication, the record."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

import attrs
from aiohttp import web

from .catalogue import InputError
from .faults import Call, Fault, kinds
from .service import Leak, RequestRecord, Service, Site
from .wire import reply

if TYPE_CHECKING:
    import asyncio

    from .accounts import Account

__all__ = ["Exchange", "Handler", "RefusedError", "json_object", "route"]

_KEYLESS_ROUTES: Final = frozenset({"upload_put", "upload_get", "output", "price_list"})
_MAX_PATH_CHARS: Final = 500
"""Part of a path that is recorded: 100,000 requests are."""
_KEY_HEADERS: Final = ("Authorization", "X-API-Key")
_OK: Final = 200
_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404


class RefusedError(Exception):
    """The request gets an error response.

    Attributes:
        status: HTTP status.
        message: error text; None uses the default text of the status.
        headers: additional response headers.
    """

    def __init__(self, status: int, message: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@attrs.define(eq=False)
class Exchange:
    """A request in progress.

    Attributes:
        service: state behind the routes.
        site: persona that was called.
        request: the aiohttp request.
        call: the exchange as fault rules see it.
        faults: faults that apply to it.
    """

    service: Service
    site: Site
    request: web.Request
    call: Call
    faults: tuple[Fault, ...] = ()
    _content: bytes | None = attrs.field(default=None, init=False)

    @property
    def now(self) -> float:
        """Unix seconds on the emulator's clock."""
        return self.service.clock.now()

    def account(self) -> Account:
        """Return the account of the API key in the request.

        Raises:
            RefusedError: 401 if the key is missing or unknown.
        """
        key = self.site.persona.key(self.request.headers.get("Authorization", ""))
        account = self.service.accounts.get(key)
        if account is None:
            raise RefusedError(_UNAUTHORIZED)
        return account

    async def body(self) -> dict[str, object]:
        """Return the JSON object in the request body.

        Raises:
            RefusedError: 400 if the body is not a JSON object.
        """
        return json_object(await self.read())

    async def read(self) -> bytes:
        """Return the request body, read as fast as the line carries it."""
        if self.service.line is None:
            return await self.request.read()
        if self._content is None:
            self._content = await self.service.line.receive(self.request)
        return self._content


Handler = Callable[[Exchange], Awaitable[web.Response]]
"""Handler of a route."""


def json_object(raw: bytes) -> dict[str, object]:
    """Parse a JSON object; an empty body is an empty object.

    Raises:
        RefusedError: 400 if it is not a JSON object.
    """
    try:
        value = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        raise RefusedError(_BAD_REQUEST, "Invalid request body: not valid JSON") from None
    if not isinstance(value, dict):
        raise RefusedError(_BAD_REQUEST, "Invalid request body: a JSON object is expected")
    return value


def route(
    service: Service, site: Site, name: str, handler: Handler
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return the aiohttp handler of a route: applies faults, calls `handler`, records the request."""

    async def handle(request: web.Request) -> web.StreamResponse:
        line = service.line
        latency = 0.0 if line is None else line.latency(name)
        if line is not None:
            await line.sleep(latency / 2)
        at = service.clock.now()
        status: int | None = None
        if name in _KEYLESS_ROUTES:
            _record_leaks(service, request, name, at)
        exchange = Exchange(service, site, request, Call(name, request.method, request.path, site.persona.name, {}))
        try:
            response = await _respond(exchange, handler)
            status = None if response is None else response.status
            if line is not None:
                await line.sleep(latency / 2)
                # A body that was streamed by a fault has been sent.
                if isinstance(response, web.Response):
                    return await line.send(request, response)
            # On a connection that was closed on purpose, aiohttp writes this to nowhere.
            return web.Response() if response is None else response
        finally:
            service.counts[name] += 1
            faults = tuple(type(fault).__name__ for fault in exchange.faults)
            service.requests.append(
                RequestRecord(
                    request.method, request.path[:_MAX_PATH_CHARS], status, at, name, site.persona.name, faults
                )
            )

    return handle


def _record_leaks(service: Service, request: web.Request, name: str, at: float) -> None:
    for header in _KEY_HEADERS:
        if header in request.headers:
            service.leaks.append(Leak(request.method, request.path, name, header, at))


async def _respond(exchange: Exchange, handler: Handler) -> web.StreamResponse | None:
    """Apply the faults and call the handler; return None if the connection was closed instead."""
    service, name = exchange.service, exchange.call.route
    drawn = service.draw_chaos(name)
    if not service.faults.armed(name) and drawn is None:
        return await _call(exchange, handler)
    if service.faults.reads_first(name):
        exchange.call = attrs.evolve(exchange.call, body=await _json_or_empty(exchange))
    # Scripted faults take precedence over random ones.
    faults = exchange.faults = service.faults.take(exchange.call) or (() if drawn is None else (drawn,))
    for delay in faults:
        if isinstance(delay, kinds.Delay) and not delay.accepted:
            await exchange.service.clock.sleep(delay.seconds)
    early = await _before_handler(exchange)
    if early is not None:
        return None if isinstance(early, kinds.Drop | kinds.DropAfterReading) else early
    response = await _call(exchange, handler)
    for delay in faults:
        if isinstance(delay, kinds.Delay) and delay.accepted:
            await exchange.service.clock.sleep(delay.seconds)
    return await _after_handler(exchange, response)


async def _call(exchange: Exchange, handler: Handler) -> web.Response:
    """Call the handler; its exceptions become error responses of the persona."""
    persona = exchange.site.persona
    try:
        return await handler(exchange)
    except RefusedError as refused:
        response = persona.error(refused.status, refused.message)
        response.headers.update(refused.headers)
        return response
    except InputError as error:
        return persona.error(_BAD_REQUEST, str(error))
    except web.HTTPException as error:
        return persona.error(error.status)


async def _json_or_empty(exchange: Exchange) -> Mapping[str, object]:
    if exchange.request.content_type != "application/json":
        return {}
    try:
        return json_object(await exchange.read())
    except (RefusedError, web.HTTPException):
        return {}


async def _before_handler(exchange: Exchange) -> web.Response | kinds.Drop | kinds.DropAfterReading | None:
    """Apply the faults that replace the handler: the response, the fault that closed the connection, or None."""
    request = exchange.request
    for fault in exchange.faults:
        if isinstance(fault, kinds.Drop):
            _close_connection(request, reset=fault.reset)
            return fault
        if isinstance(fault, kinds.DropAfterReading):
            await exchange.read()
            _close_connection(request, reset=fault.reset)
            return fault
        if isinstance(fault, kinds.StatusLag404) and exchange.call.route == "result":
            return exchange.site.persona.error(_NOT_FOUND)
        if isinstance(fault, kinds.Status | kinds.Html502 | kinds.EnvelopeCode) and not fault.accepted:
            await exchange.read()
            return _error_response(exchange, fault)
    return None


async def _after_handler(exchange: Exchange, response: web.Response) -> web.StreamResponse | None:
    """Apply the faults that change the response; return None if the connection was closed instead."""
    for fault in exchange.faults:
        if isinstance(fault, kinds.AcceptThenDrop):
            _close_connection(exchange.request, reset=fault.reset)
            return None
        if isinstance(fault, kinds.Status | kinds.Html502 | kinds.EnvelopeCode) and fault.accepted:
            return _error_response(exchange, fault)
        if isinstance(fault, kinds.TruncatedJson):
            body = _body_bytes(response)
            return web.Response(body=body[: len(body) // 2], status=response.status, content_type="application/json")
        if isinstance(fault, kinds.Unwrapped | kinds.DataList | kinds.DataItems):
            return _rewrapped(response, fault)
        if isinstance(fault, kinds.SlowBody | kinds.CutBody):
            return await _stream(exchange, response, fault)
    return response


def _error_response(exchange: Exchange, fault: kinds.Status | kinds.Html502 | kinds.EnvelopeCode) -> web.Response:
    if isinstance(fault, kinds.EnvelopeCode):
        return reply({"code": fault.code, "message": fault.message})
    if isinstance(fault, kinds.Html502):
        head = "<head><title>502 Bad Gateway</title></head>"
        page = f"<html>\r\n{head}\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
        return web.Response(status=502, text=page, content_type="text/html")
    if fault.body is None:
        response = exchange.site.persona.error(fault.status, fault.message)
    elif isinstance(fault.body, str):
        response = web.Response(status=fault.status, text=fault.body)
    else:
        response = reply(fault.body, fault.status)
    if fault.retry_after is not None:
        response.headers["Retry-After"] = str(fault.retry_after)
    return response


def _rewrapped(response: web.Response, fault: kinds.Wrapping) -> web.Response:
    """Return the same data in another envelope; errors stay unchanged."""
    envelope = json_object(_body_bytes(response))
    if response.status != _OK or "data" not in envelope:
        return response
    data = envelope["data"]
    if isinstance(fault, kinds.Unwrapped):
        return reply(data)
    return reply(envelope | {"data": [data] if isinstance(fault, kinds.DataList) else {"items": data}})


def _body_bytes(response: web.Response) -> bytes:
    body = response.body
    return bytes(body) if isinstance(body, bytes | bytearray) else b""


async def _stream(
    exchange: Exchange, response: web.Response, fault: kinds.SlowBody | kinds.CutBody
) -> web.StreamResponse | None:
    """Send the body slowly or partially; return None if the connection was closed."""
    request, body = exchange.request, _body_bytes(response)
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = len(body)
    await stream.prepare(request)
    if isinstance(fault, kinds.CutBody):
        transport = request.transport
        if transport is not None:
            # Closing discards the write buffer, so make `write` wait until it is empty.
            transport.set_write_buffer_limits(0)
        await stream.write(body[: fault.after_bytes])
        _close_connection(request, reset=False)
        return None
    pieces = max(1, min(fault.pieces, len(body)))
    for number in range(pieces):
        await exchange.service.clock.sleep(fault.seconds / pieces)
        await stream.write(body[len(body) * number // pieces : len(body) * (number + 1) // pieces])
    await stream.write_eof()
    return stream


def _close_connection(request: web.Request, *, reset: bool) -> None:
    transport = request.transport
    if transport is None:
        return
    if reset:
        peer = transport.get_extra_info("socket")
        if peer is not None:
            with contextlib.suppress(OSError, AttributeError):
                # With a linger time of 0 the kernel sends a reset instead of a FIN.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # uvloop's transports have `abort` but are no `WriteTransport`.
    cast("asyncio.WriteTransport", transport).abort()
