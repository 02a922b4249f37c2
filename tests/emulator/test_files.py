"""Uploads, outputs, byte ranges, and API keys sent to URLs that take none."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import pytest
from yarl import URL

from kling_async.emulator.tiny import TINY_MP4
from support.patience import PATIENCE_S

if TYPE_CHECKING:
    from emulator.conftest import Api, PngMaker

    from kling_async.emulator import Emulator, ManualClock

pytestmark = pytest.mark.anyio


async def test_ticket_accepts_exactly_the_announced_upload(
    api: Api, emu: Emulator, http: aiohttp.ClientSession, png: PngMaker
) -> None:
    content = png()
    ticket = await api.ticket(content)
    assert (ticket["type"], ticket["filename"], ticket["size"]) == ("image", "a.png", len(content))
    assert ticket["upload"]["method"] == "PUT"
    assert ticket["upload"]["headers"] == {"Content-Type": "image/png", "If-None-Match": "*"}
    assert ticket["download_url"].startswith(f"{api.base}/media/images/")
    async with http.get(ticket["download_url"]) as response:
        assert response.status == 404

    async def put(
        data: bytes = content, url: str = ticket["upload"]["url"], headers: dict[str, str] | None = None
    ) -> int:
        async with http.put(url, data=data, headers=ticket["upload"]["headers"] | (headers or {})) as response:
            return response.status

    assert await put(url=ticket["upload"]["url"].partition("?")[0]) == 403
    assert await put(content + b"x") == 400
    assert await put(headers={"Content-Type": "image/jpeg"}) == 403
    assert not emu.leaks
    assert await put(headers={"Authorization": f"Bearer {api.key}"}) == 400
    [leak] = emu.leaks
    assert (leak.route, leak.header, leak.method) == ("upload_put", "Authorization", "PUT")
    assert api.key not in repr(leak)
    assert await put() == 200
    assert await put() == 412
    async with http.get(ticket["download_url"]) as response:
        assert (await response.read(), response.content_type) == (content, "image/png")


async def test_ticket_expires_after_an_hour(
    api: Api, http: aiohttp.ClientSession, clock: ManualClock, png: PngMaker
) -> None:
    ticket = await api.ticket(png())
    await clock.advance(3600)
    async with http.put(ticket["upload"]["url"], data=png(), headers=ticket["upload"]["headers"]) as response:
        assert response.status == 403
        assert "<Error>" in await response.text()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"size": 3}, 400, 400),
        ({"filename": "a.png"}, 400, 400),
        ({"filename": "a.png", "size": "3"}, 400, 400),
        ({"filename": "a.png", "size": 10**10}, 413, 413),
        ({"filename": "a.exe", "size": 3}, 200, 500),
    ],
)
async def test_ticket_route_refuses_invalid_bodies(api: Api, body: dict[str, Any], status: int, code: int) -> None:
    reply = await api.post("/api/v3/media/uploads", body)
    assert (reply.status, reply.body["code"]) == (status, code)


async def test_multipart_upload_can_be_submitted(api: Api, http: aiohttp.ClientSession, png: PngMaker) -> None:
    form = aiohttp.FormData({"note": "first"})
    form.add_field("file", png(), filename="b.PNG", content_type="application/octet-stream")
    data = (await api.call("POST", "/api/v3/media/upload/binary", data=form)).data
    assert data == {"type": "image", "download_url": data["download_url"], "filename": "b.PNG", "size": len(png())}
    async with http.get(data["download_url"]) as response:
        assert await response.read() == png()
    assert (await api.submit(image=data["download_url"])).status == 200


async def test_multipart_upload_refuses_invalid_forms(api: Api) -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"x", filename="a.exe")
    reply = await api.call("POST", "/api/v3/media/upload/binary", data=form)
    assert (reply.status, reply.body) == (200, {"code": 500, "message": "Upload failed: invalid file type"})
    form = aiohttp.FormData()
    form.add_field("data", b"x", filename="a.png")
    assert (await api.call("POST", "/api/v3/media/upload/binary", data=form)).status == 400
    assert (await api.post("/api/v3/media/upload/binary", {})).status == 400


@pytest.mark.parametrize("settings", [{"max_upload_bytes": 10_000}])
async def test_uploads_above_the_limit_get_413(api: Api) -> None:
    form = aiohttp.FormData()
    form.add_field("file", bytes(20_000), filename="a.png")
    assert (await api.call("POST", "/api/v3/media/upload/binary", data=form)).status == 413
    reply = await api.call("POST", "/api/v3/kwaivgi/kling-v2.1-i2v-pro", data=io.BytesIO(bytes(40 << 20)))
    assert reply.body == {"code": 413, "message": "Request entity too large"}


@pytest.mark.parametrize("settings", [{"storage_bytes": 200_000}])
async def test_storage_limit_counts_distinct_content(
    api: Api, http: aiohttp.ClientSession, clock: ManualClock, png: PngMaker
) -> None:
    content = png()
    assert len(content) < 200_000 < 2 * len(content)
    for _ in range(10):
        await api.upload(content)
    another = png(shade=9)
    ticket = await api.ticket(another)
    async with http.put(ticket["upload"]["url"], data=another, headers=ticket["upload"]["headers"]) as response:
        assert response.status == 507
    await clock.advance(7 * 86400)
    await api.upload(another)


@pytest.fixture
async def url(api: Api, clock: ManualClock, image: str) -> str:
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    return str((await api.result(prediction["id"])).data["outputs"][0])


async def test_output_supports_etag_and_ranges(api: Api, http: aiohttp.ClientSession, emu: Emulator, url: str) -> None:
    async with http.get(url) as response:
        whole = await response.read()
        assert response.status == 200
        assert response.headers["Content-Type"] == "video/mp4"
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.content_length == len(whole)
        etag = response.headers["ETag"]
    assert whole[4:8] == b"ftyp"
    assert whole.find(b"moov") < whole.find(b"mdat")
    async with http.head(url) as response:
        assert (response.status, response.content_length, await response.read()) == (200, len(whole), b"")
    async with http.get(url, headers={"If-None-Match": etag}) as response:
        assert (response.status, await response.read()) == (304, b"")
    size = len(whole)
    for byte_range, low, high in (
        ("bytes=0-99", 0, 100),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
        ("bytes=10-999999", 10, size),
    ):
        async with http.get(url, headers={"Range": byte_range, "If-Range": etag}) as response:
            assert response.status == 206
            assert await response.read() == whole[low:high]
            assert response.headers["Content-Range"] == f"bytes {low}-{high - 1}/{size}"
    for byte_range in (f"bytes={size}-", "bytes=-0"):
        async with http.get(url, headers={"Range": byte_range}) as response:
            assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{size}")
    for headers in (
        {"Range": "bytes=0-1,4-5"},
        {"Range": "bytes=9-2"},
        {"Range": "x"},
        {"Range": "bytes=0-1", "If-Range": '"x"'},
    ):
        async with http.get(url, headers=headers) as response:
            assert (response.status, await response.read()) == (200, whole)
    assert not emu.leaks
    for headers in ({"Authorization": "Bearer x"}, {"X-API-Key": "x"}):
        async with http.get(url, headers=headers) as response:
            assert response.status == 200
    assert [(leak.route, leak.header) for leak in emu.leaks] == [("output", "Authorization"), ("output", "X-API-Key")]


async def test_output_is_404_before_completion(api: Api, http: aiohttp.ClientSession, url: str, image: str) -> None:
    prediction = (await api.submit(image=image)).data
    early = api.emu._service.store._by_id[prediction["id"]].output
    for path in (early, "nothing.mp4"):
        async with http.get(f"{api.base}/output/{path}") as response:
            assert response.status == 404


async def test_request_record_contains_no_secrets(api: Api, emu: Emulator, image: str) -> None:
    await api.submit(image=image, query="?webhook=https%3A%2F%2Fhost%2Fsecret")
    assert [(record.method, record.route, record.status) for record in emu.requests] == [
        ("POST", "upload_ticket", 200),
        ("PUT", "upload_put", 200),
        ("POST", "submit", 200),
    ]
    text = repr(emu.requests)
    assert "secret" not in text
    assert api.key not in text
    assert "Signature" not in text
    assert emu.counts["submit"] == 1


async def test_range_of_thousands_of_digits_is_none(http: aiohttp.ClientSession, url: str) -> None:
    async with http.get(url, headers={"Range": f"bytes={'9' * 5000}-"}) as response:
        assert response.status == 200


async def test_upload_without_a_ticket_is_refused_before_it_is_read(api: Api) -> None:
    address = URL(api.base)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"PUT /storage/media/images/a.png HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n")
    with anyio.fail_after(PATIENCE_S):
        assert b" 403 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize(
    ("field", "content", "status"),
    [
        ("video", TINY_MP4, "completed"),
        ("video", b"no video", "failed"),
        ("videos", TINY_MP4, "completed"),
        ("audios", b"ID3" + bytes(99), "completed"),
        ("audios", TINY_MP4, "failed"),
    ],
)
async def test_uploaded_videos_and_sounds_are_checked(
    api: Api, clock: ManualClock, field: str, content: bytes, status: str
) -> None:
    model = f"kwaivgi/kling-v4.0/{'video-extend' if field == 'video' else 'reference-to-video'}"
    filename = "a.mp3" if field == "audios" else "a.mp4"
    form = aiohttp.FormData()
    form.add_field("file", content, filename=filename, content_type="application/octet-stream")
    url = (await api.call("POST", "/api/v3/media/upload/binary", data=form)).data["download_url"]
    inputs = {"prompt": "x", field: url if field == "video" else [url]}
    made = await api.post(f"/api/v3/{model}", inputs)
    assert made.status == 200
    await clock.advance(10_000)
    assert (await api.result(made.data["id"])).data["status"] == status
    assert (await api.post(f"/api/v3/{model}", {**inputs, field: 5})).status == 400
