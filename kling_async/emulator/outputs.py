"""Files: what was uploaded, what the service downloaded, and how files are served.

Uploads are held in memory by content, so that the same picture uploaded a thousand times is one picture.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
import secrets
from collections import Counter, OrderedDict, deque
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
from aiohttp import web

from .pictures import PictureError, check
from .predictions import RETENTION_SECONDS

if TYPE_CHECKING:
    import random
    from collections.abc import Set as AbstractSet

__all__ = ["Media", "StorageFullError", "Ticket", "Upload", "kind_of", "ranged"]

TICKET_SECONDS: Final = 3600.0
"""A signed upload URL is good for this many seconds."""

_LOOSE_BYTES: Final = 256 * 1024 * 1024
_PARTIAL: Final = 206
_UNSATISFIABLE: Final = 416
_NOT_MODIFIED: Final = 304
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\s*\Z")
_MEDIA_TYPE = re.compile(r"[a-z]+/[A-Za-z0-9.+-]+")
_FOLDERS: Final = {"image": "images", "video": "videos", "audio": "audios"}


class StorageFullError(Exception):
    """There is no room for another upload."""


@attrs.frozen
class Ticket:
    """Leave to put one file.

    Attributes:
        path: where the file will be, under the base URL.
        content_type: what must be sent with it.
        size: its announced size in bytes; None when it was not announced.
        expires_at: Unix seconds.
    """

    path: str
    content_type: str
    size: int | None
    expires_at: float


@attrs.frozen
class Upload:
    """A file that was put.

    Attributes:
        digest: SHA-256 of the content, in hex.
        content_type: its media type.
        at: Unix seconds.
        problem: why it will not do as an input picture; None when it will.
    """

    digest: str
    content_type: str
    at: float
    problem: PictureError | None


def kind_of(filename: str, content_type: str | None) -> tuple[str, str] | None:
    """`image`, `video` or `audio`, and the media type; None for any other file."""
    guessed = content_type or mimetypes.guess_type(filename)[0] or ""
    kind = guessed.partition("/")[0]
    return (kind, guessed) if kind in _FOLDERS and _MEDIA_TYPE.fullmatch(guessed) else None


class Media:
    """Uploads, the tickets for them, and pictures that came in other ways.

    Args:
        capacity: bytes of distinct uploaded content that are kept at most.
        rng: the source of file names.
    """

    def __init__(self, capacity: int, rng: random.Random) -> None:
        self.capacity = capacity
        self._rng = rng
        self._contents: dict[str, bytes] = {}
        self._holders: Counter[str] = Counter()
        self._size = 0
        self._uploads: dict[str, Upload] = {}
        self._oldest: deque[str] = deque()
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._loose: OrderedDict[str, bytes] = OrderedDict()
        self._loose_size = 0

    def path(self, kind: str, filename: str, now: float) -> str:
        """A fresh path for an upload."""
        suffix = PurePosixPath(filename).suffix.lower()
        letters = "".join(self._rng.choices("abcdefghijklmnopqrstuvwxyz", k=8))
        return f"/media/{_FOLDERS[kind]}/{int(now * 1e9)}_{letters}{suffix}"

    def ticket(self, ticket: Ticket, now: float) -> str:
        """Keep a ticket; the signature that its URL carries."""
        while self._tickets and next(iter(self._tickets.values())).expires_at <= now:
            self._tickets.popitem(last=False)
        signature = secrets.token_hex(32)
        self._tickets[signature] = ticket
        return signature

    def redeem(self, signature: str, path: str, now: float) -> Ticket | None:
        """The ticket that a signature stands for, if it is for that path and still good."""
        ticket = self._tickets.get(signature)
        return ticket if ticket is not None and ticket.path == path and now < ticket.expires_at else None

    def put(self, path: str, content: bytes, content_type: str, now: float) -> Upload:
        """Keep an upload.

        Raises:
            StorageFullError: when there is no room for it.
        """
        self._expire(now)
        digest = hashlib.sha256(content).hexdigest()
        if not self._holders[digest]:
            if self._size + len(content) > self.capacity:
                raise StorageFullError
            self._contents[digest] = content
            self._size += len(content)
        self._holders[digest] += 1
        problem: PictureError | None = None
        try:
            check(content)
        except PictureError as error:
            problem = error
        upload = self._uploads[path] = Upload(digest, content_type, now, problem)
        self._oldest.append(path)
        return upload

    def upload(self, path: str, now: float) -> Upload | None:
        """The upload at that path, while it is kept."""
        self._expire(now)
        return self._uploads.get(path)

    def keep(self, content: bytes) -> str:
        """Keep a picture that came inline or from another host, for the renderer; its digest.

        The oldest make room for new ones.
        """
        digest = hashlib.sha256(content).hexdigest()
        if digest in self._contents or digest in self._loose:
            return digest
        self._loose[digest] = content
        self._loose_size += len(content)
        while self._loose_size > _LOOSE_BYTES:
            _, gone = self._loose.popitem(last=False)
            self._loose_size -= len(gone)
        return digest

    def content(self, digest: str) -> bytes | None:
        """The content of that digest, while it is kept."""
        return self._contents.get(digest) or self._loose.get(digest)

    def _expire(self, now: float) -> None:
        while self._oldest and self._uploads[self._oldest[0]].at <= now - RETENTION_SECONDS:
            upload = self._uploads.pop(self._oldest.popleft())
            self._holders[upload.digest] -= 1
            if not self._holders[upload.digest]:
                del self._holders[upload.digest]
                self._size -= len(self._contents.pop(upload.digest))


def own_path(url: str, origins: AbstractSet[tuple[str, int]]) -> str | None:
    """The path of a URL that points to this emulator; None for any other.

    Args:
        url: an absolute URL.
        origins: hosts and ports this emulator answers at.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return parts.path if ((parts.hostname or "").lower(), port) in origins else None


def ranged(request: web.Request, body: bytes, content_type: str, tag: str) -> web.Response:
    """Serve a file with `ETag`, `If-None-Match`, `Range` and `If-Range`; several ranges at once get the whole.

    Args:
        request: GET or HEAD.
        body: the whole file.
        content_type: its media type.
        tag: what identifies its content; becomes the strong entity tag.
    """
    etag = f'"{tag}"'
    headers = {"Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": "public, max-age=604800"}
    if request.headers.get("If-None-Match") in {etag, "*"}:
        return web.Response(status=_NOT_MODIFIED, headers=headers)
    asked = _RANGE.match(request.headers.get("Range", ""))
    size = len(body)
    if asked is None or asked.groups() == ("", "") or request.headers.get("If-Range", etag) != etag:
        return web.Response(body=body, content_type=content_type, headers=headers)
    low, high = asked.groups()
    if low:
        start, stop = int(low), min(int(high) + 1 if high else size, size)
        if high and int(high) < int(low):
            return web.Response(body=body, content_type=content_type, headers=headers)
    else:
        start, stop = max(0, size - int(high)), size
    if start >= stop:
        return web.Response(status=_UNSATISFIABLE, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return web.Response(status=_PARTIAL, body=body[start:stop], content_type=content_type, headers=headers)
