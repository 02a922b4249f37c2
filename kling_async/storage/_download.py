"""One output on its way into a part: over as many requests as it takes, and in little memory."""

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

KEPT = 7 * 86_400.0
"""Seconds that the service keeps an output."""

_ABSENT = frozenset({404, 410})
_SLACK = 3600.0
"""Seconds by which our clock and the service's may differ."""
_GONE_AFTER = 2
"""Requests that must find nothing where nothing is expected any more."""
_WAITING = 2 * 2**20
"""Bytes that may wait to be written, before reading waits."""


@attrs.define(kw_only=True, eq=False)
class Download:
    """One output on its way into a part, over as many requests as it takes.

    Attributes:
        transport: Sends; no Authorization goes with the request.
        url: Where the output is.
        part: Takes the bytes.
        clock: Waits between attempts.
        attempts: Requests at most.
        rng: Draws the jitter of the pauses from [0, 1).
        created_at: When its prediction was made, seconds since the epoch; None when that is not known.
        etag: The strong validator of what the part holds, or empty.
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
        """Bring the whole output.

        Raises:
            OutputGoneError: It is not there, and too old to be expected there.
            StorageError: The service refused, or the attempts are used up.
            OSError: The disk refused.
        """
        absent = 0
        for attempt in itertools.count(1):
            failure: Exception
            asked = None
            try:
                async with self.transport.stream(self._request()) as response:
                    await self._take(response)
            except TransportError as error:
                failure = error
            except _CutError as error:
                failure = error
                asked = error.asked
                absent += error.absent
                if absent >= _GONE_AFTER and self._is_old():
                    raise self._gone() from failure
            else:
                return
            if attempt >= self.attempts:
                reason = failure.message if isinstance(failure, TransportError) else str(failure)
                raise self._error(f"the download failed {attempt} times, at last: {reason}") from failure
            await self.clock.sleep(pause(attempt, self.rng, asked))

    def _request(self) -> HttpRequest:
        # Identity, because lengths and ranges are those of the bytes as stored.
        headers = {"Accept-Encoding": "identity"}
        if self.part.size and self.etag:
            headers |= {"Range": f"bytes={self.part.size}-", "If-Range": self.etag}
        return HttpRequest(method="GET", url=self.url, headers=headers)

    async def _take(self, response: StreamedResponse) -> None:
        head = HttpResponse(status=response.status, headers=response.headers)
        if head.status in RETRIED_STATUSES:
            raise _CutError(f"{loggable_url(self.url)} answered {head.status}", head.retry_after(self.clock.now()))
        if head.status in _ABSENT:
            # Not there yet, for all that is known: what was made just now may take a moment to reach the host.
            raise _CutError(f"{loggable_url(self.url)} answered {head.status}", absent=True)
        if head.status == 200:  # noqa: PLR2004 -- the whole output, asked for or not
            total = await self._from_start(head)
        elif head.status in {206, 416}:
            total = self._from_cut(head)
        else:
            raise self._refused(head)
        await self._pump(response.chunks())
        if total is not None and self.part.size != total:
            if self.part.size > total:
                self.etag = ""
            raise _CutError(f"{loggable_url(self.url)} sent {self.part.size} of {total} bytes")

    async def _from_start(self, head: HttpResponse) -> int | None:
        """The length of the output, as far as it is known."""
        if self.part.size:
            await anyio.to_thread.run_sync(self.part.restart)
        if head.headers.get("content-encoding", "identity") != "identity":
            # What arrives is decoded: neither its length nor an offset into it has a meaning for the server.
            self.etag = ""
            return None
        etag = head.headers.get("etag", "")
        # If-Range takes no weak validator: equal for the server's purposes is not equal byte for byte.
        self.etag = "" if etag.startswith("W/") else etag
        length = head.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None

    def _from_cut(self, head: HttpResponse) -> int | None:
        """The length of the output, as far as it is known, when the reply goes on where the last one was cut."""
        given = _RANGE.fullmatch(head.headers.get("content-range", "").strip())
        same = head.headers.get("etag", self.etag) == self.etag
        if given is None or int(given["start"]) != self.part.size or not same:
            self.etag = ""
            raise _CutError(f"{loggable_url(self.url)} answered {head.status} with another range than it was asked for")
        return None if given["total"] == "*" else int(given["total"])

    async def _pump(self, chunks: AsyncIterator[bytes]) -> None:
        """Write what comes while more of it comes. What came before a cut is written too."""
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

    def _is_old(self) -> bool:
        return self.created_at is not None and self.clock.now() - self.created_at >= KEPT - _SLACK

    def _gone(self) -> OutputGoneError:
        return OutputGoneError(
            f"the output has expired after its 7 days: it is not at {loggable_url(self.url)} any more "
            f"(for {self.part.label})",
            target=self.part.label,
        )

    def _refused(self, head: HttpResponse) -> StorageError:
        return self._error(
            f"the output's host answered {head.status}",
            advice="read the prediction again: its output may have got a new URL; that costs nothing",
        )

    def _error(self, message: str, *, advice: str | None = None) -> StorageError:
        target = str(self.part.label)
        return StorageError(f"{message} ({loggable_url(self.url)}, for {target})", target=target, advice=advice)


class _CutError(Exception):
    """An attempt that did not bring everything; the next one may.

    Attributes:
        asked: Seconds that the server asked to wait, or None.
        absent: Whether the server has no such output.
    """

    def __init__(self, message: str, asked: float | None = None, *, absent: bool = False) -> None:
        super().__init__(message)
        self.asked = asked
        self.absent = absent


_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")


class _Writer:
    """Writes to a part, in one thread from the first byte to the last.

    To hand it block after block takes longer than the writing: a switch of threads each, and by then the block has left
    the processor's cache.

    Attributes:
        failure: Why nothing is written any more.
    """

    def __init__(self, part: Part) -> None:
        self.failure: OSError | None = None
        self._part = part
        self._loop = asyncio.get_running_loop()
        self._pieces: SimpleQueue[bytes | None] = SimpleQueue()
        self._put = self._written = 0
        self._full = False
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Write until `end`."""
        # With a limiter of its own: however many other threads there are, this one must not wait for them.
        await anyio.to_thread.run_sync(self._write, limiter=anyio.CapacityLimiter(1))

    async def put(self, piece: bytes) -> None:
        """Give it a piece; return when there is room for more."""
        self._pieces.put(piece)
        self._put += len(piece)
        if self._put - self._written >= _WAITING:
            self._room.clear()
            self._full = True
            # The thread may have looked before that was said.
            if not self._has_room():
                await self._room.wait()

    def end(self) -> None:
        """Nothing more comes."""
        self._pieces.put(None)

    def _has_room(self) -> bool:
        return self._put - self._written < _WAITING // 2

    def _write(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                if self.failure is None:
                    self._part.write(piece)
            except OSError as error:
                self.failure = error
            self._written += len(piece)
            if self._full and self._has_room():
                self._full = False
                # A loop that is closed has nobody left who waits.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._room.set)
