"""The check of transports: ours passes, and each broken one is told apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import attrs
import pytest

from kling_async import ConnectFailedError, ConnectionLostError, HttpRequest, HttpResponse
from kling_async import TransportError as AnyTransportError
from kling_async._core.transport import StreamedResponse, Transport
from kling_async._http.transport import AiohttpTransport
from kling_async.testing import ScriptedTransport, check_transport, json_response

pytestmark = pytest.mark.anyio


async def test_ours_passes() -> None:
    await check_transport(lambda: AiohttpTransport(trust_env=False))


class Wrapped:
    """Ours, to be broken below."""

    def __init__(self) -> None:
        self.inner = AiohttpTransport(trust_env=False)

    async def send(self, request: HttpRequest) -> HttpResponse:
        return await self.inner.send(request)

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        async with self.inner.stream(request) as response:
            yield response

    async def aclose(self) -> None:
        await self.inner.aclose()


class SendsTwice(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        await super().send(request)
        return await super().send(request)


class TriesAgain(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except ConnectionLostError:
            return await super().send(request)


class TriesAgainAfter500(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        return await super().send(request) if response.status == 500 else response


class RaisesForStatus(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        if response.status == 500:
            raise ConnectionLostError("status 500")
        return response


class Follows(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        if response.status == 307:
            return await super().send(attrs.evolve(request, url=urljoin(request.url, response.headers["location"])))
        return response


class UpperCase(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        return attrs.evolve(response, headers={name.title(): value for name, value in response.headers.items()})


class DropsTheBody(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        return await super().send(attrs.evolve(request, body=None))


class DropsTheKey(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        return await super().send(attrs.evolve(request, headers={"content-type": "application/json"}))


class SaysNotSent(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except ConnectionLostError:
            raise ConnectFailedError("broke") from None


class SaysSent(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except ConnectFailedError:
            raise ConnectionLostError("refused") from None


class RaisesItsOwn(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except AnyTransportError as error:
            raise OSError("broke") from error


class ShowsTheKey(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except ConnectFailedError:
            raise ConnectFailedError("refused") from OSError(dict(request.headers))


class SwallowsCancellation(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except asyncio.CancelledError:
            return json_response({})


class TurnsCancellationIntoAnError(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except asyncio.CancelledError:
            raise ConnectionLostError("cancelled") from None


class Half:
    def __init__(self, inner: StreamedResponse) -> None:
        self.inner, self.status, self.headers = inner, inner.status, inner.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.inner.chunks():
                yield chunk
        except ConnectionLostError:
            return


class EndsAStreamThatBreaks(Wrapped):
    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        async with self.inner.stream(request) as response:
            yield Half(response)


class RaisesItsOwnInAStream(Wrapped):
    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        try:
            async with self.inner.stream(request) as response:
                yield response
        except ConnectionLostError:
            raise OSError("broke") from None


class MakesUpAReply(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except AnyTransportError:
            return json_response({}, status=599)


class StreamsLess(Wrapped):
    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        async with self.inner.stream(request) as response:
            await anext(aiter(response.chunks()))
            yield response


class NeverCloses(Wrapped):
    async def aclose(self) -> None:
        await super().aclose()
        await asyncio.Event().wait()


class NeverReplies(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError(request)


async def test_the_one_that_is_broken_below_passes() -> None:
    await check_transport(Wrapped)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (SendsTwice, "one request was sent 2 times"),
        (TriesAgain, "whose connection broke before a reply was sent 2 times"),
        (TriesAgainAfter500, "got status 500 was sent 2 times"),
        (RaisesForStatus, "status 500 is a reply"),
        (Follows, "status 307 came as 200"),
        (UpperCase, "in lower case"),
        (DropsTheBody, "the body came as b''"),
        (DropsTheKey, "Authorization did not come"),
        (SaysNotSent, "is a ConnectionLostError, not a ConnectFailedError: it was sent"),
        (SaysSent, "is a ConnectFailedError, not a ConnectionLostError: nothing was sent"),
        (RaisesItsOwn, "is a TransportError, not a OSError"),
        (ShowsTheKey, "shows the key"),
        (SwallowsCancellation, "did not end as cancelled"),
        (TurnsCancellationIntoAnError, "did not end as cancelled"),
        (EndsAStreamThatBreaks, "ended as if it were complete"),
        (RaisesItsOwnInAStream, "a stream that broke is a TransportError, not a OSError"),
        (MakesUpAReply, "a refused connection is a TransportError, not HttpResponse"),
        (StreamsLess, "the body of a stream came as"),
        (NeverCloses, "`aclose` after a reply to `send` did not end"),
        (NeverReplies, "a reply to `send` did not end"),
        (lambda: ScriptedTransport(lambda _: json_response({})), "the request came as"),
    ],
)
async def test_a_broken_one_is_told_apart(broken: Callable[[], Transport], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        await check_transport(broken, seconds=1.0)
