"""Images on their way to the service: the values that the provider and the uploader exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from .http import HttpRequest, HttpResponse


@attrs.frozen
class ImageFacts:
    """What is known of an image without decoding it.

    Attributes:
        type: Media type, `image/jpeg` or `image/png`.
        width: Pixels, as the picture is shown (a rotation by its EXIF data is applied).
        height: Pixels, likewise.
        bytes: Length.
    """

    type: str
    width: int
    height: int
    bytes: int


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
