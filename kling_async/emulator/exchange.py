"""One request and its answer: faults before and after, the key, the record."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

import attrs
from aiohttp import web

from kling_async.emulator import faults as kinds

from .catalogue import InputError
from .faults import Call, Fault
from .service import Leak, RequestRecord, Service, Site
from .wire import reply

if TYPE_CHECKING:
    import asyncio

    from .accounts import Account

__all__ = ["Exchange", "Handler", "RefusedError", "json_object", "route"]

_KEYLESS: Final = frozenset({"upload_put", "upload_get", "output"})
_KEY_HEADERS: Final = ("Authorization", "X-API-Key")
_OK: Final = 200
_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404


class RefusedError(Exception):
    """The request is answered with an error.

    Attributes:
        status: HTTP status.
        message: text; None takes a usual one.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, message: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@attrs.define(eq=False)
class Exchange:
    """A request on its way.

    Attributes:
        service: the state behind the routes.
        site: the persona that was called.
        request: what came in.
        call: what rules are matched against.
        taken: the faults that apply.
    """

    service: Service
    site: Site
    request: web.Request
    call: Call
    taken: tuple[Fault, ...] = ()

    @property
    def now(self) -> float:
        """Unix seconds on the emulator's clock."""
        return self.service.clock.now()

    def account(self) -> Account:
        """The account of the key that was sent.

        Raises:
            RefusedError: 401, when there is none.
        """
        key = self.site.persona.key(self.request.headers.get("Authorization", ""))
        account = self.service.accounts.get(key)
        if account is None:
            raise RefusedError(_UNAUTHORIZED)
        return account

    async def body(self) -> dict[str, object]:
        """The JSON object that was sent.

        Raises:
            RefusedError: 400, when it is not one.
        """
        return json_object(await self.request.read())


Handler = Callable[[Exchange], Awaitable[web.Response]]
"""What answers a route."""


def json_object(raw: bytes) -> dict[str, object]:
    """A JSON object; an empty body is an empty one.

    Raises:
        RefusedError: 400, when it is anything else.
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
    """An aiohttp handler for a route."""

    async def handle(request: web.Request) -> web.StreamResponse:
        at = service.clock.now()
        status: int | None = None
        if name in _KEYLESS:
            _watch_for_keys(service, request, name, at)
        exchange = Exchange(service, site, request, Call(name, request.method, request.path, site.persona.name, {}))
        try:
            response = await _answer(exchange, handler)
            status = None if response is None else response.status
            # What is written to a connection that was closed on purpose goes nowhere.
            return web.Response() if response is None else response
        finally:
            service.counts[name] += 1
            met = tuple(type(fault).__name__ for fault in exchange.taken)
            service.requests.append(
                RequestRecord(request.method, request.path, status, at, name, site.persona.name, met)
            )

    return handle


def _watch_for_keys(service: Service, request: web.Request, name: str, at: float) -> None:
    for header in _KEY_HEADERS:
        if header in request.headers:
            service.leaks.append(Leak(request.method, request.path, name, header, at))


async def _answer(exchange: Exchange, handler: Handler) -> web.StreamResponse | None:
    """The answer, or None when the connection was closed instead."""
    request, service, name = exchange.request, exchange.service, exchange.call.route
    drawn = service.chance(name)
    if not service.faults.armed(name) and drawn is None:
        return await _handled(exchange, handler)
    if service.faults.reads_first(name):
        exchange.call = attrs.evolve(exchange.call, body=await _peek(request))
    # What was scripted goes before what was drawn.
    taken = exchange.taken = service.faults.take(exchange.call) or (() if drawn is None else (drawn,))
    for delay in taken:
        if isinstance(delay, kinds.Delay) and not delay.accepted:
            await exchange.service.clock.sleep(delay.seconds)
    early = await _instead(exchange)
    if early is not None:
        return None if isinstance(early, kinds.Drop | kinds.DropAfterReading) else early
    response = await _handled(exchange, handler)
    for delay in taken:
        if isinstance(delay, kinds.Delay) and delay.accepted:
            await exchange.service.clock.sleep(delay.seconds)
    return await _spoiled(exchange, response)


async def _handled(exchange: Exchange, handler: Handler) -> web.Response:
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


async def _peek(request: web.Request) -> Mapping[str, object]:
    if request.content_type != "application/json":
        return {}
    try:
        return json_object(await request.read())
    except (RefusedError, web.HTTPException):
        return {}


async def _instead(exchange: Exchange) -> web.Response | kinds.Drop | kinds.DropAfterReading | None:
    """What a fault does instead of handling the request; None when the request is handled."""
    request, taken = exchange.request, exchange.taken
    for fault in taken:
        if isinstance(fault, kinds.Drop):
            _hang_up(request, reset=fault.reset)
            return fault
        if isinstance(fault, kinds.DropAfterReading):
            await request.read()
            _hang_up(request, reset=fault.reset)
            return fault
        if isinstance(fault, kinds.StatusLag404) and exchange.call.route == "result":
            return exchange.site.persona.error(_NOT_FOUND)
        if isinstance(fault, kinds.Status | kinds.Html502 | kinds.EnvelopeCode) and not fault.accepted:
            await request.read()
            return _refusal(exchange, fault)
    return None


async def _spoiled(exchange: Exchange, response: web.Response) -> web.StreamResponse | None:
    """What a fault makes of the answer; None when the connection was closed instead."""
    for fault in exchange.taken:
        if isinstance(fault, kinds.AcceptThenDrop):
            _hang_up(exchange.request, reset=fault.reset)
            return None
        if isinstance(fault, kinds.Status | kinds.Html502 | kinds.EnvelopeCode) and fault.accepted:
            return _refusal(exchange, fault)
        if isinstance(fault, kinds.TruncatedJson):
            body = _bytes_of(response)
            return web.Response(body=body[: len(body) // 2], status=response.status, content_type="application/json")
        if isinstance(fault, kinds.Unwrapped | kinds.DataList | kinds.DataItems):
            return _wrapped(response, fault)
        if isinstance(fault, kinds.SlowBody | kinds.CutBody):
            return await _streamed(exchange, response, fault)
    return response


def _refusal(exchange: Exchange, fault: kinds.Status | kinds.Html502 | kinds.EnvelopeCode) -> web.Response:
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


def _wrapped(response: web.Response, fault: kinds.Wrapping) -> web.Response:
    """The same data in another envelope; errors stay as they are."""
    envelope = json_object(_bytes_of(response))
    if response.status != _OK or "data" not in envelope:
        return response
    data = envelope["data"]
    if isinstance(fault, kinds.Unwrapped):
        return reply(data)
    return reply(envelope | {"data": [data] if isinstance(fault, kinds.DataList) else {"items": data}})


def _bytes_of(response: web.Response) -> bytes:
    body = response.body
    return bytes(body) if isinstance(body, bytes | bytearray) else b""


async def _streamed(
    exchange: Exchange, response: web.Response, fault: kinds.SlowBody | kinds.CutBody
) -> web.StreamResponse | None:
    request, body = exchange.request, _bytes_of(response)
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = len(body)
    await stream.prepare(request)
    if isinstance(fault, kinds.CutBody):
        transport = request.transport
        if transport is not None:
            # Nothing may be left in the buffer, or closing would throw it away.
            transport.set_write_buffer_limits(0)
        await stream.write(body[: fault.after_bytes])
        _hang_up(request, reset=False)
        return None
    pieces = max(1, min(fault.pieces, len(body)))
    for number in range(pieces):
        await exchange.service.clock.sleep(fault.seconds / pieces)
        await stream.write(body[len(body) * number // pieces : len(body) * (number + 1) // pieces])
    await stream.write_eof()
    return stream


def _hang_up(request: web.Request, *, reset: bool) -> None:
    transport = request.transport
    if transport is None:
        return
    if reset:
        peer = transport.get_extra_info("socket")
        if peer is not None:
            with contextlib.suppress(OSError, AttributeError):
                # No lingering: the peer gets a reset and not an orderly end.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # uvloop's transports can be aborted and are no WriteTransport all the same.
    cast("asyncio.WriteTransport", transport).abort()
