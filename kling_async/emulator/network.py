"""Lines between a client and the emulator: latency by route, with jitter, and bandwidth.

    Emulator(network="wan")
    Emulator(network=Network({"submit": 0.5, "*": 0.2}, jitter=0.1, bandwidth=Bandwidth(up=2e6)))

Latency and transfers take time of the emulator's clock. Half of a route's latency passes before the request arrives,
half before its response does; bodies take longer, by their size. The limits of an account are those at arrival.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import attrs
from aiohttp import web

from .faults import ROUTES

if TYPE_CHECKING:
    import random

    from .clock import Clock

__all__ = ["NETWORKS", "Bandwidth", "Line", "Network", "NetworkName"]

_PIECE_BYTES: Final = 1 << 16
_OTHER_ROUTES: Final = "*"
_NETWORK_ROUTES: Final = ROUTES - {"webhook"} | {_OTHER_ROUTES}


@attrs.frozen
class Bandwidth:
    """Bytes per second that a line carries; not limited by default.

    Attributes:
        up: from the client, all connections together.
        down: to the client, all connections together.
        up_each: from the client, on one connection.
        down_each: to the client, on one connection.

    Raises:
        ValueError: if one is not positive.
    """

    up: float = attrs.field(default=math.inf, validator=attrs.validators.gt(0))
    down: float = attrs.field(default=math.inf, validator=attrs.validators.gt(0))
    up_each: float = attrs.field(default=math.inf, validator=attrs.validators.gt(0))
    down_each: float = attrs.field(default=math.inf, validator=attrs.validators.gt(0))


def _latencies(latency: Mapping[str, float] | float) -> Mapping[str, float]:
    return dict(latency) if isinstance(latency, Mapping) else {_OTHER_ROUTES: latency}


def _bandwidth(bandwidth: Bandwidth | float) -> Bandwidth:
    return bandwidth if isinstance(bandwidth, Bandwidth) else Bandwidth(bandwidth, bandwidth)


def _check_latency(_: object, attribute: attrs.Attribute[Mapping[str, float]], latency: Mapping[str, float]) -> None:
    unknown = sorted(set(latency) - _NETWORK_ROUTES)
    if unknown:
        raise ValueError(
            f"{attribute.name}: expected any of {', '.join(sorted(_NETWORK_ROUTES))}, got {', '.join(unknown)}"
        )
    if not all(0 <= seconds < math.inf for seconds in latency.values()):
        raise ValueError(f"{attribute.name}: expected seconds of 0 or more, got {dict(latency)}")


@attrs.frozen
class Network:
    """A line.

    Attributes:
        latency: seconds from a request to its response, without those of the bodies, by route as in `faults.ROUTES`;
            `"*"` is every other route. A number is for all routes.
        jitter: share of a latency by which it varies at random in both directions, 0 to 1.
        bandwidth: a `Bandwidth`, or bytes per second that all connections together carry in each direction.

    Raises:
        ValueError: if a route is unknown or a number is out of range.
    """

    latency: Mapping[str, float] = attrs.field(factory=dict, converter=_latencies, validator=_check_latency)
    jitter: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    bandwidth: Bandwidth = attrs.field(factory=Bandwidth, converter=_bandwidth)


_WAN: Final = Network(
    {
        "upload_ticket": 0.3,
        "upload_put": 1.0,
        "upload_binary": 1.3,
        "submit": 0.5,
        "result": 0.2,
        "output": 2.0,
        "*": 0.3,
    },
    jitter=0.2,
    bandwidth=Bandwidth(up=125e6, down=125e6, up_each=12.5e6, down_each=12.5e6),
)

NetworkName = Literal["wan", "thin"]

NETWORKS: Final[Mapping[NetworkName, Network]] = {
    "wan": _WAN,
    "thin": attrs.evolve(_WAN, bandwidth=Bandwidth(up=2e6, down=10e6)),
}
"""Lines by name. `wan` is a server far from the service: latencies as measured, 1 Gbit/s, a tenth of it on each
connection. `thin` has the same latencies, and sends 2 MB/s and receives 10 MB/s."""


class _Pipe:
    """One direction of a line, through which bytes pass one after another at a constant rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = -math.inf

    def passed_at(self, now: float, size: int) -> float:
        """Return the time at which bytes that arrive now have passed."""
        self._free_at = max(now, self._free_at) + size / self._rate
        return self._free_at


class Flow:
    """The bodies of one connection in one direction.

    Args:
        clock: the emulator's clock.
        together: what all connections share.
        rate: bytes per second of this connection alone.
    """

    def __init__(self, clock: Clock, together: _Pipe, rate: float) -> None:
        self._clock = clock
        self._together = together
        self._alone = _Pipe(rate)

    async def carry(self, size: int) -> None:
        """Return when `size` bytes have passed, in pieces that take turns with those of other connections."""
        for start in range(0, size, _PIECE_BYTES):
            piece, now = min(_PIECE_BYTES, size - start), self._clock.monotonic()
            seconds = max(self._together.passed_at(now, piece), self._alone.passed_at(now, piece)) - now
            if seconds > 0:
                await self._clock.sleep(seconds)


class Line:
    """The line of an emulator.

    Args:
        network: its latencies and bandwidth.
        clock: the emulator's clock.
        rng: draws the jitter.
    """

    def __init__(self, network: Network, clock: Clock, rng: random.Random) -> None:
        self.network = network
        self._clock = clock
        self._rng = rng
        self._up = _Pipe(network.bandwidth.up)
        self._down = _Pipe(network.bandwidth.down)

    def latency(self, route: str) -> float:
        """Draw the seconds from a request to its response."""
        seconds = self.network.latency.get(route, self.network.latency.get(_OTHER_ROUTES, 0.0))
        return seconds * (1 + self.network.jitter * self._rng.uniform(-1, 1))

    def upstream(self) -> Flow:
        """Return the way of one request's body."""
        return Flow(self._clock, self._up, self.network.bandwidth.up_each)

    async def sleep(self, seconds: float) -> None:
        """Let seconds of the clock pass."""
        if seconds > 0:
            await self._clock.sleep(seconds)

    async def receive(self, request: web.Request) -> bytes:
        """Return the body of a request, read as fast as the line carries it.

        Raises:
            web.HTTPRequestEntityTooLarge: if it is larger than the emulator accepts.
        """
        if (request.content_length or 0) > _PIECE_BYTES:
            _limit_socket_buffer(request)
        flow, body = self.upstream(), bytearray()
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > request.client_max_size:
                raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=len(body))
            await flow.carry(len(piece))
        return bytes(body)

    async def send(self, request: web.Request, response: web.Response) -> web.StreamResponse:
        """Send a response as fast as the line carries it; a short one is returned when it is to be sent at once."""
        body = response.body
        flow = Flow(self._clock, self._down, self.network.bandwidth.down_each)
        if not isinstance(body, bytes) or len(body) <= _PIECE_BYTES or request.method == "HEAD":
            await flow.carry(len(body) if isinstance(body, bytes) else 0)
            return response
        stream = web.StreamResponse(status=response.status, headers=response.headers)
        stream.content_length = len(body)
        await stream.prepare(request)
        for start in range(0, len(body), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            await flow.carry(len(piece))
            await stream.write(piece)
        await stream.write_eof()
        return stream


def _limit_socket_buffer(request: web.Request) -> None:
    """Let the kernel take little more than what was read, as a slow line would."""
    peer = None if request.transport is None else request.transport.get_extra_info("socket")
    if peer is not None:
        with contextlib.suppress(OSError, AttributeError):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
