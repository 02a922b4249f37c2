"""Resumable download of an output into a part, with bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from kling_async._core.clock import Clock
from kling_async._core.http import HttpRequest, HttpResponse
from kling_async._core.polling import Backoff
from kling_async._core.transport import Transport, loggable_url
from kling_async._http.retry import pause
from kling_async._log import log
from kling_async.errors import OutputGoneError, StorageError, TransportError

from ._answers import FINAL, OutputAnswers
from ._part import Part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kling_async._core.transport import StreamedResponse

OUTPUT_LIFETIME_S = 7 * 86_400.0
"""Seconds for which the service keeps an output."""
BACKOFF = Backoff(first=0.5, cap=300.0)
"""Pauses between two attempts without progress."""
MIN_SPEED = 16 * 1024
"""Bytes per second, on average over `SPEED_WINDOW_S`, below which a transfer is ended: others get its slot, and it goes
on after them. Where it has to begin again, the limit is halved each time, so that it completes on a slow line too."""
SPEED_WINDOW_S = 60.0
"""Seconds over which the speed is measured."""
MIN_PROGRESS_BYTES = 64 * 1024
"""New bytes that postpone the deadline, and after which the pauses begin again."""

_CLOCK_SLACK_S = 3600.0
"""Allowed difference between the local clock and the service's, in seconds."""
_MAX_BUFFERED_BYTES = 2 * 2**20
"""Bytes that may be waiting for the disk before reading from the network pauses."""


@attrs.define(kw_only=True, eq=False)
class Download:
    """Download of one output into a part, over several requests if need be.

    Attributes:
        transport: Transport; the request carries no Authorization header.
        url: URL of the output.
        part: Temporary file that receives the bytes.
        clock: Clock of deadlines and speeds.
        rng: Source of jitter, uniform in [0, 1).
        created_at: Creation time of the prediction in seconds since the epoch; None if unknown.
        deadline: Seconds without progress after which it is given up; at most what is left of the output's lifetime.
        max_bytes: Greatest size of the output.
        crowded: Whether the last attempt failed as downloads do that are too many at once.
    """

    transport: Transport
    url: str
    part: Part
    clock: Clock
    rng: Callable[[], float]
    created_at: float | None
    deadline: float
    max_bytes: int
    crowded: bool = attrs.field(default=False, init=False)
    # Strong validator of the bytes in the part, or empty.
    _etag: str = attrs.field(default="", init=False)
    _answers: OutputAnswers = attrs.field(factory=OutputAnswers, init=False)
    _began_at: float | None = attrs.field(default=None, init=False)
    _gives_up_at: float = attrs.field(default=math.inf, init=False)
    _failures: int = attrs.field(default=0, init=False)
    _reached_bytes: int = attrs.field(default=0, init=False)
    _min_speed: float = attrs.field(default=MIN_SPEED, init=False)

    async def attempt(self) -> float | None:
        """Send one request for what is missing.

        Returns:
            None when the output is complete and checked, else the seconds to wait before the next attempt.

        Raises:
            OutputGoneError: It is not found, and past its lifetime.
            StorageError: It is incomplete at its host, too large, or was not received until the deadline.
            OSError: The disk refused.
        """
        if self._began_at is None:
            self._began_at = self.clock.monotonic()
            self._gives_up_at = self._began_at + self._patience()
        await anyio.to_thread.run_sync(self.part.open)
        try:
            async with self.transport.stream(self._request()) as response:
                await self._receive(response)
        except TransportError as error:
            answer = error.message.removeprefix(f"GET {loggable_url(self.url)}: ")
            return await self._delay_after(_FailedError(answer), error)
        except _FailedError as failure:
            return await self._delay_after(failure, failure)
        return None

    async def _delay_after(self, failure: _FailedError, cause: Exception) -> float:
        """Return the seconds to wait after a failed attempt.

        Raises:
            StorageError: No other attempt is made.
        """
        now = self.clock.monotonic()
        self.crowded = isinstance(cause, TransportError) or failure.is_overload
        settled = self._answers.add(failure.answer, now, failure.detail)
        if failure.is_gone and settled and self._is_past_lifetime():
            raise self._gone() from cause
        if failure.is_incomplete_mp4 and settled:
            raise self._error(
                "the host has only an incomplete MP4 of the output",
                advice="download it from its URL to see what it has; ask the service's support for a refund",
            ) from cause
        if failure.is_too_large:
            raise self._error(
                "the output is larger than allowed",
                advice="if its host is right, raise max_output_bytes of the session (--max-output-bytes), and save it "
                "again at no cost",
            ) from cause
        if self.part.size >= self._reached_bytes + MIN_PROGRESS_BYTES:
            self._reached_bytes, self._failures = self.part.size, 0
            self._gives_up_at = max(self._gives_up_at, now + self._patience())
        # After a slow transfer there is nothing to wait for but the others.
        self._failures = 1 if failure.is_slow else self._failures + 1
        left = self._gives_up_at - now
        if left <= 0:
            raise self._error("the output could not be downloaded") from cause
        if not self._etag or not self.part.size:
            if failure.is_slow:
                self._min_speed /= 2
            await anyio.to_thread.run_sync(self.part.release)
        delay = min(pause(self._failures, self.rng, failure.retry_after, BACKOFF), left)
        log.info("the output for %s was not received, retry in %.1f s: %s", self.part.label, delay, failure.answer)
        return delay

    def postpone(self, seconds: float) -> None:
        """Put off the time at which it is given up, by a wait for its turn."""
        self._gives_up_at += seconds

    def _patience(self) -> float:
        """Return the seconds without progress after which the download is given up."""
        lifetime = OUTPUT_LIFETIME_S
        if self.created_at is not None:
            lifetime = max(lifetime - (self.clock.now() - self.created_at), _CLOCK_SLACK_S)
        return min(self.deadline, lifetime)

    def _request(self) -> HttpRequest:
        # Without compression, so that lengths and ranges refer to the stored bytes.
        headers = {"Accept-Encoding": "identity"}
        if self.part.size and self._etag:
            headers |= {"Range": f"bytes={self.part.size}-", "If-Range": self._etag}
        return HttpRequest(method="GET", url=self.url, headers=headers)

    async def _receive(self, response: StreamedResponse) -> None:
        """Receive a reply into the part, and check it.

        Raises:
            _FailedError: The part is not complete.
            TransportError: The connection broke.
        """
        head = HttpResponse(status=response.status, headers=response.headers)
        if head.status == 200:  # noqa: PLR2004 -- the whole output, whether a range was requested or not
            total = await self._begin(head)
        elif head.status in {206, 416}:
            total = self._resume(head)
        else:
            raise _FailedError(
                str(head.status),
                retry_after=head.retry_after(self.clock.now()),
                is_gone=head.status in FINAL.statuses,
                is_overload=head.status == 429 or head.status >= 500,  # noqa: PLR2004 -- as the standard names them
            )
        if total is not None and total > self.max_bytes:
            raise self._too_large(f"{total:,} bytes are announced")
        await self._pump(response.chunks(), total)
        if self.part.size > self.max_bytes:
            raise self._too_large(f"more than {self.max_bytes:,} bytes were sent")
        if total is not None and self.part.size != total:
            if self.part.size > total:
                self._etag = ""
            raise _FailedError(f"{head.status} with another length", f"sent {self.part.size} of {total} bytes")
        flaw = await anyio.to_thread.run_sync(self.part.flaw)
        if flaw is None:
            return
        size, digest = self.part.size, self.part.sha256
        await anyio.to_thread.run_sync(self.part.release)
        if flaw.is_mp4:
            # The digest, because only the same bytes again show that the host has no others.
            answer = f"an incomplete MP4 of {size} bytes with SHA-256 {digest[:8]}: {flaw.reason}"
            raise _FailedError(answer, is_incomplete_mp4=True)
        kind = head.headers.get("content-type", "").partition(";")[0].strip()[:60] or "no Content-Type"
        raise _FailedError(f"{head.status} with {kind} that is no MP4", f"{size} bytes, {flaw.reason}")

    def _too_large(self, found: str) -> _FailedError:
        return _FailedError(f"{found}, and max_output_bytes is {self.max_bytes:,}", is_too_large=True)

    async def _begin(self, head: HttpResponse) -> int | None:
        """Start at the first byte; return the length of the output, or None if unknown."""
        if self.part.size:
            await anyio.to_thread.run_sync(self.part.restart)
        if head.headers.get("content-encoding", "identity") != "identity":
            # The transport decodes it, so its length and offsets mean nothing to the server.
            self._etag = ""
            return None
        etag = head.headers.get("etag", "")
        # If-Range needs a strong validator: a weak one does not promise equal bytes.
        self._etag = etag if _STRONG_ETAG.fullmatch(etag) else ""
        length = head.headers.get("content-length", "")
        return int(length) if _LENGTH.fullmatch(length) else None

    def _resume(self, head: HttpResponse) -> int | None:
        """Check that the response continues the part; return the length of the output, or None if unknown.

        Raises:
            _FailedError: It is another range or another version of the output.
        """
        given = _RANGE.fullmatch(head.headers.get("content-range", "").strip())
        same = head.headers.get("etag", self._etag) == self._etag
        if given is None or int(given["start"]) != self.part.size or not same:
            self._etag = ""
            raise _FailedError(f"{head.status} with another range than requested")
        return None if given["total"] == "*" else int(given["total"])

    async def _pump(self, chunks: AsyncIterator[bytes], total: int | None) -> None:
        """Write chunks while more are expected, and arrive fast enough, up to where the connection broke.

        Args:
            chunks: The body.
            total: Bytes of the whole output; None if unknown.

        Raises:
            _FailedError: It was too slow.
            TransportError: The connection broke.
            OSError: The disk refused.
        """
        writer = _Writer(self.part)
        lost: TransportError | _FailedError | None = None
        received, measured, since = self.part.size, self.part.size, self.clock.monotonic()
        most = self.max_bytes if total is None else total
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            try:
                async for chunk in chunks:
                    await writer.put(chunk)
                    received += len(chunk)
                    elapsed = self.clock.monotonic() - since
                    if writer.failure is not None or received > most:
                        break
                    if elapsed >= SPEED_WINDOW_S and received != total:
                        if received - measured < self._min_speed * elapsed:
                            lost = _FailedError(
                                "too slow", f"{received - measured} bytes in {elapsed:.0f} s", is_slow=True
                            )
                            break
                        measured, since = received, since + elapsed
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

    def _error(self, message: str, *, advice: str | None = None) -> StorageError:
        target = str(self.part.label)
        elapsed = self.clock.monotonic() - (self._began_at or 0.0)
        tries = "1 attempt" if self._answers.total == 1 else f"{self._answers.total} attempts"
        return StorageError(
            f"{message} ({loggable_url(self.url)}, for {target}) in {tries} over {elapsed:.0f} s; "
            f"expected an MP4, got: {self._answers}",
            target=target,
            advice=advice,
        )


class _FailedError(Exception):
    """An attempt did not complete the part, but the next one may.

    Attributes:
        answer: Description, the same for equal answers.
        detail: What differs from one such answer to the next.
        retry_after: Seconds that the server asked to wait, or None.
        is_gone: Whether the server does not have the output.
        is_incomplete_mp4: Whether it is an MP4 that ends early, although its length is as announced.
        is_slow: Whether it was ended for its speed.
        is_too_large: Whether it has, or is to have, more bytes than allowed.
        is_overload: Whether the server may have had too many requests.
    """

    def __init__(
        self,
        answer: str,
        detail: str = "",
        *,
        retry_after: float | None = None,
        is_gone: bool = False,
        is_incomplete_mp4: bool = False,
        is_slow: bool = False,
        is_too_large: bool = False,
        is_overload: bool = False,
    ) -> None:
        super().__init__(answer)
        self.answer = answer
        self.detail = detail
        self.retry_after = retry_after
        self.is_gone = is_gone
        self.is_incomplete_mp4 = is_incomplete_mp4
        self.is_slow = is_slow
        self.is_too_large = is_too_large
        self.is_overload = is_overload


# Longer numbers are no lengths, and Python refuses to convert those of some thousand digits.
_LENGTH = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes (?P<start>[0-9]{1,18})-[0-9]{1,18}/(?P<total>[0-9]{1,18}|\*)")
# Without the quotes, control and non-ASCII characters that could not be sent back.
_STRONG_ETAG = re.compile(r'"[!#-~]*"')


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
