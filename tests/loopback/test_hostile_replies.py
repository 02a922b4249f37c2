"""Replies that would fill memory or disk, or end nothing: each ends clearly, within its bound."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from kling_async import AiohttpTransport, ConfigurationError, KlingSession, ReplyTooLargeError, Spent
from kling_async._core.http import Effect, HttpRequest
from kling_async._core.submission import Uncertain, judge
from kling_async.emulator import Emulator, faults
from kling_async.errors import ConnectionLostError, TransportError
from support.pictures import png
from support.sockets import Handler, endless, head_of, opened, serving

pytestmark = pytest.mark.anyio

LIMIT = 2**20
HEAD = b"HTTP/1.1 200 OK\r\n"
ZEROS = bytes(2**18)


def raw_deflate(body: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(body) + encoder.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without a header": ("deflate", raw_deflate),
}


def sent(body: bytes, headers: bytes = b"", *, each: int = 2**16) -> Handler:
    """Return a handler that sends a body of a known length, in pieces."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(HEAD + headers + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), each):
            writer.write(body[start : start + each])
            await writer.drain()

    return handler


def bomb(kind: str) -> Handler:
    """Return a handler that sends a body of 64 MiB in 64 KiB."""
    name, encode = ENCODERS[kind]
    return sent(encode(bytes(64 * 2**20)), b"Content-Encoding: %b\r\n" % name.encode())


TOO_LARGE: dict[str, Callable[[], Handler]] = {
    **{f"bomb of {kind}": partial(bomb, kind) for kind in ENCODERS},
    "announced": lambda: sent(bytes(LIMIT + 1)),
    "announced and never sent": lambda: endless(b"Content-Length: 99999999999999\r\n", b""),
    "endless": lambda: endless(b"", ZEROS),
    "endless chunks": lambda: endless(b"Transfer-Encoding: chunked\r\n", ZEROS),
    "endless small chunks": lambda: endless(b"Transfer-Encoding: chunked\r\n", bytes(500)),
    "endless gzip": lambda: endless(b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", *gzip_blocks(ZEROS)),
}
UNDECODABLE: dict[str, Callable[[], Handler]] = {
    "endless empty blocks": lambda: endless(
        b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", *gzip_blocks(b"")
    ),
    "corrupt": lambda: sent(b"\x1f\x8bnope" * 10, b"Content-Encoding: gzip\r\n"),
    "cut": lambda: sent(gzip.compress(b"{}" * 1000)[:-9], b"Content-Encoding: gzip\r\n"),
    "more after its end": lambda: sent(gzip.compress(b"{}") + b"more", b"Content-Encoding: gzip\r\n"),
    "more after its end, later": lambda: sent(gzip.compress(b"{}") + b"more", b"Content-Encoding: gzip\r\n", each=1),
}


def gzip_blocks(content: bytes) -> tuple[bytes, bytes]:
    """Return a block of a gzip body that may be repeated for ever, and what the body begins with."""
    encoder = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    begin = encoder.compress(content) + encoder.flush(zlib.Z_FULL_FLUSH)
    # An empty stored block is what a flush writes.
    block = encoder.compress(content) + encoder.flush(zlib.Z_FULL_FLUSH) if content else b"\0\0\0\xff\xff" * 1000
    return block, begin


def request(url: str, effect: Effect = Effect.READ) -> HttpRequest:
    return HttpRequest(method="POST", url=f"{url}/api", effect=effect, body=b"{}")


async def failing(handler: Handler, effect: Effect = Effect.READ, **options: Any) -> tuple[TransportError, int]:
    """Return the error of a request, and the greatest number of bytes that were allocated meanwhile."""
    async with serving(handler) as url, opened(AiohttpTransport(max_reply_bytes=LIMIT, **options)) as transport:
        tracemalloc.start()
        try:
            with pytest.raises(TransportError) as caught:
                await transport.send(request(url, effect))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return caught.value, peak


@pytest.mark.promise(3)
@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_reply_that_is_too_large_takes_little_memory(make: Callable[[], Handler]) -> None:
    error, peak = await failing(make())
    assert type(error) is ReplyTooLargeError
    assert "larger than allowed (more than 1,048,576 bytes" in str(error)
    assert error.spent is Spent.NO
    assert not error.transient
    assert peak < 4 * LIMIT


@pytest.mark.parametrize("make", UNDECODABLE.values(), ids=UNDECODABLE.keys())
async def test_reply_that_cannot_be_decoded_is_a_lost_one(make: Callable[[], Handler]) -> None:
    error, peak = await failing(make())
    assert type(error) is ConnectionLostError
    assert "the encoded body" in str(error) or "bytes follow" in str(error)
    assert peak < 4 * LIMIT


@pytest.mark.promise(1)
@pytest.mark.parametrize("make", [TOO_LARGE["bomb of gzip"], UNDECODABLE["cut"]], ids=["too large", "cut"])
async def test_paid_request_with_such_a_reply_is_in_doubt(make: Callable[[], Handler]) -> None:
    error, _ = await failing(make(), Effect.PAID)
    assert isinstance(judge(error), Uncertain)
    assert error.spent is Spent.UNKNOWN


@pytest.mark.parametrize("each", [1, 7, 2**16])
@pytest.mark.parametrize("kind", ENCODERS)
async def test_encoded_reply_is_decoded(kind: str, each: int) -> None:
    name, encode = ENCODERS[kind]
    body = b'{"code": 200}' + random.Random(1).randbytes(2000)
    handler = sent(encode(body), b"Content-Encoding: %b\r\n" % name.encode(), each=each)
    async with serving(handler) as url, opened(AiohttpTransport()) as transport:
        assert (await transport.send(request(url))).body == body


@pytest.mark.parametrize("body", [b"", bytes(LIMIT)], ids=["empty", "as large as allowed"])
@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_reply_within_its_bound_is_read(encoding: str | None, body: bytes) -> None:
    headers = b"" if encoding is None else b"Content-Encoding: gzip\r\n"
    handler = sent(gzip.compress(body) if encoding and body else body, headers)
    async with serving(handler) as url, opened(AiohttpTransport(max_reply_bytes=LIMIT)) as transport:
        assert (await transport.send(request(url))).body == body


async def test_only_encodings_that_can_be_decoded_are_asked_for() -> None:
    asked: list[str | None] = []

    async def handler(got: web.BaseRequest) -> web.Response:
        asked.append(got.headers.get("Accept-Encoding"))
        return web.Response()

    async with RawTestServer(handler) as server, aiohttp.ClientSession() as given:
        for transport in (AiohttpTransport(), AiohttpTransport(client_session=given)):
            async with opened(transport):
                await transport.send(request(str(server.make_url("/"))))
    assert asked == ["gzip, deflate"] * 2


async def test_client_session_of_ones_own_is_bounded_too() -> None:
    async with aiohttp.ClientSession() as given:
        error, peak = await failing(TOO_LARGE["bomb of gzip"](), client_session=given)
    assert type(error) is ReplyTooLargeError
    assert peak < 4 * LIMIT


@pytest.mark.parametrize("size", [0, -1])
def test_bound_is_positive(size: int) -> None:
    with pytest.raises(ConfigurationError, match="max_reply_bytes: expected at least 1"):
        KlingSession("key", max_reply_bytes=size)


# ---- lists ----


@contextlib.asynccontextmanager
async def crowded() -> AsyncIterator[tuple[Emulator, KlingSession, list[str]]]:
    """Yield an account whose 50 predictions are too large for one page; a page of 20 is not."""
    async with (
        Emulator(speed=500, profile="tiny", level="gold", seed=7, input_echo=True) as emulator,
        KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            clock=emulator.clock,
            level="gold",
            images="inline",
            max_reply_bytes=80_000,
        ) as kling,
    ):
        ids = [(await kling.submit(prompt=f"{number}", image=png())).id for number in range(50)]
        yield emulator, kling, ids


async def test_page_that_is_too_large_is_asked_for_in_smaller_pages() -> None:
    async with crowded() as (_, kling, ids):
        assert [prediction.id async for prediction in kling.predictions()] == ids[::-1]


@pytest.mark.promise(1)
async def test_doubt_is_settled_by_smaller_pages() -> None:
    async with crowded() as (emulator, kling, ids):
        emulator.faults.add("submit", faults.AcceptThenDrop())
        prediction = await kling.generate(prompt="lost", image=png())
        assert prediction.id not in ids
        assert len(emulator.charges()) == 51


async def test_prediction_whose_record_is_too_large_is_named() -> None:
    """It is not asked for again, since the reply would be the same."""
    asked = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await sent(bytes(1001))(reader, writer)

    async with serving(handler) as url, KlingSession("key", base_url=url, max_reply_bytes=1000) as kling:
        with pytest.raises(ReplyTooLargeError, match=r"more than 1,000 bytes.*prediction p1.*max_reply_bytes"):
            await kling.get("p1")
    assert asked == 1
