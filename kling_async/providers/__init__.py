"""Wire dialects, pure: a job becomes an `HttpRequest`, an `HttpResponse` becomes a `Prediction` or an error.

A provider of your own is a class with the methods of `Provider`; give an instance as `KlingSession(provider=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .gptproto import GPTProto
from .wavespeed import WaveSpeed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.job import Job
    from kling_async._core.media import UploadTicket
    from kling_async._core.prediction import Prediction

__all__ = ["PROVIDERS", "GPTProto", "Provider", "WaveSpeed"]


class Provider(Protocol):
    """What a session asks of a wire dialect. No method does I/O."""

    @property
    def name(self) -> str:
        """Its name, as the catalogue's rows know it."""
        ...

    @property
    def base_url(self) -> str:
        """The origin that the key may be sent to."""
        ...

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """The paid request.

        Args:
            job: What to make.
            image: URL or data URI of the first frame.
            end_image: The same of the last frame.
            webhook: Public HTTPS URL that the service calls at the end.

        Raises:
            UnsupportedError: The provider has not the model, or no webhooks.
        """
        ...

    def result(self, prediction_id: str) -> HttpRequest:
        """The read of one prediction."""
        ...

    def read_prediction(self, response: HttpResponse) -> Prediction:
        """The prediction that a reply to `submit` or `result` holds.

        Raises:
            ApiError: The reply says no, or nothing that can be read.
        """
        ...

    def upload_ticket(self, *, filename: str, size: int, content_type: str) -> HttpRequest:
        """The request for permission to upload `size` bytes.

        Raises:
            UnsupportedError: The provider takes no uploads.
        """
        ...

    def read_ticket(self, response: HttpResponse) -> UploadTicket:
        """The permission that a reply to `upload_ticket` holds.

        Raises:
            ApiError: The reply says no, or nothing that can be read.
        """
        ...


PROVIDERS: Mapping[str, type[WaveSpeed | GPTProto]] = {"wavespeed": WaveSpeed, "gptproto": GPTProto}
"""The providers by name."""
