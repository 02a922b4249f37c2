"""Resumable download of an output into a part, with bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from kling_async._core.clock import Clock
from kling_async._core.http import HttpRequest, HttpResponse
from kling_async._core.transport import Transport, loggable_url
from kling_async._http.retry import RETRIED_STATUSES, pause
from kling_async.errors import OutputGoneError, StorageError, TransportError

from ._part import Part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kling_async._core.transport import StreamedResponse

OUTPUT_LIFETIME_S = 7 * 86_400.0
"""Seconds for which the service keeps an output."""

_NOT_FOUND = frozenset({404, 410})
_CLOCK_SLACK_S = 3600.0
"""Allowed difference between the local clock and the service's, in seconds."""
_MIN_NOT_FOUND = 2
"""Not-found responses after which an output past its lifetime counts as expired."""
_MAX_BUFFERED_BYTES = 2 * 2**20
"""Bytes that may be waiting for the disk before reading from the network pauses."""


@attrs.define(kw_only=True, eq=False)
class Download:
    """Download of one output into a part, over several requests if need be.

    Attributes:
        transport: Transport; the request carries no Authorization header.
        url: URL of the output.
        part: Temporary file that receives the bytes.
        clock: Clock for the waits between attempts.
        attempts: Maximum number of requests.
        rng: Source of jitter, uniform in [0, 1).
        created_at: Creation time of the prediction in seconds since the epoch; None if unknown.
        etag: Strong validator of the bytes in the part, or empty.
    """

    transport: Transport
    url: str
    part: Part
    clock: Clock
    attempts: int
    rng: Callable[[], float]
    created_at: float | None
    etag: str = attrs.field(default="", init=False)

    async def run(self) -> None:
        """Download the whole output.

        Raises:
            OutputGoneError: It is not found, and past its lifetime.
            StorageError: The host refused, or the attempts are used up.
            OSError: The disk refused.
        """
        not_found = 0
        for attempt in itertools.count(1):
            failure: Exception
            retry_after = None
            try:
                async with self.transport.stream(self._request()) as response:
                    await self._receive(response)
            except TransportError as error:
                failure = error
            except _IncompleteError as error:
                failure = error
                retry_after = error.retry_after
                not_found += error.not_found
                if not_found >= _MIN_NOT_FOUND and self._is_past_lifetime():
                    raise self._gone() from failure
            else:
                return
            if attempt >= self.attempts:
                reason = failure.message if isinstance(failure, TransportError) else str(failure)
                raise self._error(f"the download failed {attempt} times, at last: {reason}") from failure
            await self.clock.sleep(pause(attempt, self.rng, retry_after))

    def _request(self) -> HttpRequest:
        # Without compression, so that lengths and ranges refer to the stored bytes.
        headers = {"Accept-Encoding": "identity"}
        if self.part.size and self.etag:
            headers |= {"Range": f"bytes={self.part.size}-", "If-Range": self.etag}
        return HttpRequest(method="GET", url=self.url, headers=headers)

    async def _receive(self, response: StreamedResponse) -> None:
        head = HttpResponse(status=response.status, headers=response.headers)
        if head.status in RETRIED_STATUSES:
            raise _IncompleteError(
                f"{loggable_url(self.url)} answered {head.status}", head.retry_after(self.clock.now())
            )
        if head.status in _NOT_FOUND:
            # Retried: a new output may take a moment to reach its host.
            raise _IncompleteError(f"{loggable_url(self.url)} answered {head.status}", not_found=True)
        if head.status == 200:  # noqa: PLR2004 -- the whole output, whether a range was requested or not
            total = await self._begin(head)
        elif head.status in {206, 416}:
            total = self._resume(head)
        else:
            raise self._refused(head)
        await self._pump(response.chunks())
        if total is not None and self.part.size != total:
            if self.part.size > total:
                self.etag = ""
            raise _IncompleteError(f"{loggable_url(self.url)} sent {self.part.size} of {total} bytes")

    async def _begin(self, head: HttpResponse) -> int | None:
        """Start at the first byte; return the length of the output, or None if unknown."""
        if self.part.size:
            await anyio.to_thread.run_sync(self.part.restart)
        if head.headers.get("content-encoding", "identity") != "identity":
            # The transport decodes it, so its length and offsets mean nothing to the server.
            self.etag = ""
            return None
        etag = head.headers.get("etag", "")
        # If-Range needs a strong validator: a weak one does not promise equal bytes.
        self.etag = "" if etag.startswith("W/") else etag
        length = head.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None

    def _resume(self, head: HttpResponse) -> int | None:
        """Check that the response continues the part; return the length of the output, or None if unknown.

        Raises:
            _IncompleteError: It is another range or another version of the output.
        """
        given = _RANGE.fullmatch(head.headers.get("content-range", "").strip())
        same = head.headers.get("etag", self.etag) == self.etag
        if given is None or int(given["start"]) != self.part.size or not same:
            self.etag = ""
            raise _IncompleteError(f"{loggable_url(self.url)} answered {head.status} with another range than requested")
        return None if given["total"] == "*" else int(given["total"])

    async def _pump(self, chunks: AsyncIterator[bytes]) -> None:
        """Write chunks while more arrive. Bytes received before the connection broke are written too."""
        writer = _Writer(self.part)
        lost: TransportError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            try:
                async for chunk in chunks:
                    await writer.put(chunk)
                    if writer.failure is not None:
                        break
            except TransportError as error:
                lost = error
            finally:
                writer.end()
        failure = writer.failure or lost
        if failure is not None:
            raise failure

    def _is_past_lifetime(self) -> bool:
        if self.created_at is None:
            return False
        return self.clock.now() - self.created_at >= OUTPUT_LIFETIME_S - _CLOCK_SLACK_S

    def _gone(self) -> OutputGoneError:
        return OutputGoneError(
            f"the output expired after 7 days: not found at {loggable_url(self.url)} (for {self.part.label})",
            target=self.part.label,
        )

    def _refused(self, head: HttpResponse) -> StorageError:
        return self._error(
            f"the output's host answered {head.status}",
            advice="read the prediction again, which is free: its output may have a new URL",
        )

    def _error(self, message: str, *, advice: str | None = None) -> StorageError:
        target = str(self.part.label)
        return StorageError(f"{message} ({loggable_url(self.url)}, for {target})", target=target, advice=advice)


class _IncompleteError(Exception):
    """An attempt did not complete the part, but the next one may.

    Attributes:
        retry_after: Seconds that the server asked to wait, or None.
        not_found: Whether the server does not have the output.
    """

    def __init__(self, message: str, retry_after: float | None = None, *, not_found: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.not_found = not_found


_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")


class _Writer:
    """Writer of a part, in a single thread from the first byte to the last.

    A thread call for each block would take longer than the writing: it costs a switch of threads, after which the block
    has left the processor's cache.

    Attributes:
        failure: Error of the disk, after which nothing more is written; None without one.
    """

    def __init__(self, part: Part) -> None:
        self.failure: OSError | None = None
        self._part = part
        self._loop = asyncio.get_running_loop()
        self._chunks: SimpleQueue[bytes | None] = SimpleQueue()
        self._queued_bytes = self._written_bytes = 0
        self._paused = False
        self._has_space = asyncio.Event()

    async def run(self) -> None:
        """Write chunks until `end` is called."""
        # Its own limiter: the default one could make it wait for other threads.
        await anyio.to_thread.run_sync(self._write, limiter=anyio.CapacityLimiter(1))

    async def put(self, chunk: bytes) -> None:
        """Queue a chunk; return when there is space for more."""
        self._chunks.put(chunk)
        self._queued_bytes += len(chunk)
        if self._queued_bytes - self._written_bytes >= _MAX_BUFFERED_BYTES:
            self._has_space.clear()
            self._paused = True
            # The thread may have drained the queue before `_paused` was set.
            if not self._is_drained():
                await self._has_space.wait()

    def end(self) -> None:
        """Signal end of stream."""
        self._chunks.put(None)

    def _is_drained(self) -> bool:
        return self._queued_bytes - self._written_bytes < _MAX_BUFFERED_BYTES // 2

    def _write(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            try:
                if self.failure is None:
                    self._part.write(chunk)
            except OSError as error:
                self.failure = error
            self._written_bytes += len(chunk)
            if self._paused and self._is_drained():
                self._paused = False
                # Raised when the loop is closed: then no task waits.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._has_space.set)
