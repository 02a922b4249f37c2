"""Images on their way to the service: read, looked at, put up once."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import random
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs
import imagesize  # type: ignore[import-untyped]  # it has no types

from ._core.errors import (
    ApiError,
    InvalidJobError,
    KlingError,
    Problem,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
)
from ._core.http import Effect, HttpRequest
from ._core.images import MAX_IMAGE_BYTES, MIN_IMAGE_SIDE, Image, bytes_problem, image_type
from ._core.media import ImageFacts
from ._core.transport import shown
from ._retry import send_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ._core.clock import Clock
    from ._core.http import HttpResponse
    from ._core.media import UploadProvider, UploadTicket
    from ._core.transport import Transport

REMEMBERED = 6 * 86_400.0
"""Seconds that an upload is used again. The service deletes uploads after 7 days, and the job still has to read it."""
MAX_REMEMBERED = 10_000
"""Uploads that are remembered; the one that was not used for longest is forgotten first."""
ATTEMPTS = 4
"""How often a ticket is asked for, and how often a file is sent to it."""
NO_TICKETS = frozenset({404, 405})
"""Statuses by which a service says that it gives no tickets; the upload in one request is older, and documented."""

_PIECE = 2**18
"""Bytes of a file that are read at once."""


async def digest(image: Image, *, field: str = "image") -> str:
    """What tells one image from another: the SHA-256 of the content in hex, of a URL the string itself.

    Args:
        image: The image; a file is read in a worker thread.
        field: How errors name it.

    Raises:
        InvalidJobError: The file cannot be read.
    """
    if isinstance(image, str):
        return image
    return await anyio.to_thread.run_sync(_sha256, image, field)


def check(content: bytes, *, field: str = "image") -> ImageFacts:
    """What the service would look at before it accepts an image, without decoding it.

    Args:
        content: The whole file.
        field: How errors name it.

    Raises:
        InvalidJobError: Not a JPEG or PNG, too many bytes, too few pixels, or its size cannot be told.
    """
    media_type = image_type(content)
    problem = bytes_problem(content)
    if problem or media_type is None:
        raise _invalid(field, problem)
    width: int
    height: int
    try:
        width, height = imagesize.get(io.BytesIO(content))
    except Exception:  # noqa: BLE001 -- older versions let hostile bytes raise whatever they hit
        width = height = -1
    if width <= 0 or height <= 0:
        raise _invalid(field, "is damaged: its width and height cannot be read")
    if min(width, height) < MIN_IMAGE_SIDE:
        raise _invalid(field, f"expected at least {MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE} pixels, got {width}x{height}")
    return ImageFacts(media_type, width, height, len(content))


def inline(content: bytes) -> str:
    """A JPEG or PNG as a data URI."""
    return f"data:{image_type(content)};base64,{base64.b64encode(content).decode('ascii')}"


@attrs.define(eq=False)
class _Upload:
    """What those who want the same content at the same time share."""

    lock: anyio.Lock = attrs.field(factory=anyio.Lock)
    waiting: int = 0
    failure: KlingError | None = None


class Images:
    """The URLs of images; each content is uploaded once.

    Args:
        transport: Sends.
        provider: Phrases the uploads.
        clock: Tells the time and waits between attempts.
        limit: Uploads at the same time at most; with it the memory for images is bounded.
        inline: Send files and bytes within the request, as data URIs, instead of uploading them.
        rng: Draws the jitter of the pauses from [0, 1).
    """

    def __init__(
        self,
        transport: Transport,
        provider: UploadProvider,
        clock: Clock,
        *,
        limit: int = 4,
        inline: bool = False,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._provider = provider
        self._clock = clock
        self._slots = anyio.Semaphore(limit)
        self._inline = inline
        self._rng = rng
        self._tickets = True
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._wanted: dict[str, _Upload] = {}

    async def url(self, image: Image, *, field: str) -> str:
        """The URL to send for `image`: a string as it is, a file or bytes after it was checked and uploaded.

        Those who ask for the same content at the same time share one upload and its failure. When the one who uploads
        is cancelled, the next one takes over.

        Args:
            image: The image.
            field: How errors name it: `image` or `end_image`.

        Raises:
            InvalidJobError: The file cannot be read, or the service would refuse the image.
            UnsupportedError: The provider takes no uploads.
            ApiError: The service or its storage refused the upload.
            TransportError: It could not be reached.
        """
        if isinstance(image, str):
            return image
        try:
            return await self._url(image, field)
        except KlingError as error:
            # The frames that it came through hold the image: an error that is kept must not keep megabytes.
            failure = error.with_traceback(None)
        raise failure

    async def _url(self, image: Path | bytes, field: str) -> str:
        if self._inline:
            return await anyio.to_thread.run_sync(lambda: inline(_checked(image, field)[0]))
        name = await digest(image, field=field)
        upload = self._wanted.setdefault(name, _Upload())
        upload.waiting += 1
        try:
            async with upload.lock:
                if upload.failure is not None:
                    # A copy: one exception raised in many tasks would gather all of their tracebacks.
                    raise copy.copy(upload.failure)
                return self._remembered(name) or await self._first(image, field, upload)
        finally:
            upload.waiting -= 1
            # With the last who waits the failure is forgotten: who comes then begins anew.
            if not upload.waiting:
                del self._wanted[name]

    async def _first(self, image: Path | bytes, field: str, upload: _Upload) -> str:
        async with self._slots:
            # Read anew, so that only those who hold a slot hold an image in memory.
            content, facts = await anyio.to_thread.run_sync(_checked, image, field)
            try:
                return await self._upload(content, facts)
            except KlingError as error:
                upload.failure = error
                raise

    async def _upload(self, content: bytes, facts: ImageFacts) -> str:
        sha256 = await anyio.to_thread.run_sync(_sha256, content, "")
        # Neutral: the user's path is none of the service's business.
        filename = sha256[:16] + {"image/jpeg": ".jpg", "image/png": ".png"}[facts.type]
        url = await self._by_ticket(filename, content, facts) if self._tickets else None
        if url is None:
            url = await self._in_one(filename, content, facts)
            # Only now: a wrong address has neither of the two.
            self._tickets = False
        self._known[sha256] = url, self._clock.now() + REMEMBERED
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return url

    async def _by_ticket(self, filename: str, content: bytes, facts: ImageFacts) -> str | None:
        """The URL of the file after it was put where the ticket says; None when the service gives no tickets."""
        asked = self._provider.upload_ticket(filename=filename, size=facts.bytes, content_type=facts.type)
        reply = await self._send(asked)
        if reply.status in NO_TICKETS:
            return None
        ticket = self._provider.read_ticket(reply)
        put = HttpRequest(
            method=ticket.method, url=ticket.url, effect=Effect.READ, headers=ticket.headers, body=content
        )
        _judge(await self._send(put), ticket, self._clock.now())
        return ticket.download_url

    async def _in_one(self, filename: str, content: bytes, facts: ImageFacts) -> str:
        """The URL of the file after it was sent as a form."""
        request = await anyio.to_thread.run_sync(
            lambda: self._provider.upload_binary(filename=filename, content=content, content_type=facts.type)
        )
        return self._provider.read_upload(await self._send(request))

    async def _send(self, request: HttpRequest) -> HttpResponse:
        return await send_read(self._transport, request, self._clock, attempts=ATTEMPTS, rng=self._rng)

    def _remembered(self, sha256: str) -> str | None:
        if sha256 not in self._known:
            return None
        url, until = self._known[sha256]
        if self._clock.now() >= until:
            del self._known[sha256]
            return None
        self._known.move_to_end(sha256)
        return url


def _judge(response: HttpResponse, ticket: UploadTicket, now: float) -> None:
    """Raise unless the storage has the file."""
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004 -- success, whichever
        return
    # `If-None-Match: *` on an address that was made for this file: it is there, from an attempt whose reply was lost.
    # That attempt is not always ours: aiohttp itself sends a PUT again when a pooled connection turns out to be closed.
    if status == 412 and any(name.lower() == "if-none-match" for name in ticket.headers):  # noqa: PLR2004
        return
    kind: type[ApiError] = RequestRejectedError
    if status == 429:  # noqa: PLR2004 -- as the standard names it
        kind = RateLimitedError
    elif status >= 500:  # noqa: PLR2004 -- the same
        kind = ServerError
    # The body is left out: storages quote the signature in it.
    raise kind(
        f"the storage at {shown(ticket.url)} answered {status} to the upload of an image",
        status=status,
        retry_after=response.retry_after(now),
        request_id=response.request_id,
        advice="ask again, or give the image as a URL",
    )


def _checked(image: Path | bytes, field: str) -> tuple[bytes, ImageFacts]:
    content = _content(image, field)
    return content, check(content, field=field)


def _content(image: Path | bytes, field: str) -> bytes:
    return b"".join(_pieces(image, field))


def _pieces(image: Path | bytes, field: str) -> Iterator[bytes]:
    """The bytes of the image in pieces; of a file that is too large, no more than shows it."""
    if isinstance(image, bytes):
        yield image
        return
    left = MAX_IMAGE_BYTES + 1
    try:
        # Asked before it is opened: to open a pipe is to wait for its other end.
        if stat.S_ISREG(image.stat().st_mode):
            with image.open("rb") as file:
                while piece := file.read(min(left, _PIECE)):
                    yield piece
                    left -= len(piece)
            return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _invalid(field, f"cannot read {image}: {reason or error}") from error
    raise _invalid(field, f"{image} is not a regular file")


def _invalid(field: str, message: str) -> InvalidJobError:
    return InvalidJobError([Problem(field, message)])


def _sha256(image: Path | bytes, field: str) -> str:
    # Piece by piece: many files may be looked at at once, and only those that go up are worth their memory.
    whole = hashlib.sha256()
    for piece in _pieces(image, field):
        whole.update(piece)
    return whole.hexdigest()
