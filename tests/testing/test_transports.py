"""`check_transport`: the built-in transport passes, each kind of defect is reported."""

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


async def test_builtin_transport_satisfies_contract() -> None:
    await check_transport(lambda: AiohttpTransport(trust_env=False))


class Wrapped:
    """Delegates to the built-in transport; the classes below break it."""

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


class Retries(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except ConnectionLostError:
            return await super().send(request)


class RetriesAfter500(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        return await super().send(request) if response.status == 500 else response


class RaisesForStatus(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        if response.status == 500:
            raise ConnectionLostError("status 500")
        return response


class FollowsRedirects(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        if response.status == 307:
            return await super().send(attrs.evolve(request, url=urljoin(request.url, response.headers["location"])))
        return response


class TitleCaseHeaders(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        response = await super().send(request)
        return attrs.evolve(response, headers={name.title(): value for name, value in response.headers.items()})


class DropsBody(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        return await super().send(attrs.evolve(request, body=None))


class DropsKey(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        return await super().send(attrs.evolve(request, headers={"content-type": "application/json"}))


class ReportsNotSent(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except ConnectionLostError:
            raise ConnectFailedError("broke") from None


class ReportsSent(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except ConnectFailedError:
            raise ConnectionLostError("refused") from None


class RaisesOtherError(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except AnyTransportError as error:
            raise OSError("broke") from error


class ShowsKey(Wrapped):
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


class ConvertsCancellation(Wrapped):
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


class EndsBrokenStream(Wrapped):
    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        async with self.inner.stream(request) as response:
            yield Half(response)


class RaisesOtherErrorInStream(Wrapped):
    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        try:
            async with self.inner.stream(request) as response:
                yield response
        except ConnectionLostError:
            raise OSError("broke") from None


class InventsResponse(Wrapped):
    async def send(self, request: HttpRequest) -> HttpResponse:
        try:
            return await super().send(request)
        except AnyTransportError:
            return json_response({}, status=599)


class SkipsChunk(Wrapped):
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


async def test_delegating_transport_satisfies_contract() -> None:
    await check_transport(Wrapped)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SendsTwice, "one request was sent 2 times"),
        (Retries, "whose connection broke before a response was sent 2 times"),
        (RetriesAfter500, "got status 500 was sent 2 times"),
        (RaisesForStatus, "status 500 is a response"),
        (FollowsRedirects, "expected status 307, got 200"),
        (TitleCaseHeaders, "expected header names in lower case"),
        (DropsBody, "the body arrived as b''"),
        (DropsKey, "Authorization did not arrive"),
        (ReportsNotSent, "expected ConnectionLostError, since it was sent, got ConnectFailedError"),
        (ReportsSent, "expected ConnectFailedError, since nothing was sent, got ConnectionLostError"),
        (RaisesOtherError, "expected TransportError, got OSError"),
        (ShowsKey, "contains the key"),
        (SwallowsCancellation, "did not end as cancelled"),
        (ConvertsCancellation, "did not end as cancelled"),
        (EndsBrokenStream, "ended as if it were complete"),
        (RaisesOtherErrorInStream, "a broken stream: expected TransportError, got OSError"),
        (InventsResponse, "a refused connection: expected TransportError, got HttpResponse"),
        (SkipsChunk, "the body of a stream has"),
        (NeverCloses, "`aclose` after a response to `send` did not end"),
        (NeverReplies, "a response to `send` did not end"),
        (lambda: ScriptedTransport(lambda _: json_response({})), "the server received"),
    ],
)
async def test_check_transport_reports_defect(broken: Callable[[], Transport], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await check_transport(broken, seconds=1.0)
