"""Outputs on the local disk: complete and checked, or not there at all."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import random
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio
import anyio.to_thread
import attrs

from ._core.clock import Clock
from ._core.errors import StorageError, TransportError
from ._core.http import HttpRequest, HttpResponse
from ._core.prediction import SavedFile
from ._core.transport import Transport, shown
from ._retry import PASSING, pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._core.transport import StreamedResponse

__all__ = ["save_output", "target_path"]

_BLOCK = 2**20
"""Bytes that go to the disk at once: fewer cost a thread switch per network read, more only memory."""
_MAX_NAME = 120
"""Bytes of a file name, its suffix included: far below the 255 of file systems, so that a prefix still fits."""


async def save_output(
    transport: Transport,
    url: str,
    target: Path,
    clock: Clock,
    *,
    attempts: int = 5,
    rng: Callable[[], float] = random.random,
) -> SavedFile:
    """Download an output to `target`.

    The bytes go to a temporary file beside it, which takes its name only when they are all there; an older file of that
    name is replaced in one step. A transfer that was cut goes on where it stopped. Whatever ends it early, cancellation
    included, the temporary file is removed.

    Args:
        transport: Sends; no Authorization goes with the request.
        url: Where the output is.
        target: The file; its folder is made. What is saved as `.mp4` must be an MP4.
        clock: Waits between attempts.
        attempts: Requests at most, all in all.
        rng: Draws the jitter of the pauses from [0, 1).

    Returns:
        The file with its length and SHA-256.

    Raises:
        StorageError: It could not be downloaded, checked or written; `advice` says what to do.
    """
    part = _Part(target)
    try:
        await anyio.to_thread.run_sync(part.open)
        await _Download(transport=transport, url=url, part=part, clock=clock, attempts=attempts, rng=rng).run()
        return await anyio.to_thread.run_sync(part.keep)
    except OSError as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror or error}",
            target=str(target),
            advice="make room or choose another folder; saving again downloads the output without paying again",
        ) from error
    finally:
        # On its way before anything is awaited, and shielded twice: anyio's scope keeps out anyio's cancellation,
        # asyncio's shield a second `task.cancel()`.
        removal = asyncio.get_running_loop().run_in_executor(None, part.discard)
        with anyio.CancelScope(shield=True):
            await asyncio.shield(removal)


def target_path(where: str | os.PathLike[str], name: str, suffix: str = ".mp4") -> Path:
    """The file for an output.

    Args:
        where: A file when it ends in `suffix`, else a folder.
        name: What to call it in a folder, usually a job's key. It cannot lead out of the folder: what is not a letter,
            a digit or one of `._-` is replaced, and a digest of `name` is added then, so that no two names meet.
        suffix: The suffix of the file.
    """
    path = Path(where)
    if path.suffix.lower() == suffix:
        return path
    safe = _UNSAFE.sub("_", name)
    longest = _MAX_NAME - len(suffix)
    if safe != name or not name or len(safe) > longest or _RESERVED.match(safe):
        mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:10]
        # The mark precedes the first dot, because Windows reserves CON.mp4 and CON.a.mp4 like CON.
        stem, dot, rest = safe.partition(".")
        safe = f"{stem[:40] or 'output'}-{mark}{dot}{rest}"[:longest]
    return path / (safe + suffix)


_UNSAFE = re.compile(r"^[.-]+|[^A-Za-z0-9._-]")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)


class _Part:
    """The temporary file. Its methods block and run in worker threads, one after the other.

    The lock makes that hold in the one case where asyncio does not wait for a thread: a task that was cancelled
    natively goes on to `discard` while its write still runs. What comes after `discard` does nothing.
    """

    def __init__(self, target: Path) -> None:
        self.size = 0
        self.target = target
        self._path = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = None
        self._done = False
        self._sha256 = hashlib.sha256()
        self._head = b""
        self._lock = threading.Lock()

    def open(self) -> None:
        with self._lock:
            if not self._done:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("xb")

    def write(self, block: bytes) -> None:
        with self._lock:
            if self._file is not None:
                self._file.write(block)
                self._sha256.update(block)
                self._head = (self._head + block[:12])[:12]
                self.size += len(block)

    def restart(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.seek(0)
                self._file.truncate()
                self._sha256 = hashlib.sha256()
                self._head = b""
                self.size = 0

    def keep(self) -> SavedFile:
        with self._lock:
            self._check()
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._path.replace(self.target)
                self._done = True
                _sync_folder(self.target.parent)
            return SavedFile(self.target, self.size, self._sha256.hexdigest())

    def discard(self) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
            if self._file is not None:
                # Closing flushes, which fails on a full disk; the file goes anyway.
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
                with contextlib.suppress(OSError):
                    self._path.unlink()

    def _check(self) -> None:
        if not self.size:
            raise StorageError("the output is empty", target=str(self.target))
        if self.target.suffix.lower() == ".mp4" and self._head[4:8] != b"ftyp":
            raise StorageError(
                f"the output is not an MP4: it begins with {self._head!r}",
                target=str(self.target),
                advice="open the output's URL in a browser; save it under another suffix to keep it as it is",
            )


def _sync_folder(folder: Path) -> None:
    """Make a rename last. Windows and some file systems cannot, and the file is complete without it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@attrs.define(kw_only=True, eq=False)
class _Download:
    """One output on its way into a part, over as many requests as it takes."""

    transport: Transport
    url: str
    part: _Part
    clock: Clock
    attempts: int
    rng: Callable[[], float]
    etag: str = attrs.field(default="", init=False)

    async def run(self) -> None:
        """Bring the whole output.

        Raises:
            StorageError: The service refused, or the attempts are used up.
            OSError: The disk refused.
        """
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
        if head.status in PASSING:
            raise _CutError(f"{shown(self.url)} answered {head.status}", head.retry_after(self.clock.now()))
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
            raise _CutError(f"{shown(self.url)} sent {self.part.size} of {total} bytes")

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
            raise _CutError(f"{shown(self.url)} answered {head.status} with another range than it was asked for")
        return None if given["total"] == "*" else int(given["total"])

    async def _pump(self, chunks: AsyncIterator[bytes]) -> None:
        """Write one block while the next one is read. What came before a cut is written too."""
        failures: list[OSError] = []

        async def write(block: bytes) -> None:
            try:
                await anyio.to_thread.run_sync(self.part.write, block)
            except OSError as error:
                failures.append(error)

        block, lost = await _gather(chunks)
        while block:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, block)
                block, lost = (b"", lost) if lost else await _gather(chunks)
            if failures:
                raise failures[0]
        if lost:
            raise lost

    def _refused(self, head: HttpResponse) -> StorageError:
        if head.status in {404, 410}:
            return self._error(
                "the output is not there (any more)",
                advice="outputs are kept for 7 days; after that only a new, paid generation brings the video again",
            )
        return self._error(
            f"the output's host answered {head.status}",
            advice="read the prediction again: its output may have got a new URL; that costs nothing",
        )

    def _error(self, message: str, *, advice: str | None = None) -> StorageError:
        target = str(self.part.target)
        return StorageError(f"{message} ({shown(self.url)}, for {target})", target=target, advice=advice)


class _CutError(Exception):
    """An attempt that did not bring everything; the next one may.

    Attributes:
        asked: Seconds that the server asked to wait, or None.
    """

    def __init__(self, message: str, asked: float | None = None) -> None:
        super().__init__(message)
        self.asked = asked


_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")


async def _gather(chunks: AsyncIterator[bytes]) -> tuple[bytes, TransportError | None]:
    """The next block, and what cut it short. An empty block without an error is the end."""
    gathered: list[bytes] = []
    size = 0
    lost = None
    try:
        async for chunk in chunks:
            gathered.append(chunk)
            size += len(chunk)
            if size >= _BLOCK:
                break
    except TransportError as error:
        lost = error
    return b"".join(gathered), lost
