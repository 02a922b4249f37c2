"""Uploads: values and protocols shared by providers, the uploader and ledgers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    from .http import HttpRequest, HttpResponse


MAX_IMAGE_BYTES = 10 * 1024 * 1024
"""Most bytes of an input image (Kling 2.1 pages)."""
MIN_IMAGE_SIDE = 300
"""Fewest pixels of each side of an input image (Kling 2.1 pages)."""
MAX_CONVERTED_BYTES = 100 * 1024 * 1024
"""Most bytes of an image that is converted before it is sent."""


@attrs.frozen
class FileFacts:
    """Properties of a video or a sound that are read without decoding it.

    Attributes:
        type: Media type.
        bytes: Length in bytes.
    """

    type: str
    bytes: int

    @property
    def unfit(self) -> bool:
        """False, because only images are converted."""
        return False

    @property
    def warnings(self) -> tuple[str, ...]:
        """None, because its content is not looked at."""
        return ()

    @property
    def cautions(self) -> tuple[str, ...]:
        """None either."""
        return ()


@attrs.frozen
class ImageFacts:
    """Properties of an image that are read without decoding it.

    Attributes:
        type: Media type; the service accepts `image/jpeg` and `image/png`.
        width: Width in pixels, after the rotation by EXIF data.
        height: Height in pixels, after the rotation by EXIF data.
        bytes: Length in bytes.
        turned: Whether EXIF data rotates or mirrors it.
        transparent: Whether a PNG has an alpha channel, or a transparent colour.
        deep: Whether a PNG has 16 bits a channel.
        cmyk: Whether a JPEG has the four channels of printing.
    """

    type: str
    width: int
    height: int
    bytes: int
    turned: bool = False
    transparent: bool = False
    deep: bool = False
    cmyk: bool = False

    @property
    def unfit(self) -> bool:
        """True if it needs conversion: another format, too many bytes, or the service may show it otherwise."""
        return self.type not in ACCEPTED_IMAGE_TYPES or self.bytes > MAX_IMAGE_BYTES or bool(self.cautions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Properties that may make the service refuse the image, and that no conversion changes."""
        if max(self.width, self.height) <= MAX_ASPECT_RATIO * min(self.width, self.height):
            return ()
        limit = f"{MAX_ASPECT_RATIO}:1, the limit on the pages of most models"
        return (f"{self.width}x{self.height} is longer than {limit}: the service may refuse it",)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Properties that may make the service show the image otherwise than a viewer does; `fit` settles them."""
        found = {_TURNED: self.turned, _TRANSPARENT: self.transparent, _CMYK: self.cmyk, _DEEP: self.deep}
        return tuple(said for said, true in found.items() if true)


_TURNED = "its EXIF data rotates it, which the service may ignore: fit rotates the pixels instead"
_TRANSPARENT = "has transparency, which the service may show as black or as hidden colours: fit lays it on white"
_CMYK = "has the colours of printing (CMYK), which the service may show inverted or refuse: fit converts them to sRGB"
_DEEP = "has 16 bits a channel, which the service may show as white or black: fit makes it 8 bits"

ACCEPTED_IMAGE_TYPES = frozenset({"image/jpeg", "image/png"})
"""Media types that the service accepts."""
MAX_ASPECT_RATIO = 2.5
"""Largest ratio of the longer side to the shorter (pages of Kling 1.6, 2.0, 2.5 and 3; those of 2.1 do not say)."""


CONVERTED_SUFFIX = "-fit2"
"""Suffix of the digest under which the upload of a converted image is stored.

It changes with what is converted, and how: an upload of an earlier version is another picture.
"""
OTHER_GROUND_SUFFIX = "-fit2-other"
"""Suffix of the digest under which the last upload of an image that lies on a colour of the caller's is stored, too."""
RECALLED_SUFFIXES = ("-fit", "", OTHER_GROUND_SUFFIX, CONVERTED_SUFFIX)
"""Suffixes of the uploads of an image that is known by its digest alone, also of earlier versions; the last wins."""
WHITE = "white"
"""Colour that transparent images are laid on."""


class UploadMemory(Protocol):
    """Storage of uploads beyond the session, such as a ledger."""

    async def uploaded(self, digest: str, now: float) -> str | None:
        """Return the URL of an earlier upload that is valid at `now` (seconds since the epoch), or None."""
        ...

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """Store an upload, best-effort; it is not returned after `expires_at` (seconds since the epoch)."""
        ...


@attrs.frozen(kw_only=True)
class UploadTicket:
    """The service's permission to put one file into its storage.

    Attributes:
        url: Upload URL. Its query is a signature, hence a credential.
        headers: Headers to send, exactly as given.
        method: HTTP method.
        download_url: URL of the file after the upload, valid for 7 days.
    """

    url: str = attrs.field(repr=lambda url: repr(url.partition("?")[0]))
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    method: str = "PUT"
    download_url: str


@runtime_checkable
class UploadProvider(Protocol):
    """Optional members of a provider: upload of files."""

    def upload_ticket(self, *, filename: str, size: int, content_type: str) -> HttpRequest:
        """Return the request for a ticket.

        Args:
            filename: A neutral name; the service derives the download URL's suffix from it.
            size: Length in bytes.
            content_type: Media type.

        Raises:
            UnsupportedError: The provider has no uploads.
        """
        ...

    def read_ticket(self, response: HttpResponse) -> UploadTicket:
        """Read the ticket from the reply.

        Raises:
            ApiError: The service refused, or the reply has no ticket.
        """
        ...

    def upload_binary(self, *, filename: str, content: bytes, content_type: str) -> HttpRequest:
        """Return a request that uploads the file itself, for providers without tickets.

        Args:
            filename: A neutral name.
            content: The whole file.
            content_type: Media type.

        Raises:
            UnsupportedError: The provider has no uploads.
        """
        ...

    def read_upload(self, response: HttpResponse) -> str:
        """Read the download URL from the reply to `upload_binary`.

        Raises:
            ApiError: The service refused, or the reply has no URL.
        """
        ...
