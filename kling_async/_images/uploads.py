"""Upload images: read, check, convert, and upload each content once."""

from __future__ import annotations

import base64
import copy
import logging
import random
from collections import OrderedDict
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from kling_async._core.http import Effect, HttpRequest
from kling_async._core.images import MAX_IMAGE_BYTES
from kling_async._core.media import CONVERTED_SUFFIX, ImageFacts
from kling_async._core.transport import loggable_url
from kling_async._http.retry import send_read
from kling_async.errors import (
    ApiError,
    KlingError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
)
from kling_async.providers.protocol import uploads_of

from .preflight import invalid, preflight, read, sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kling_async._core.clock import Clock
    from kling_async._core.http import HttpResponse
    from kling_async._core.images import Image
    from kling_async._core.media import UploadMemory, UploadProvider, UploadTicket
    from kling_async._core.transport import Transport
    from kling_async.providers import Provider

UPLOAD_REUSE_S = 6 * 86_400.0
"""Seconds for which an upload is reused. The service deletes it after 7 days, and jobs still have to read it."""
MAX_CACHED_UPLOADS = 10_000
"""Uploads whose URLs are kept in memory; the least recently used is removed first."""
MAX_UPLOAD_ATTEMPTS = 4
"""Greatest number of attempts for each request of an upload."""
NO_TICKET_STATUSES = frozenset({404, 405})
"""Statuses of a service without upload tickets. The older, documented upload in one request is used then."""
MAX_CONCURRENT_CONVERSIONS = 2
"""Images converted at once: each takes up to a few hundred megabytes of memory."""

log = logging.getLogger("kling_async")


async def digest(image: Image, *, field: str = "image") -> str:
    """Return the SHA-256 of an image's content in hex; a URL is returned as it is.

    Args:
        image: The image. A file is read in a worker thread.
        field: Name of the field in errors.

    Raises:
        InvalidJobError: The file cannot be read.
    """
    if isinstance(image, str):
        return image
    return await anyio.to_thread.run_sync(sha256, image, field)


@attrs.frozen
class _PreparedImage:
    """An image to send.

    Attributes:
        content: The bytes to send.
        facts: Type, dimensions and size of the content.
        digest: SHA-256 of the original image in hex, before conversion.
    """

    content: bytes = attrs.field(repr=False)
    facts: ImageFacts
    digest: str

    @property
    def data_uri(self) -> str:
        return f"data:{self.facts.type};base64,{base64.b64encode(self.content).decode('ascii')}"


@attrs.define(eq=False)
class _SharedUpload:
    """An upload that is in progress, shared by concurrent callers with equal content.

    Attributes:
        lock: Held by the caller that uploads.
        waiting: Number of callers.
        failure: The error of the upload; None while there is none.
    """

    lock: anyio.Lock = attrs.field(factory=anyio.Lock)
    waiting: int = 0
    failure: KlingError | None = None


class Images:
    """Uploads images, each content once, and returns their URLs.

    Args:
        transport: Sends the uploads.
        provider: Builds their requests and parses the replies.
        clock: The session's clock.
        limit: Greatest number of concurrent uploads; it also bounds the number of images in memory.
        inline: Return files and bytes as data URIs instead of uploading them.
        fit: Convert images that the service would refuse, or that are rotated by EXIF. Needs Pillow.
        memory: Records uploads for later sessions; None without one.
        rng: Draws jitter from [0, 1).
    """

    def __init__(
        self,
        transport: Transport,
        provider: Provider | UploadProvider,
        clock: Clock,
        *,
        limit: int = 4,
        inline: bool = False,
        fit: bool = False,
        memory: UploadMemory | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._provider = provider
        self._clock = clock
        self._slots = anyio.Semaphore(limit)
        self._inline = inline
        self._fit = fit
        self._converting = anyio.CapacityLimiter(MAX_CONCURRENT_CONVERSIONS)
        self._memory = memory
        self._rng = rng
        self._use_tickets = True
        self._url_cache: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._in_progress: dict[str, _SharedUpload] = {}

    async def url(self, image: Image, *, field: str, sha256: str | None = None) -> str:
        """Return the URL of an image: a URL as it is; a file or bytes after checking and uploading them.

        Concurrent calls with equal content share one upload and its failure. If the call that uploads is cancelled,
        another one takes over.

        Args:
            image: The image.
            field: Name of the field in errors: `image` or `end_image`.
            sha256: SHA-256 from which the job's key was made, in hex; None if the image was not read before.

        Raises:
            InvalidJobError: The file cannot be read, has changed, or the service would refuse the image.
            UnsupportedError: The provider has no uploads.
            ApiError: The service or its storage refused the upload.
            TransportError: The service or its storage could not be reached.
        """
        if isinstance(image, str):
            return image
        try:
            return await self._url(image, field, sha256)
        except KlingError as error:
            # The traceback's frames hold the image, and the error may be kept for long.
            failure = error.with_traceback(None)
        raise failure

    async def _url(self, image: Path | bytes, field: str, sha256: str | None) -> str:
        if self._inline:
            prepared = await self._prepare(image, field, sha256)
            return await anyio.to_thread.run_sync(lambda: prepared.data_uri)
        sha256 = sha256 or await digest(image, field=field)
        cache_key = self._cache_key(sha256)
        upload = self._in_progress.setdefault(cache_key, _SharedUpload())
        upload.waiting += 1
        try:
            async with upload.lock:
                if upload.failure is not None:
                    # A copy: one exception raised in many tasks would collect all of their tracebacks.
                    raise copy.copy(upload.failure)
                return await self._cached_url(cache_key) or await self._upload_file(image, field, sha256, upload)
        finally:
            upload.waiting -= 1
            # The failure is shared only by concurrent callers: later ones try again.
            if not upload.waiting:
                del self._in_progress[cache_key]

    async def _upload_file(self, image: Path | bytes, field: str, sha256: str, upload: _SharedUpload) -> str:
        async with self._slots:
            # Read only here, so that at most `limit` images are in memory.
            prepared = await self._prepare(image, field, sha256)
            for warning in prepared.facts.warnings:
                log.warning("%s: %s", image if not isinstance(image, bytes) else field, warning)
            try:
                return await self._upload(prepared)
            except KlingError as error:
                upload.failure = error
                raise

    async def _prepare(self, image: Path | bytes, field: str, sha256: str | None) -> _PreparedImage:
        """Read, check and, if needed, convert an image.

        Raises:
            InvalidJobError: It has changed, or the service would refuse it.
        """
        if self._fit:
            facts = await anyio.to_thread.run_sync(lambda: preflight(image, field=field, fit=True))
            if facts.unfit:
                return await anyio.to_thread.run_sync(
                    _prepare_converted, image, field, sha256, limiter=self._converting
                )
        return await anyio.to_thread.run_sync(_prepare_unchanged, image, field, sha256)

    async def _upload(self, prepared: _PreparedImage) -> str:
        content, facts = prepared.content, prepared.facts
        # The name of the user's file is private.
        filename = prepared.digest[:16] + {"image/jpeg": ".jpg", "image/png": ".png"}[facts.type]
        url = await self._upload_by_ticket(filename, content, facts) if self._use_tickets else None
        if url is None:
            url = await self._upload_as_form(filename, content, facts)
            # Only after it has worked: a wrong base URL has neither of the two.
            self._use_tickets = False
        until = self._clock.now() + UPLOAD_REUSE_S
        cache_key = self._cache_key(prepared.digest)
        self._cache(cache_key, url, until)
        if self._memory is not None:
            self._memory.note_upload(cache_key, url, until)
        return url

    async def _upload_by_ticket(self, filename: str, content: bytes, facts: ImageFacts) -> str | None:
        """Upload a file with a ticket and return its URL; None if the service has no tickets."""
        provider = uploads_of(self._provider)
        asked = provider.upload_ticket(filename=filename, size=facts.bytes, content_type=facts.type)
        reply = await self._send(asked)
        if reply.status in NO_TICKET_STATUSES:
            return None
        ticket = provider.read_ticket(reply)
        put = HttpRequest(
            method=ticket.method, url=ticket.url, effect=Effect.READ, headers=ticket.headers, body=content
        )
        _raise_unless_stored(await self._send(put), ticket, self._clock.now())
        return ticket.download_url

    async def _upload_as_form(self, filename: str, content: bytes, facts: ImageFacts) -> str:
        """Upload a file as a form and return its URL."""
        provider = uploads_of(self._provider)
        request = await anyio.to_thread.run_sync(
            lambda: provider.upload_binary(filename=filename, content=content, content_type=facts.type)
        )
        return provider.read_upload(await self._send(request))

    async def _send(self, request: HttpRequest) -> HttpResponse:
        return await send_read(self._transport, request, self._clock, attempts=MAX_UPLOAD_ATTEMPTS, rng=self._rng)

    def _cache_key(self, sha256: str) -> str:
        """Return the key of an upload in the cache: a converted image is another file than the original."""
        return sha256 + CONVERTED_SUFFIX if self._fit else sha256

    async def _cached_url(self, cache_key: str) -> str | None:
        now = self._clock.now()
        if cache_key in self._url_cache:
            url, until = self._url_cache[cache_key]
            if now < until:
                self._url_cache.move_to_end(cache_key)
                return url
            del self._url_cache[cache_key]
        # Not cached, because its end is known only to `memory`.
        return None if self._memory is None else await self._memory.uploaded(cache_key, now)

    def _cache(self, cache_key: str, url: str, until: float) -> None:
        self._url_cache[cache_key] = url, until
        if len(self._url_cache) > MAX_CACHED_UPLOADS:
            self._url_cache.popitem(last=False)


def _raise_unless_stored(response: HttpResponse, ticket: UploadTicket, now: float) -> None:
    """Raise unless the storage has the file.

    Raises:
        ApiError: It refused it.
    """
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004 -- success, whichever
        return
    # With `If-None-Match: *` at an address made for this file, 412 means that an earlier attempt, whose reply was lost,
    # has stored it. aiohttp itself also sends a PUT again when a pooled connection turns out to be closed.
    if status == 412 and any(name.lower() == "if-none-match" for name in ticket.headers):  # noqa: PLR2004
        return
    kind: type[ApiError] = RequestRejectedError
    if status == 429:  # noqa: PLR2004 -- as the standard names it
        kind = RateLimitedError
    elif status >= 500:  # noqa: PLR2004 -- the same
        kind = ServerError
    # Without the body, because storages quote the signature in it.
    raise kind(
        f"the upload of an image to {loggable_url(ticket.url)} was refused with status {status}",
        status=status,
        retry_after=response.retry_after(now),
        request_id=response.request_id,
        advice="try again, or give the image as a URL",
    )


def _prepare_unchanged(image: Path | bytes, field: str, expected: str | None) -> _PreparedImage:
    content = read(image, field, most=MAX_IMAGE_BYTES)
    return _PreparedImage(content, preflight(content, field=field), _verified(image, content, field, expected))


def _prepare_converted(image: Path | bytes, field: str, expected: str | None) -> _PreparedImage:
    # Imported here: Pillow is an extra.
    from .convert import convert  # noqa: PLC0415

    content = read(image, field)
    found = _verified(image, content, field, expected)
    fit = convert(content, field=field)
    return _PreparedImage(fit, preflight(fit, field=field), found)


def _verified(image: Path | bytes, content: bytes, field: str, expected: str | None) -> str:
    """Return the digest of an image's content, the same as when its job was keyed.

    Raises:
        InvalidJobError: The file has changed since.
    """
    if expected is not None and isinstance(image, bytes):
        # Bytes cannot change.
        return expected
    found = sha256(content, field)
    if expected is not None and found != expected:
        raise invalid(
            field,
            f"{image!s} has changed since the job's key was made from it: expected SHA-256 {expected[:16]}..., "
            f"got {found[:16]}...",
        )
    return found
