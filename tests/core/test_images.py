"""Image preflight, uploads and their cache, and retries of reads."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import os
import traceback
from typing import TYPE_CHECKING, cast

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from kling_async import KlingSession
from kling_async._core.answers import RULES, Kind
from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.media import MAX_IMAGE_BYTES, ImageFacts, UploadTicket
from kling_async._http.reads import Reads
from kling_async._http.retry import pause
from kling_async._images import uploads as uploads_room
from kling_async._images.preflight import _start_of_pixels, preflight
from kling_async._images.stored import is_stored
from kling_async._images.uploads import Images, digest
from kling_async.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ConnectionLostError,
    InvalidJobError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    TransportError,
    UnsupportedError,
)
from kling_async.testing import ScriptedTransport, json_response

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from kling_async._core.transport import StreamedResponse

pytestmark = pytest.mark.anyio


def picture(width: int = 300, height: int = 300, kind: str = "PNG", shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("L", (width, height), shade).save(buffer, kind)
    return buffer.getvalue()


PNG = picture()
JPEG = picture(400, 300, "JPEG")


class Clock:
    def __init__(self) -> None:
        self.time = 0.0
        self.pauses: list[float] = []

    def now(self) -> float:
        return self.time

    monotonic = now

    async def sleep(self, seconds: float, /) -> None:
        self.pauses.append(seconds)
        self.time += seconds
        await anyio.lowlevel.checkpoint()


STORED = {"etag": '"1"'}
"""Headers of a storage's reply to a PUT."""


def ranged(size: int) -> HttpResponse:
    return HttpResponse(status=206, headers={"content-range": f"bytes 0-0/{size}"})


class Uploads:
    """Provider and transport in one: issues tickets and accepts their uploads."""

    def __init__(self) -> None:
        self.tickets: list[tuple[str, int, str]] = []
        self.puts: list[HttpRequest] = []
        self.ticket_replies: list[int | TransportError] = []
        self.put_replies: list[int | TransportError] = []
        self.put_hook = anyio.lowlevel.checkpoint
        self.ticket_hook = anyio.lowlevel.checkpoint
        self.together = self.most = 0
        self.supported = True
        self.stored: dict[str, int] = {}
        self.looks: list[str] = []

    def upload_ticket(self, *, filename: str, size: int, content_type: str) -> HttpRequest:
        if not self.supported:
            raise UnsupportedError("no uploads here")
        self.tickets.append((filename, size, content_type))
        return HttpRequest(method="POST", url="https://api/uploads", headers={"Authorization": "Bearer k"})

    def read_ticket(self, response: HttpResponse) -> UploadTicket:
        if response.status != 200:
            kind = AuthenticationError if response.status == 401 else RequestRejectedError
            raise kind("no", status=response.status, raw={"code": response.status} if response.status == 401 else None)
        number = len(self.tickets)
        return UploadTicket(
            url=f"https://storage/{number}?signature=secret",
            headers={"Content-Type": "image/png", "If-None-Match": "*"},
            download_url=f"https://cdn/{number}",
        )

    def upload_binary(self, *, filename: str, content: bytes, content_type: str) -> HttpRequest:
        raise AssertionError("there are tickets")

    def read_upload(self, response: HttpResponse) -> str:
        raise AssertionError("there are tickets")

    async def send(self, request: HttpRequest) -> HttpResponse:
        if request.url == "https://api/uploads":
            await self.ticket_hook()
            return self.reply(self.ticket_replies)
        if request.method == "GET":
            self.looks.append(request.url)
            size = self.stored.get(request.url)
            return HttpResponse(status=404) if size is None else ranged(size)
        self.puts.append(request)
        self.together += 1
        self.most = max(self.most, self.together)
        try:
            await self.put_hook()
        finally:
            self.together -= 1
        return self.reply(self.put_replies)

    @staticmethod
    def reply(replies: list[int | TransportError]) -> HttpResponse:
        reply = replies.pop(0) if replies else 200
        if isinstance(reply, TransportError):
            raise reply
        return HttpResponse(status=reply, headers=STORED)

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[StreamedResponse]:
        raise AssertionError("uploads neither stream nor close")

    async def aclose(self) -> None:
        raise AssertionError("uploads neither stream nor close")


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def images(uploads: Uploads, clock: Clock) -> Images:
    return Images(uploads, uploads, clock, rng=lambda: 0.0)


# Preflight.


def test_preflight_reads_facts() -> None:
    assert preflight(PNG) == ImageFacts("image/png", 300, 300, len(PNG))
    assert preflight(JPEG) == ImageFacts("image/jpeg", 400, 300, len(JPEG))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"nothing", "the bytes are neither"),
        (b"GIF89a", "got GIF; the option fit converts it"),
        (picture(299, 300), "got 299x300"),
        (picture(300, 299, "JPEG"), "got 300x299"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (PNG[:12], "cannot be read"),
        (b"\xff\xd8\xff" + b"\xff" * 100, "cannot be read"),
        (PNG + bytes(MAX_IMAGE_BYTES), "at most 10 MB"),
    ],
)
def test_preflight_refuses_bad_images(content: bytes, said: str) -> None:
    with pytest.raises(InvalidJobError, match=said) as caught:
        preflight(content, field="end_image")
    assert [problem.path for problem in caught.value.problems] == ["end_image"]


@given(
    st.sampled_from([b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", PNG[:16], JPEG[:200]]),
    st.binary(max_size=400),
)
def test_preflight_survives_hostile_bytes(start: bytes, rest: bytes) -> None:
    with contextlib.suppress(InvalidJobError):
        facts = preflight(start + rest)
        assert min(facts.width, facts.height) >= 300


def test_preflight_reports_library_failure_as_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **options: object) -> None:
        raise IndexError

    monkeypatch.setattr("imagesize.get_info", fail)
    with pytest.raises(InvalidJobError, match="damaged"):
        preflight(PNG)


async def test_digest_hashes_content(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    assert await digest(path) == await digest(PNG) == hashlib.sha256(PNG).hexdigest()
    assert await digest("https://h/a.png?x=1") == "https://h/a.png?x=1"


def unreadable(tmp_path: Path, what: str) -> Path:
    path = tmp_path / "shot 1.png"
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "null":
            path = tmp_path / "shot 1.png\0"
    return path


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "loop", "null"])
async def test_unreadable_file_is_invalid_job(what: str, tmp_path: Path, images: Images) -> None:
    path = unreadable(tmp_path, what)
    with pytest.raises(InvalidJobError, match=r"shot 1\.png") as caught:
        await images.url(path, field="end_image")
    assert caught.value.problems[0].path == "end_image"
    with pytest.raises(InvalidJobError):
        await digest(path)


async def test_oversized_file_is_not_read_to_its_end(tmp_path: Path, images: Images) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.write(PNG)
        file.truncate(2**40)
    with pytest.raises(InvalidJobError, match="at most 10 MB"):
        await images.url(path, field="image")


# Uploads.


@pytest.mark.promise(9)
async def test_strings_are_never_opened(images: Images, uploads: Uploads) -> None:
    for url in ("https://h/a.png", f"data:image/png;base64,{base64.b64encode(PNG).decode()}"):
        assert await images.url(url, field="image") == url
    assert not uploads.tickets


async def test_upload_requests_ticket_and_puts_content(images: Images, uploads: Uploads, tmp_path: Path) -> None:
    path = tmp_path / "private name.jpg"
    path.write_bytes(PNG)
    assert await images.url(path, field="image") == "https://cdn/1"
    assert uploads.tickets == [(hashlib.sha256(PNG).hexdigest()[:16] + ".png", len(PNG), "image/png")]
    [put] = uploads.puts
    assert put == HttpRequest(
        method="PUT",
        url="https://storage/1?signature=secret",
        effect=Effect.READ,
        headers={"Content-Type": "image/png", "If-None-Match": "*"},
        body=PNG,
    )
    await images.url(JPEG, field="image")
    assert uploads.tickets[1][0].endswith(".jpg")


async def test_content_is_uploaded_once_in_six_days(
    images: Images, uploads: Uploads, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    assert {await images.url(image, field="image") for image in (path, PNG, path)} == {"https://cdn/1"}
    clock.time += 6 * 86_400 - 1
    assert await images.url(PNG, field="image") == "https://cdn/1"
    clock.time += 1
    assert await images.url(PNG, field="image") == "https://cdn/2"
    path.write_bytes(JPEG)
    assert await images.url(path, field="image") == "https://cdn/3"


async def test_upload_cache_is_bounded(images: Images, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_room, "MAX_CACHED_UPLOADS", 2)
    one, two, three = (picture(shade=shade) for shade in (1, 2, 3))
    for image in (one, two, one, three, one):
        await images.url(image, field="image")
    assert len(uploads.tickets) == 3
    await images.url(two, field="image")
    assert len(uploads.tickets) == 4
    assert len(images._url_cache) == 2


async def test_concurrent_requests_share_one_upload(images: Images, uploads: Uploads) -> None:
    urls = await asyncio.gather(*(images.url(PNG, field="image") for _ in range(20)))
    assert set(urls) == {"https://cdn/1"}
    assert len(uploads.puts) == 1
    assert not images._in_progress


async def test_concurrent_uploads_are_bounded(uploads: Uploads, clock: Clock) -> None:
    full = asyncio.Event()

    async def together() -> None:
        if uploads.most == 2:
            full.set()
        await full.wait()
        # Time for uploads beyond the limit.
        await asyncio.sleep(0.02)

    uploads.put_hook = together
    images = Images(uploads, uploads, clock, limit=2)
    await asyncio.gather(*(images.url(picture(shade=shade), field="image") for shade in range(6)))
    assert uploads.most == 2
    assert len(uploads.puts) == 6


async def test_waiter_takes_over_cancelled_upload(images: Images, uploads: Uploads) -> None:
    started = asyncio.Event()

    async def hang() -> None:
        started.set()
        uploads.put_hook = anyio.lowlevel.checkpoint
        await asyncio.sleep(3600)

    uploads.put_hook = hang
    first = asyncio.create_task(images.url(PNG, field="image"))
    await started.wait()
    others = [asyncio.create_task(images.url(PNG, field="image")) for _ in range(3)]
    await asyncio.sleep(0.05)
    first.cancel()
    assert {await other for other in others} == {"https://cdn/2"}
    assert first.cancelled()
    assert len(uploads.puts) == 2


async def test_upload_failure_is_shared_and_not_cached(images: Images, uploads: Uploads) -> None:
    uploads.ticket_replies = [401] * 4

    async def all_wait() -> None:
        while sum(upload.waiting for upload in images._in_progress.values()) < 5:  # noqa: ASYNC110 -- there is no event for it
            await asyncio.sleep(0.001)

    uploads.ticket_hook = all_wait

    async def ask() -> BaseException:
        with pytest.raises(AuthenticationError) as caught:
            await images.url(PNG, field="image")
        return caught.value

    errors = await asyncio.gather(*(ask() for _ in range(5)))
    assert len({id(error) for error in errors}) == 5
    assert {str(error) for error in errors} == {str(errors[0])}
    assert len(uploads.tickets) == 1
    assert not uploads.ticket_replies
    uploads.ticket_hook = anyio.lowlevel.checkpoint
    assert await images.url(PNG, field="image") == "https://cdn/2"


async def test_upload_error_does_not_reference_content(images: Images, uploads: Uploads, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    uploads.put_replies = [403] * 100
    for data in (PNG, picture(10, 10)):
        path.write_bytes(data)
        with pytest.raises((ServerError, InvalidJobError)) as caught:
            await images.url(path, field="image")
        frames = traceback.walk_tb(caught.value.__traceback__)
        names = {name for frame, _ in frames for name in frame.f_locals}
        assert not names & {"content", "put", "request"}


async def test_bad_image_error_names_field_of_each_caller(images: Images, uploads: Uploads) -> None:
    small = picture(10, 10)
    fields = ("image", "end_image", "image")
    errors = await asyncio.gather(*(images.url(small, field=field) for field in fields), return_exceptions=True)
    paths = [cast("InvalidJobError", error).problems[0].path for error in errors]
    assert paths == list(fields)
    assert not uploads.tickets


async def test_transient_upload_failures_are_retried(images: Images, uploads: Uploads, clock: Clock) -> None:
    uploads.ticket_replies = [503, ConnectionLostError("cut")]
    uploads.put_replies = [429, ConnectionLostError("cut"), 500]
    assert await images.url(PNG, field="image") == "https://cdn/1"
    assert len(uploads.tickets) == 1
    assert len(uploads.puts) == 4
    assert clock.pauses == [0.25, 0.5, 0.25, 0.5, 1.0]


async def test_upload_412_after_retry_is_success(images: Images, uploads: Uploads) -> None:
    uploads.put_replies = [ConnectionLostError("cut"), 412]
    uploads.stored["https://cdn/1"] = len(PNG)
    assert await images.url(PNG, field="image") == "https://cdn/1"
    assert len(uploads.looks) == 1


@pytest.mark.parametrize("size", [None, len(PNG) - 1], ids=["absent", "shorter"])
async def test_answer_of_a_proxy_is_no_upload(size: int | None, images: Images, uploads: Uploads) -> None:
    uploads.put_replies = [412, 412]
    if size is not None:
        uploads.stored["https://cdn/1"] = size
    assert await images.url(PNG, field="image") == "https://cdn/1"
    assert (len(uploads.puts), len(uploads.looks)) == (3, 2)


@pytest.mark.parametrize(
    ("status", "kind"), [(403, ServerError), (302, ServerError), (429, RateLimitedError), (500, ServerError)]
)
async def test_refused_upload_raises_at_its_bound(
    status: int, kind: type[ApiError], images: Images, uploads: Uploads, clock: Clock
) -> None:
    uploads.put_replies = [status] * 100
    with pytest.raises(kind) as caught:
        await images.url(PNG, field="image")
    assert caught.value.status == status
    assert caught.value.transient
    assert "storage/1" in str(caught.value)
    assert f"{len(uploads.puts)} x HTTP {status}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert 100 < clock.time <= RULES[Kind.UPLOAD].within


async def test_wait_for_a_place_takes_nothing_from_the_time_of_an_upload(
    images: Images, uploads: Uploads, clock: Clock
) -> None:
    uploads.put_replies = [502] * 4
    places = images.turns.limit.total
    for _ in range(places):
        await images.turns.acquire()
    made = asyncio.create_task(images.url(PNG, field="image"))
    await anyio.wait_all_tasks_blocked()
    clock.time += 10 * RULES[Kind.UPLOAD].within
    for _ in range(places):
        images.turns.release()
    assert await made == "https://cdn/1"
    assert len(uploads.puts) == 5


@pytest.mark.parametrize("status", [302, 403, 408, 425, 429, 451, *range(520, 525)])
async def test_passing_answers_fail_no_upload(status: int, images: Images, uploads: Uploads) -> None:
    uploads.ticket_replies, uploads.put_replies = [status] * 4, [status] * 4
    assert await images.url(PNG, field="image") == "https://cdn/1"
    assert len(uploads.puts) == 5


@pytest.mark.parametrize(("status", "limit"), [(503, 128), (429, 128), (403, 256)])
async def test_refusals_of_too_many_uploads_halve_their_limit(
    status: int, limit: int, images: Images, uploads: Uploads
) -> None:
    uploads.put_replies = [status]
    await images.url(PNG, field="image")
    assert images.turns.limit.total == limit


async def test_upload_that_fails_for_one_caller_is_tried_by_those_that_came_later(
    images: Images, uploads: Uploads, clock: Clock
) -> None:
    """Each caller of the same picture has its own two minutes."""
    uploads.put_replies = [408] * 100
    joined = asyncio.Event()

    async def hook() -> None:
        if clock.time > 100 and not joined.is_set():
            joined.set()
            later.append(asyncio.create_task(images.url(PNG, field="image")))
            await asyncio.sleep(0.01)
        if clock.time > 130:
            uploads.put_replies = []
        await anyio.lowlevel.checkpoint()

    later: list[asyncio.Task[str]] = []
    uploads.put_hook = hook
    with pytest.raises(ServerError):
        await images.url(PNG, field="image")
    assert await later[0] == "https://cdn/2"
    assert not images._in_progress


async def test_transport_that_cancels_itself_fails_no_upload(images: Images, uploads: Uploads) -> None:
    strays = iter([True, True])

    async def stray() -> None:
        await anyio.lowlevel.checkpoint()
        if next(strays, False):
            raise asyncio.CancelledError

    uploads.put_hook = stray
    assert set(await asyncio.gather(*(images.url(PNG, field="image") for _ in range(3)))) == {"https://cdn/1"}
    assert len(uploads.puts) == 3


async def test_upload_412_without_condition_is_refusal() -> None:
    ticket = UploadTicket(url="https://s/1", download_url="https://cdn/1")
    with pytest.raises(RequestRejectedError):
        is_stored(HttpResponse(status=412), ticket, 0.0)
    assert "s/1?" not in repr(UploadTicket(url="https://s/1?signature=x", download_url=""))


async def test_last_transport_error_is_raised(images: Images, uploads: Uploads) -> None:
    uploads.put_replies = [ConnectionLostError("cut") for _ in range(100)]
    with pytest.raises(ConnectionLostError, match="x connection lost"):
        await images.url(PNG, field="image")


async def test_provider_without_uploads_raises_unsupported(images: Images, uploads: Uploads) -> None:
    uploads.supported = False
    with pytest.raises(UnsupportedError):
        await images.url(PNG, field="image")


async def test_inline_images_become_data_uris(uploads: Uploads, clock: Clock, tmp_path: Path) -> None:
    images = Images(uploads, uploads, clock, inline=True)
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    url = await images.url(path, field="image")
    header, _, payload = url.partition(",")
    assert header == "data:image/jpeg;base64"
    assert base64.b64decode(payload) == JPEG
    with pytest.raises(InvalidJobError):
        await images.url(picture(10, 10), field="image")
    assert not uploads.tickets


# Conversion, limits and the memory of uploads.


async def test_fit_converts_refused_images(uploads: Uploads, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(picture(kind="WEBP"))
    with pytest.raises(InvalidJobError, match="got WebP"):
        await Images(uploads, uploads, clock).url(path, field="image")
    images = Images(uploads, uploads, clock, fit=True)
    assert await images.url(path, field="image") == "https://cdn/1"
    assert uploads.tickets[0][0] == hashlib.sha256(path.read_bytes()).hexdigest()[:16] + ".jpg"
    assert preflight(uploads.puts[0].body or b"").type == "image/jpeg"
    await images.url(path, field="image")
    await images.url(JPEG, field="image")
    assert [put.body for put in uploads.puts[1:]] == [JPEG], "each image once, and valid images unchanged"
    inline = await Images(uploads, uploads, clock, fit=True, inline=True).url(path, field="image")
    assert inline.startswith("data:image/jpeg;base64,/9j")


def test_fit_needs_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"kling-async\[images\]"):
        KlingSession("-", fit=True)


async def test_image_warning_is_logged_once(images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "long.png"
    path.write_bytes(picture(900, 300))
    await images.url(path, field="image")
    await images.url(path, field="image")
    (line,) = caplog.messages
    assert line.startswith(f"{path}: 900x300 is longer than 2.5:1")


async def test_max_uploads_bounds_a_session() -> None:
    together = most = tickets = 0
    full = anyio.Event()

    async def service(request: HttpRequest) -> HttpResponse:
        nonlocal together, most, tickets
        if request.method == "PUT":
            together += 1
            most = max(most, together)
            if most == 2:
                full.set()
            await full.wait()
            await anyio.sleep(0.01)
            together -= 1
            return HttpResponse(status=200, headers=STORED)
        tickets += 1
        upload = {"method": "PUT", "url": f"https://storage.example/{tickets}", "headers": {}}
        data = {"download_url": f"https://cdn.example/{tickets}.png", "upload": upload}
        return json_response({"code": 200, "message": "success", "data": data})

    async with KlingSession("-", transport=ScriptedTransport(service), max_uploads=2) as kling:
        urls = await asyncio.gather(*(kling.upload(picture(shade=shade)) for shade in range(8)))
    assert len(set(urls)) == 8
    assert most == 2
    with pytest.raises(ConfigurationError, match="max_uploads"):
        KlingSession("-", max_uploads=0)


class Memory:
    """The upload memory of a ledger."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, float]] = {}

    async def uploaded(self, digest: str, now: float) -> str | None:
        url, until = self.kept.get(digest, ("", 0.0))
        return url if now < until else None

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        self.kept[digest] = url, expires_at


async def test_upload_memory_serves_later_sessions_until_expiry(uploads: Uploads, clock: Clock) -> None:
    memory = Memory()
    for again in range(3):
        assert await Images(uploads, uploads, clock, memory=memory).url(PNG, field="image") == "https://cdn/1", again
    assert memory.kept == {hashlib.sha256(PNG).hexdigest(): ("https://cdn/1", 6 * 86_400.0)}
    await Images(uploads, uploads, clock, memory=memory, fit=True).url(PNG, field="image")
    assert len(uploads.puts) == 2, "a converted image is another file"
    clock.time = 6 * 86_400.0
    assert await Images(uploads, uploads, clock, memory=memory).url(PNG, field="image") == "https://cdn/3"


# Retries.


async def test_reads_refuse_paid_requests(uploads: Uploads, clock: Clock) -> None:
    reads = Reads(uploads, clock, lambda: 0.0)
    with pytest.raises(ValueError, match="expected a read"):
        await reads.read(HttpRequest(method="POST", url="https://h/", effect=Effect.PAID), HttpResponse.json)
    assert not uploads.puts


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_up_to_cap(failures: int, drawn: float) -> None:
    longest = min(0.5 * 2 ** min(failures - 1, 10), 15.0)
    assert longest / 2 <= pause(failures, lambda: drawn) <= longest * 1.5
    assert pause(failures, lambda: drawn, 30.0) == 30.0


class Counted(io.BytesIO):
    """File that counts its reads."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("fill", [0, 1, 7, 251, 252, 253, 254, 255, 256, 257, 10**7])
def test_fill_bytes_before_a_marker_are_skipped_in_blocks(fill: int) -> None:
    app0 = b"\xff\xe0\x00\x04ab"
    file = Counted(b"\xff\xd8" + app0 + b"\xff" * fill + app0 + b"\xff\xda\x00\x02pixels\xff\xd9")
    assert _start_of_pixels(file) == 2 + 2 * len(app0) + fill
    assert file.reads <= 4 + fill / 250
