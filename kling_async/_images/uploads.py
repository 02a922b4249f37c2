"""Images on their way to the service: read, looked at, put up once."""

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

REMEMBERED = 6 * 86_400.0
"""Seconds that an upload is used again. The service deletes uploads after 7 days, and the job still has to read it."""
MAX_REMEMBERED = 10_000
"""Uploads that are remembered; the one that was not used for longest is forgotten first."""
ATTEMPTS = 4
"""How often a ticket is asked for, and how often a file is sent to it."""
NO_TICKETS = frozenset({404, 405})
"""Statuses by which a service says that it gives no tickets; the upload in one request is older, and documented."""
FITTED_AT_ONCE = 2
"""Images that are decoded at the same time: each takes a few hundred megabytes at most."""

log = logging.getLogger("kling_async")


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
    return await anyio.to_thread.run_sync(sha256, image, field)


@attrs.frozen
class _Ready:
    """An image that can be sent.

    Attributes:
        content: What is sent.
        facts: What is known of it.
        digest: SHA-256 of the image that was given, in hex.
    """

    content: bytes = attrs.field(repr=False)
    facts: ImageFacts
    digest: str

    @property
    def data_uri(self) -> str:
        return f"data:{self.facts.type};base64,{base64.b64encode(self.content).decode('ascii')}"


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
        fit: Convert with Pillow what the service would refuse, or what its EXIF data turns.
        memory: Remembers uploads for later sessions.
        rng: Draws the jitter of the pauses from [0, 1).
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
        self._fitting = anyio.CapacityLimiter(FITTED_AT_ONCE)
        self._memory = memory
        self._rng = rng
        self._tickets = True
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._wanted: dict[str, _Upload] = {}

    async def url(self, image: Image, *, field: str, sha256: str | None = None) -> str:
        """The URL to send for `image`: a string as it is, a file or bytes after it was checked and uploaded.

        Those who ask for the same content at the same time share one upload and its failure. When the one who uploads
        is cancelled, the next one takes over.

        Args:
            image: The image.
            field: How errors name it: `image` or `end_image`.
            sha256: The digest by which the job was keyed, in hex; None when it was not read before.

        Raises:
            InvalidJobError: The file cannot be read, has changed, or the service would refuse the image.
            UnsupportedError: The provider takes no uploads.
            ApiError: The service or its storage refused the upload.
            TransportError: It could not be reached.
        """
        if isinstance(image, str):
            return image
        try:
            return await self._url(image, field, sha256)
        except KlingError as error:
            # The frames that it came through hold the image: an error that is kept must not keep megabytes.
            failure = error.with_traceback(None)
        raise failure

    async def _url(self, image: Path | bytes, field: str, sha256: str | None) -> str:
        if self._inline:
            ready = await self._ready(image, field, sha256)
            return await anyio.to_thread.run_sync(lambda: ready.data_uri)
        sha256 = sha256 or await digest(image, field=field)
        name = self._name(sha256)
        upload = self._wanted.setdefault(name, _Upload())
        upload.waiting += 1
        try:
            async with upload.lock:
                if upload.failure is not None:
                    # A copy: one exception raised in many tasks would gather all of their tracebacks.
                    raise copy.copy(upload.failure)
                return await self._remembered(name) or await self._first(image, field, sha256, upload)
        finally:
            upload.waiting -= 1
            # With the last who waits the failure is forgotten: who comes then begins anew.
            if not upload.waiting:
                del self._wanted[name]

    async def _first(self, image: Path | bytes, field: str, sha256: str, upload: _Upload) -> str:
        async with self._slots:
            # Read here and not before: only holders of a slot hold an image in memory.
            ready = await self._ready(image, field, sha256)
            for warning in ready.facts.warnings:
                log.warning("%s: %s", image if not isinstance(image, bytes) else field, warning)
            try:
                return await self._upload(ready)
            except KlingError as error:
                upload.failure = error
                raise

    async def _ready(self, image: Path | bytes, field: str, sha256: str | None) -> _Ready:
        """The image as it will be sent.

        Raises:
            InvalidJobError: It has changed, or the service would refuse it.
        """
        if self._fit:
            facts = await anyio.to_thread.run_sync(lambda: preflight(image, field=field, fit=True))
            if facts.unfit:
                return await anyio.to_thread.run_sync(_fitted, image, field, sha256, limiter=self._fitting)
        return await anyio.to_thread.run_sync(_as_it_is, image, field, sha256)

    async def _upload(self, ready: _Ready) -> str:
        content, facts = ready.content, ready.facts
        # Neutral: the user's path is none of the service's business.
        filename = ready.digest[:16] + {"image/jpeg": ".jpg", "image/png": ".png"}[facts.type]
        url = await self._by_ticket(filename, content, facts) if self._tickets else None
        if url is None:
            url = await self._in_one(filename, content, facts)
            # Only now: a wrong address has neither of the two.
            self._tickets = False
        until = self._clock.now() + REMEMBERED
        name = self._name(ready.digest)
        self._remember(name, url, until)
        if self._memory is not None:
            self._memory.note_upload(name, url, until)
        return url

    async def _by_ticket(self, filename: str, content: bytes, facts: ImageFacts) -> str | None:
        """The URL of the file after it was put where the ticket says; None when the service gives no tickets."""
        provider = uploads_of(self._provider)
        asked = provider.upload_ticket(filename=filename, size=facts.bytes, content_type=facts.type)
        reply = await self._send(asked)
        if reply.status in NO_TICKETS:
            return None
        ticket = provider.read_ticket(reply)
        put = HttpRequest(
            method=ticket.method, url=ticket.url, effect=Effect.READ, headers=ticket.headers, body=content
        )
        _judge(await self._send(put), ticket, self._clock.now())
        return ticket.download_url

    async def _in_one(self, filename: str, content: bytes, facts: ImageFacts) -> str:
        """The URL of the file after it was sent as a form."""
        provider = uploads_of(self._provider)
        request = await anyio.to_thread.run_sync(
            lambda: provider.upload_binary(filename=filename, content=content, content_type=facts.type)
        )
        return provider.read_upload(await self._send(request))

    async def _send(self, request: HttpRequest) -> HttpResponse:
        return await send_read(self._transport, request, self._clock, attempts=ATTEMPTS, rng=self._rng)

    def _name(self, sha256: str) -> str:
        """What an upload is remembered as: what is made to fit is another file than the one that was given."""
        return sha256 + CONVERTED_SUFFIX if self._fit else sha256

    async def _remembered(self, name: str) -> str | None:
        now = self._clock.now()
        if name in self._known:
            url, until = self._known[name]
            if now < until:
                self._known.move_to_end(name)
                return url
            del self._known[name]
        # Not kept here: when it ends is known only where it is written down.
        return None if self._memory is None else await self._memory.uploaded(name, now)

    def _remember(self, name: str, url: str, until: float) -> None:
        self._known[name] = url, until
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


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
        f"the storage at {loggable_url(ticket.url)} answered {status} to the upload of an image",
        status=status,
        retry_after=response.retry_after(now),
        request_id=response.request_id,
        advice="ask again, or give the image as a URL",
    )


def _as_it_is(image: Path | bytes, field: str, expected: str | None) -> _Ready:
    content = read(image, field, most=MAX_IMAGE_BYTES)
    return _Ready(content, preflight(content, field=field), _verified(image, content, field, expected))


def _fitted(image: Path | bytes, field: str, expected: str | None) -> _Ready:
    # Imported here: Pillow is an extra.
    from .convert import fitted  # noqa: PLC0415

    content = read(image, field)
    found = _verified(image, content, field, expected)
    fit = fitted(content, field=field)
    return _Ready(fit, preflight(fit, field=field), found)


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
