"""Images on their way to the service: the values that the provider and the uploader exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import attrs

from .images import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from .http import HttpRequest, HttpResponse


@attrs.frozen
class ImageFacts:
    """What is known of an image without decoding it.

    Attributes:
        type: Media type; `image/jpeg` and `image/png` are what the service takes.
        width: Pixels, as the picture is shown (a rotation by its EXIF data is applied).
        height: Pixels, likewise.
        bytes: Length.
        turned: Whether its EXIF data turns or mirrors it.
    """

    type: str
    width: int
    height: int
    bytes: int
    turned: bool = False

    @property
    def unfit(self) -> bool:
        """Whether it is sent as it is only at a risk: of another format, too large, or turned by its EXIF data."""
        return self.type not in TAKEN or self.bytes > MAX_IMAGE_BYTES or self.turned

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the service may not like, and does not say."""
        said = []
        if max(self.width, self.height) > MAX_ASPECT * min(self.width, self.height):
            said.append(
                f"{self.width}x{self.height} is longer than 2.5:1, which the pages of most models exclude: "
                "the service may refuse it"
            )
        if self.turned:
            said.append("its EXIF data turns it, and the service may not obey that: fit turns the pixels themselves")
        return tuple(said)


TAKEN = frozenset({"image/jpeg", "image/png"})
"""Formats that the service takes."""
MAX_ASPECT = 2.5
"""Of the longer side to the shorter (pages of Kling 1.6, 2.0, 2.5 and 3; those of 2.1 do not say)."""


FITTED = "-fit"
"""After the digest of an image that was made to fit, where its upload is remembered."""


class UploadMemory(Protocol):
    """Where uploads are remembered beyond the session: a ledger, say."""

    async def uploaded(self, digest: str, now: float) -> str | None:
        """The URL that an earlier upload of this content has at `now`, seconds since the epoch, or None."""
        ...

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """Remember an upload soon; `expires_at`, seconds since the epoch, is when it is to be forgotten."""
        ...


@attrs.frozen(kw_only=True)
class UploadTicket:
    """The service's permission to put one file into its storage.

    Attributes:
        url: Where to put it. Its query is a signature, hence a credential.
        headers: What to send with it, exactly.
        method: The verb.
        download_url: Where the file is to be found afterwards, for 7 days.
    """

    url: str = attrs.field(repr=lambda url: repr(url.partition("?")[0]))
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    method: str = "PUT"
    download_url: str


class UploadProvider(Protocol):
    """The part of a provider's dialect that uploads need."""

    def upload_ticket(self, *, filename: str, size: int, content_type: str) -> HttpRequest:
        """The request for a ticket.

        Args:
            filename: A neutral name; the service derives the download URL's suffix from it.
            size: Bytes.
            content_type: Media type.

        Raises:
            UnsupportedError: The provider takes no uploads.
        """
        ...

    def read_ticket(self, response: HttpResponse) -> UploadTicket:
        """The ticket in the reply.

        Raises:
            ApiError: The service said no, or the reply holds no ticket.
        """
        ...

    def upload_binary(self, *, filename: str, content: bytes, content_type: str) -> HttpRequest:
        """The upload in one request, for when there are no tickets.

        Args:
            filename: A neutral name.
            content: The whole file.
            content_type: Media type.

        Raises:
            UnsupportedError: The provider takes no uploads.
        """
        ...

    def read_upload(self, response: HttpResponse) -> str:
        """The URL in a reply to `upload_binary`.

        Raises:
            ApiError: The service said no, or the reply holds no URL.
        """
        ...
