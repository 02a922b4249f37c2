"""Plain HTTP client and fixtures for the emulator tests; nothing of the SDK is used."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs
import pytest
from blockbuster import blockbuster_ctx

from kling_async.emulator import Emulator, ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PRO = "kwaivgi/kling-v2.1-i2v-pro"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    with blockbuster_ctx("kling_async.emulator"):
        yield


def make_png(width: int = 320, height: int = 300, shade: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes((x * 255 // width, y * 255 // height, shade)[c] for x in range(width) for c in range(3))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PngMaker = Callable[..., bytes]
PNG = make_png()


@attrs.define
class Reply:
    status: int
    body: Any
    headers: Any

    @property
    def data(self) -> Any:
        assert self.status == 200, self
        assert self.body["code"] == 200, self
        return self.body["data"]


@attrs.define
class Api:
    emu: Emulator
    http: aiohttp.ClientSession
    key: str
    base: str

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        url = path if path.startswith("http") else self.base + path
        async with self.http.request(method, url, headers=headers, **options) as response:
            raw = await response.read()
            body = await response.json() if response.content_type == "application/json" else raw
            return Reply(response.status, body, response.headers)

    async def post(self, path: str, body: Any = None, **options: Any) -> Reply:
        return await self.call("POST", path, json=body, **options)

    async def submit(self, model: str = PRO, query: str = "", **inputs: Any) -> Reply:
        image = {"image": f"{self.base}/nothing.png"} if "image" not in inputs else {}
        return await self.post(f"/api/v3/{model}{query}", {"prompt": "a cat", **image, **inputs})

    async def result(self, prediction_id: str) -> Reply:
        return await self.call("GET", f"/api/v3/predictions/{prediction_id}/result")

    async def ticket(self, content: bytes = PNG, filename: str = "a.png") -> Any:
        body = {"filename": filename, "size": len(content), "content_type": "image/png"}
        return (await self.post("/api/v3/media/uploads", body)).data

    async def upload(self, content: bytes = PNG, filename: str = "a.png") -> str:
        ticket = await self.ticket(content, filename)
        upload = ticket["upload"]
        async with self.http.put(upload["url"], data=io.BytesIO(content), headers=upload["headers"]) as response:
            assert response.status == 200
        return str(ticket["download_url"])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def settings() -> dict[str, Any]:
    """Options of the emulator; override with `@pytest.mark.parametrize("settings", ...)`."""
    return {}


@pytest.fixture
async def emu(clock: ManualClock, settings: dict[str, Any]) -> AsyncIterator[Emulator]:
    options: dict[str, Any] = {"clock": clock, "profile": "tiny", "timing": 60.0, "seed": 1, **settings}
    async with Emulator(**options) as emulator:
        yield emulator


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def api(emu: Emulator, http: aiohttp.ClientSession) -> Api:
    return Api(emu, http, emu.api_key, emu.base_url)


@pytest.fixture
def gptproto(emu: Emulator, http: aiohttp.ClientSession) -> Api:
    """The GPTProto persona."""
    return Api(emu, http, emu.gptproto_key, emu.gptproto_url)


@pytest.fixture
async def image(api: Api) -> str:
    return await api.upload()


@pytest.fixture
def png() -> PngMaker:
    """Function that creates a PNG of a given size."""
    return make_png
