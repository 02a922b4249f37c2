"""Storage for uploads and for input pictures from other sources.

Content is held in memory once per digest, so uploading the same picture again takes no more memory.
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

from .pictures import PictureError, check
from .predictions import RETENTION_SECONDS

if TYPE_CHECKING:
    import random
    from collections.abc import Set as AbstractSet

__all__ = ["TICKET_SECONDS", "Media", "StorageFullError", "Ticket", "Upload", "media_kind", "own_path"]

TICKET_SECONDS: Final = 3600.0
"""Validity of a signed upload URL."""

_MAX_PICTURE_CACHE_BYTES: Final = 256 * 1024 * 1024
_MEDIA_TYPE: Final = re.compile(r"[a-z]+/[A-Za-z0-9.+-]+")
_FOLDERS: Final = {"image": "images", "video": "videos", "audio": "audios"}


class StorageFullError(Exception):
    """The storage has no room for another upload."""


@attrs.frozen
class Ticket:
    """Permission to upload one file.

    Attributes:
        path: path of the file under the base URL.
        content_type: required `Content-Type`.
        size: announced size in bytes; None if not announced.
        expires_at: Unix seconds.
    """

    path: str
    content_type: str
    size: int | None
    expires_at: float


@attrs.frozen
class Upload:
    """An uploaded file.

    Attributes:
        digest: SHA-256 of the content, in hex.
        content_type: media type.
        at: time of the upload, in Unix seconds.
        problem: reason why it is unusable as an input picture; None if it is usable.
    """

    digest: str
    content_type: str
    at: float
    problem: PictureError | None


def media_kind(filename: str, content_type: str | None) -> tuple[str, str] | None:
    """Return `image`, `video` or `audio` and the media type; None for any other file."""
    guessed = content_type or mimetypes.guess_type(filename)[0] or ""
    kind = guessed.partition("/")[0]
    return (kind, guessed) if kind in _FOLDERS and _MEDIA_TYPE.fullmatch(guessed) else None


class Media:
    """Uploads, upload tickets, and a cache of input pictures that were not uploaded.

    Args:
        capacity: maximum size of distinct uploaded content, in bytes.
        rng: source of file names.
    """

    def __init__(self, capacity: int, rng: random.Random) -> None:
        self.capacity = capacity
        self._rng = rng
        self._contents: dict[str, bytes] = {}
        self._references: Counter[str] = Counter()
        self._size = 0
        self._uploads: dict[str, Upload] = {}
        self._oldest: deque[str] = deque()
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._pictures_size = 0

    def new_path(self, kind: str, filename: str, now: float) -> str:
        """Return a new path for an upload."""
        suffix = PurePosixPath(filename[-255:]).suffix.lower()
        letters = "".join(self._rng.choices("abcdefghijklmnopqrstuvwxyz", k=8))
        return f"/media/{_FOLDERS[kind]}/{int(now * 1e9)}_{letters}{suffix}"

    def add_ticket(self, ticket: Ticket, now: float) -> str:
        """Store a ticket and return the signature for its URL."""
        while self._tickets and next(iter(self._tickets.values())).expires_at <= now:
            self._tickets.popitem(last=False)
        signature = secrets.token_hex(32)
        self._tickets[signature] = ticket
        return signature

    def redeem(self, signature: str, path: str, now: float) -> Ticket | None:
        """Return the ticket of a signature if it matches the path and is still valid."""
        ticket = self._tickets.get(signature)
        return ticket if ticket is not None and ticket.path == path and now < ticket.expires_at else None

    def put(self, path: str, content: bytes, content_type: str, now: float) -> Upload:
        """Store an upload.

        Raises:
            StorageFullError: if there is no room for it.
        """
        self._expire(now)
        digest = hashlib.sha256(content).hexdigest()
        if not self._references[digest]:
            if self._size + len(content) > self.capacity:
                raise StorageFullError
            self._contents[digest] = content
            self._size += len(content)
        self._references[digest] += 1
        problem: PictureError | None = None
        try:
            check(content)
        except PictureError as error:
            problem = error
        upload = self._uploads[path] = Upload(digest, content_type, now, problem)
        self._oldest.append(path)
        return upload

    def upload(self, path: str, now: float) -> Upload | None:
        """Return the upload at the path, or None."""
        self._expire(now)
        return self._uploads.get(path)

    def cache_picture(self, content: bytes) -> str:
        """Cache a picture that came inline or from another host, for the renderer, and return its digest.

        The oldest pictures are evicted when the cache is full.
        """
        digest = hashlib.sha256(content).hexdigest()
        if digest in self._contents or digest in self._pictures:
            return digest
        self._pictures[digest] = content
        self._pictures_size += len(content)
        while self._pictures_size > _MAX_PICTURE_CACHE_BYTES:
            _, evicted = self._pictures.popitem(last=False)
            self._pictures_size -= len(evicted)
        return digest

    def content(self, digest: str) -> bytes | None:
        """Return the content with the digest, or None if it is no longer stored."""
        return self._contents.get(digest) or self._pictures.get(digest)

    def _expire(self, now: float) -> None:
        while self._oldest and self._uploads[self._oldest[0]].at <= now - RETENTION_SECONDS:
            upload = self._uploads.pop(self._oldest.popleft())
            self._references[upload.digest] -= 1
            if not self._references[upload.digest]:
                del self._references[upload.digest]
                self._size -= len(self._contents.pop(upload.digest))


def own_path(url: str, origins: AbstractSet[tuple[str, int]]) -> str | None:
    """Return the path of a URL that points to this emulator; None for any other.

    Args:
        url: absolute URL.
        origins: hosts and ports at which this emulator is reached.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return parts.path if ((parts.hostname or "").lower(), port) in origins else None
