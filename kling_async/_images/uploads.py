"""Upload files: read, check, convert pictures, and upload each content once."""

from __future__ import annotations

import base64
import copy
import random
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import attrs

from kling_async._core.answers import RULES, Kind
from kling_async._core.http import Effect, HttpRequest
from kling_async._core.images import check_image, content_of_uri, is_decoded
from kling_async._core.input_files import MEDIA, check_file, is_picture
from kling_async._core.media import (
    CONVERTED_SUFFIX,
    MAX_IMAGE_BYTES,
    OTHER_GROUND_SUFFIX,
    WHITE,
    FileFacts,
    ImageFacts,
    UploadProvider,
)
from kling_async._core.transport import StreamingTransport, loggable_url
from kling_async._core.video_frames import VideoFrame
from kling_async._http.reads import Reads, send_once
from kling_async._log import log
from kling_async._threads import run_short
from kling_async._turns import upload_turns
from kling_async.errors import (
    InvalidJobError,
    KlingError,
    Problem,
    ServerError,
    UnsupportedError,
)
from kling_async.providers.protocol import uploads_of

from .inspection import inspect
from .preflight import sha256, sha256_of_small
from .prepare import Preparation, PreparedImage, bytes_of
from .stored import is_stored
from .streams import ImageStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.clock import Clock
    from kling_async._core.http import HttpResponse
    from kling_async._core.images import Image, Picture
    from kling_async._core.media import UploadMemory, UploadTicket
    from kling_async._core.transport import Transport
    from kling_async._turns import Turn
    from kling_async.providers import Provider

T = TypeVar("T")

UPLOAD_REUSE_S = 6 * 86_400.0
"""Seconds for which an upload is reused. The service deletes it after 7 days, and jobs still have to read it."""
MAX_CACHED_UPLOADS = 10_000
"""Uploads whose URLs are kept in memory; the least recently used is removed first."""
MIN_REMAINING_S = 30.0
"""Seconds that a caller must have left to try an upload again that has failed for another: twice the longest pause."""
NO_TICKET_STATUSES = frozenset({404, 405})
"""Statuses of a service without upload tickets. The older, documented upload in one request is used then."""
_FOUND = frozenset({200, 206})
"""Statuses of a file that is there, whole or in part."""
MAX_UPLOADS_FROM_MEMORY = 8
"""Images of more than a piece that are in memory while they are uploaded: converted ones, and those of forms."""


async def digest(image: Image, *, field: str = "image") -> str:
    """Return the SHA-256 of the content of an image, or of another file, in hex; a URL is returned as it is.

    Args:
        image: The image or file. It is read in a worker thread.
        field: Name of the field in errors.

    Raises:
        InvalidJobError: The file cannot be read.
    """
    if isinstance(image, str):
        return image
    found = await run_short(partial(sha256_of_small, image, field))
    return await anyio.to_thread.run_sync(sha256, image, field) if found is None else found


@attrs.define(eq=False)
class _SharedUpload:
    """An upload that is in progress, shared by concurrent callers with equal content.

    Attributes:
        lock: Held by the caller that uploads.
        waiting: Number of callers.
        failure: The error of the last attempt; None while there is none.
    """

    lock: anyio.Lock = attrs.field(factory=anyio.Lock)
    waiting: int = 0
    failure: KlingError | None = None


class Images:
    """Uploads images and other files, each content once, and returns their URLs.

    Args:
        transport: Sends the uploads.
        provider: Builds their requests and parses the replies.
        clock: The session's clock.
        limit: Greatest number of concurrent uploads; None for as many as pay.
        inline: Return images as data URIs instead of uploading them; a provider without uploads needs it.
        fit: Convert images that the service would refuse, or show otherwise than a viewer does. Needs Pillow.
        background: Colour that `fit` lays transparent images on.
        verify: Decode images to their end before they are sent. None for those that are not too large, with Pillow.
        memory: Records uploads for later sessions; None without one.
        rng: Draws jitter from [0, 1).

    Attributes:
        turns: Limit on the uploads under way.
    """

    def __init__(
        self,
        transport: Transport,
        provider: Provider | UploadProvider,
        clock: Clock,
        *,
        limit: int | None = None,
        inline: bool = False,
        fit: bool = False,
        background: str = WHITE,
        verify: bool | None = None,
        memory: UploadMemory | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._reads = Reads(transport, clock, rng)
        self._provider = provider
        self._clock = clock
        self.turns = upload_turns(limit, clock)
        self._streams = isinstance(transport, StreamingTransport)
        self._in_memory = anyio.CapacityLimiter(MAX_UPLOADS_FROM_MEMORY)
        self._uploads = isinstance(provider, UploadProvider)
        self._asked_inline = inline
        self._large_in_memory = anyio.CapacityLimiter(1)
        self._inline = inline or not self._uploads
        self._prepare = Preparation(fit=fit, background=background, verify=verify)
        self._memory = memory
        self._use_tickets = True
        self._url_cache: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._in_progress: dict[str, _SharedUpload] = {}

    async def url(self, image: Image, *, field: str, sha256: str | None = None) -> str:
        """Return the URL of an image: a URL as it is; a file of any kind or bytes after checking and uploading them.

        Concurrent calls with equal content share one upload and its final failure. If the call that uploads is
        cancelled, or fails by what may pass, another one takes over while its own time lasts.

        Args:
            image: The image or file.
            field: Its place in the job, for errors: `image`, or `extra.videos[1]`.
            sha256: SHA-256 from which the job's key was made, in hex; None if the image was not read before.

        Raises:
            InvalidJobError: The file cannot be read, has changed, or the service would refuse the image.
            UnsupportedError: The provider has no uploads, and it is no image.
            ApiError: The service or its storage refused the upload.
            TransportError: The service or its storage could not be reached.
        """
        if isinstance(image, str) and not image.startswith("data:"):
            return image
        try:
            if isinstance(image, str):
                return await self._checked_uri(image, field)
            return await self._url(image, field, sha256)
        except KlingError as error:
            # The traceback's frames hold the image, and the error may be kept for long.
            failure = error.with_traceback(None)
        raise failure

    async def upload(self, source: object) -> str:
        """Upload a picture, a video or a sound as callers may pass it, and return its URL; a URL is returned as it is.

        Raises:
            InvalidJobError: It cannot be read, or the service would refuse it.
            UnsupportedError: The provider has no uploads.
            ApiError: The service or its storage refused the upload.
            TransportError: The service or its storage could not be reached.
        """
        problems: list[Problem] = []
        check = check_image if isinstance(source, str) else check_file
        file: Picture
        if is_decoded(source):
            # Encoding a PIL image takes seconds.
            file = await anyio.to_thread.run_sync(check, "file", source, problems)
        else:
            file = check("file", source, problems)
        if isinstance(file, VideoFrame):
            problems.append(Problem("file", "expected a file, got a frame of a video, which stands in jobs alone"))
        if problems or isinstance(file, VideoFrame):
            raise InvalidJobError(problems)
        if not isinstance(file, str) and not self._asked_inline:
            uploads_of(self._provider)
        return await self.url(file, field="file")

    async def check(self, file: Path | bytes, *, field: str) -> None:
        """Check a file as `url` does, without sending anything.

        Raises:
            InvalidJobError: The file cannot be read, or the service would refuse it.
            UnsupportedError: The provider has no uploads, and it is no image.
        """
        facts = await anyio.to_thread.run_sync(lambda: inspect(file, field=field, fit=self._prepare.fit))
        self._check_way(facts, field)

    def _check_way(self, facts: FileFacts | ImageFacts, field: str) -> None:
        """Raise if there is no way to send a file."""
        if not is_picture(facts.type) and not self._uploads:
            kind, name, _ = MEDIA[facts.type]
            # A provider has a name, and what only uploads has none.
            at = getattr(self._provider, "name", "the provider")
            raise UnsupportedError(
                f"{field}: {at} takes no uploads, and a {kind} ({name}) cannot be sent in the request as pictures are; "
                "nothing was sent",
                advice="give it as a URL that the service can read",
            )

    async def _url(self, image: Path | bytes, field: str, sha256: str | None) -> str:
        if self._inline:
            uri = await self._data_uri(image, field, sha256)
            if uri is not None:
                return uri
        sha256 = sha256 or await digest(image, field=field)
        cache_key = self._cache_key(sha256)
        upload = self._in_progress.setdefault(cache_key, _SharedUpload())
        upload.waiting += 1
        until = self._clock.monotonic() + RULES[Kind.UPLOAD].within
        try:
            async with upload.lock:
                url = await self._cached_url(cache_key)
                if url is not None:
                    return url
                remaining = until - self._clock.monotonic()
                if upload.failure is not None and (remaining < MIN_REMAINING_S or not upload.failure.transient):
                    # A copy: one exception raised in many tasks would collect all of their tracebacks.
                    raise copy.copy(upload.failure)
                return await self._upload_file(image, field, sha256, upload, until)
        finally:
            upload.waiting -= 1
            # The failure is shared only by concurrent callers: later ones try again.
            if not upload.waiting:
                del self._in_progress[cache_key]

    async def _upload_file(
        self, image: Path | bytes, field: str, sha256: str, upload: _SharedUpload, until: float
    ) -> str:
        """Read and upload an image and return its URL.

        Args:
            image: The image.
            field: Field of the job.
            sha256: Digest of the image.
            upload: Has the failure for other callers.
            until: Monotonic time of the last attempt, postponed by the wait for a place.
        """
        asked = self._clock.monotonic()
        async with self.turns.take() as turn:
            prepared = await self._prepare.read(image, field, sha256)
            async with self._memory_for(prepared):
                until += self._clock.monotonic() - asked
                prepared = await self._prepare.converted(prepared, image, field)
                _warn(prepared.facts, image if isinstance(image, Path) else field)
                turn.expect(prepared.facts.bytes)
                try:
                    return await self._upload(prepared, until, turn)
                except KlingError as error:
                    upload.failure = error
                    raise

    async def _data_uri(self, image: Path | bytes, field: str, sha256: str | None) -> str | None:
        """Read, check and, if needed, convert an image, and return it as a data URI; None for a file to upload.

        Raises:
            UnsupportedError: It is no image, and the provider has no uploads.
        """
        prepared = await self._prepare.read(image, field, sha256)
        self._check_way(prepared.facts, field)
        if not is_picture(prepared.facts.type):
            return None
        prepared = await self._prepare.converted(prepared, image, field)
        _warn(prepared.facts, image if isinstance(image, Path) else field)
        return await anyio.to_thread.run_sync(_as_data_uri, prepared)

    async def _checked_uri(self, uri: str, field: str) -> str:
        """Return a data URI after checking it: the same, unless it is converted."""
        content = await anyio.to_thread.run_sync(content_of_uri, uri)
        prepared = await self._prepare.read(content, field, None)
        unfit = prepared.unfit
        prepared = await self._prepare.converted(prepared, content, field)
        _warn(prepared.facts, field)
        return await anyio.to_thread.run_sync(_as_data_uri, prepared) if unfit else uri

    def _is_from_memory(self, prepared: PreparedImage) -> bool:
        """Return whether an image that is not in memory yet has to be, while it is uploaded."""
        streamed = isinstance(prepared.content, ImageStream)
        return prepared.unfit or (streamed and not (self._streams and self._use_tickets))

    def _memory_for(self, prepared: PreparedImage) -> AbstractAsyncContextManager[object]:
        """Return what to wait for before a file is read into memory."""
        if not self._is_from_memory(prepared):
            return nullcontext()
        large = prepared.facts.bytes > MAX_IMAGE_BYTES and not is_picture(prepared.facts.type)
        return self._large_in_memory if large else self._in_memory

    async def _upload(self, prepared: PreparedImage, until: float, turn: Turn) -> str:
        facts = prepared.facts
        # The name of the user's file is private.
        filename = prepared.digest[:16] + MEDIA[facts.type][2]
        url = await self._upload_by_ticket(filename, prepared, until, turn) if self._use_tickets else None
        if url is None:
            url = await self._upload_as_form(filename, prepared, until, turn)
            # Only after it has worked: a wrong base URL has neither of the two.
            self._use_tickets = False
        expires_at = self._clock.now() + UPLOAD_REUSE_S
        cache_key = self._cache_key(prepared.digest)
        self._cache(cache_key, url, expires_at)
        if self._memory is not None:
            self._memory.note_upload(cache_key, url, expires_at)
            if self._prepare.fit and self._prepare.background != WHITE:
                # For jobs whose image is known by its digest alone.
                self._memory.note_upload(prepared.digest + OTHER_GROUND_SUFFIX, url, expires_at)
        return url

    async def _upload_by_ticket(self, filename: str, prepared: PreparedImage, until: float, turn: Turn) -> str | None:
        """Upload a file with a ticket and return its URL; None if the service has no tickets."""
        provider, facts = uploads_of(self._provider), prepared.facts
        asked = provider.upload_ticket(filename=filename, size=facts.bytes, content_type=facts.type)
        ticket = await self._read(
            asked,
            lambda reply: None if reply.status in NO_TICKET_STATUSES else provider.read_ticket(reply),
            until,
            turn,
        )
        if ticket is None:
            return None
        content, body = prepared.content, None
        if isinstance(content, ImageStream) and self._streams:
            body = content
        elif isinstance(content, ImageStream):
            content = await anyio.to_thread.run_sync(bytes_of, content)
        put = HttpRequest(
            method=ticket.method,
            url=ticket.url,
            effect=Effect.READ,
            headers=ticket.headers,
            body=content if isinstance(content, bytes) else None,
        )

        async def store() -> None:
            reply = await send_once(self._reads.transport, put, body)
            if not is_stored(reply, ticket, self._clock.now()):
                await self._check_stored(ticket, facts.bytes)

        await self._reads.repeat(store, Kind.UPLOAD, within=until - self._clock.monotonic(), turn=turn)
        turn.size = facts.bytes
        return ticket.download_url

    async def _check_stored(self, ticket: UploadTicket, size: int) -> None:
        """Look for an uploaded file where the service will read it.

        Raises:
            ServerError: It is not there, or is not as long as it should be.
            TransportError: There was no reply.
        """
        # The first byte alone; the reply tells the length of the whole.
        look = HttpRequest(method="GET", url=ticket.download_url, effect=Effect.READ, headers={"Range": "bytes=0-0"})
        reply = await send_once(self._reads.transport, look)
        whole = reply.headers.get("content-range", "").rpartition("/")[2] or reply.headers.get("content-length")
        if reply.status not in _FOUND or whole != str(size):
            raise ServerError(
                f"the upload of a file to {loggable_url(ticket.url)} was answered, but the file is not there",
                status=reply.status,
                request_id=reply.request_id,
                advice="try again, or give the file as a URL; a proxy may have answered instead of the storage",
            )

    async def _upload_as_form(self, filename: str, prepared: PreparedImage, until: float, turn: Turn) -> str:
        """Upload a file as a form and return its URL."""
        provider, facts = uploads_of(self._provider), prepared.facts
        request = await anyio.to_thread.run_sync(
            lambda: provider.upload_binary(
                filename=filename, content=bytes_of(prepared.content), content_type=facts.type
            )
        )
        url = await self._read(request, provider.read_upload, until, turn)
        turn.size = facts.bytes
        return url

    async def _read(self, request: HttpRequest, parse: Callable[[HttpResponse], T], until: float, turn: Turn) -> T:
        within = until - self._clock.monotonic()
        return await self._reads.read(request, parse, Kind.UPLOAD, within=within, turn=turn)

    def _cache_key(self, sha256: str) -> str:
        """Return the key of an upload in the cache: a converted image is another file than the original."""
        if not self._prepare.fit:
            return sha256
        ground = self._prepare.background
        return sha256 + CONVERTED_SUFFIX + ("" if ground == WHITE else f"-{ground}")

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


def _warn(facts: FileFacts | ImageFacts, name: Path | str) -> None:
    """Log what the service may refuse about a file that is sent, or show otherwise."""
    for warning in (*facts.warnings, *facts.cautions):
        log.warning("%s: %s", name, warning)


def _as_data_uri(prepared: PreparedImage) -> str:
    content = base64.b64encode(bytes_of(prepared.content)).decode("ascii")
    return f"data:{prepared.facts.type};base64,{content}"
