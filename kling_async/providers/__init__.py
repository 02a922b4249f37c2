"""Wire dialects, pure: a job becomes an `HttpRequest`, an `HttpResponse` becomes a `Prediction` or an error.

A provider of your own is a class with the methods of `Provider`; give an instance as `KlingSession(provider=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kling_async._core.media import UploadProvider

from .gptproto import GPTProto
from .wavespeed import WaveSpeed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from kling_async._core.account import Billing, Page, ServiceModel, ServicePrice, Usage
    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction
    from kling_async._core.secret import Secret

__all__ = ["PROVIDERS", "GPTProto", "Provider", "WaveSpeed"]


class Provider(UploadProvider, Protocol):
    """What a session asks of a wire dialect. No method does I/O.

    Those that phrase a request raise `UnsupportedError` when the provider has no such endpoint; those that read a reply
    raise `ApiError` when it says no, or nothing that can be read.
    """

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

    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        """The prediction that a reply to `submit` or `result` holds.

        Args:
            response: The reply.
            key: The job's name, which goes into the prediction as it is.

        Raises:
            ApiError: The reply says no, or nothing that can be read.
        """
        ...

    def predictions(
        self,
        *,
        page: int = 1,
        page_size: int = 100,
        model: str | None = None,
        status: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> HttpRequest:
        """The read of one page of the account's predictions, newest first."""
        ...

    def read_predictions(self, response: HttpResponse) -> Page[Prediction]:
        """The page in a reply to `predictions`."""
        ...

    def delete(self, prediction_ids: Sequence[str]) -> HttpRequest:
        """The request to delete predictions; it may be sent twice."""
        ...

    def read_deleted(self, response: HttpResponse) -> int:
        """How many a reply to `delete` says were deleted."""
        ...

    def balance(self) -> HttpRequest:
        """The read of the balance."""
        ...

    def read_balance(self, response: HttpResponse) -> Decimal:
        """USD, from a reply to `balance`."""
        ...

    def models(self) -> HttpRequest:
        """The read of the service's own catalogue."""
        ...

    def read_models(self, response: HttpResponse) -> Page[ServiceModel]:
        """The catalogue in a reply to `models`."""
        ...

    def price(self, job: Job) -> HttpRequest:
        """The question what a job costs."""
        ...

    def read_price(self, response: HttpResponse, job: Job) -> ServicePrice:
        """The price in a reply to `price`."""
        ...

    def usage(self, start: datetime, end: datetime, *, model: str | None = None) -> HttpRequest:
        """The read of what was spent in a span of time."""
        ...

    def read_usage(self, response: HttpResponse) -> Usage:
        """What a reply to `usage` says."""
        ...

    def billings(
        self,
        *,
        page: int = 1,
        page_size: int = 100,
        kind: str | None = None,
        prediction_ids: Sequence[str] = (),
        model: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> HttpRequest:
        """The read of one page of the bill, newest first."""
        ...

    def read_billings(self, response: HttpResponse) -> Page[Billing]:
        """The page in a reply to `billings`."""
        ...

    def webhook_secret(self) -> HttpRequest:
        """The read of the secret that signs webhooks."""
        ...

    def read_webhook_secret(self, response: HttpResponse) -> Secret:
        """The secret in a reply to `webhook_secret`."""
        ...


PROVIDERS: Mapping[str, type[WaveSpeed | GPTProto]] = {"wavespeed": WaveSpeed, "gptproto": GPTProto}
"""The providers by name."""
