"""Protocols of a provider: the core that every session needs, and what a service may offer besides.

`Provider` has five members. Endpoints of the account (`AccountProvider`) and uploads (`UploadProvider`) are optional:
`account_of` and `uploads_of` look for them and raise `UnsupportedError` where they are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

from kling_async._core.media import UploadProvider
from kling_async._core.secret import Secret
from kling_async.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from kling_async._core.account import Billing, Page, ServiceModel, ServicePrice, Usage
    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction


class Provider(Protocol):
    """Wire dialect of a service: builds requests and parses responses. No method does I/O.

    A class with these five members runs jobs. Add members of `AccountProvider` and `UploadProvider` for what the
    service offers besides.
    """

    @property
    def name(self) -> str:
        """Provider name, as the model catalogue lists it."""
        ...

    @property
    def base_url(self) -> str:
        """The only origin that the API key may be sent to."""
        ...

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """Build the paid request.

        Args:
            job: The job.
            image: URL or data URI of the first frame.
            end_image: URL or data URI of the last frame.
            webhook: Public HTTPS URL that the service calls when the prediction ends.

        Raises:
            UnsupportedError: The provider does not have the model, or has no webhooks.
        """
        ...

    def result(self, prediction_id: str) -> HttpRequest:
        """Build the request that reads one prediction."""
        ...

    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        """Parse the response to `submit` or `result`.

        Args:
            response: The response.
            key: The job's key; copied into the prediction.

        Raises:
            ApiError: The service refused, or the response cannot be parsed.
        """
        ...


class AccountProvider(Provider, Protocol):
    """Optional endpoints of the account; a session call without its endpoint raises `UnsupportedError`.

    Define those that the service has, each request together with its `read_...`; there is no need to define all.
    Readers raise `ApiError` when the service refused or the response cannot be parsed.
    """

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
        """Build the request for one page of the account's predictions, newest first."""
        ...

    def read_predictions(self, response: HttpResponse) -> Page[Prediction]:
        """Parse the response to `predictions`."""
        ...

    def delete(self, prediction_ids: Sequence[str]) -> HttpRequest:
        """Build the request that deletes predictions; sending it twice must be harmless."""
        ...

    def read_deleted(self, response: HttpResponse) -> int:
        """Return the number of deleted predictions from the response to `delete`."""
        ...

    def balance(self) -> HttpRequest:
        """Build the request for the balance."""
        ...

    def read_balance(self, response: HttpResponse) -> Decimal:
        """Return the balance in USD from the response to `balance`."""
        ...

    def models(self) -> HttpRequest:
        """Build the request for the service's own model catalogue."""
        ...

    def read_models(self, response: HttpResponse) -> Page[ServiceModel]:
        """Parse the response to `models`."""
        ...

    def price(self, job: Job) -> HttpRequest:
        """Build the request for the price of a job."""
        ...

    def read_price(self, response: HttpResponse, job: Job) -> ServicePrice:
        """Parse the response to `price`."""
        ...

    def usage(self, start: datetime, end: datetime, *, model: str | None = None) -> HttpRequest:
        """Build the request for the usage between two times."""
        ...

    def read_usage(self, response: HttpResponse) -> Usage:
        """Parse the response to `usage`."""
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
        """Build the request for one page of the bill, newest first."""
        ...

    def read_billings(self, response: HttpResponse) -> Page[Billing]:
        """Parse the response to `billings`."""
        ...

    def webhook_secret(self) -> HttpRequest:
        """Build the request for the secret that signs webhooks; its presence says that the service has webhooks."""
        ...

    def read_webhook_secret(self, response: HttpResponse) -> Secret:
        """Parse the response to `webhook_secret`."""
        ...


AccountEndpoint: TypeAlias = Literal[
    "predictions", "delete", "balance", "models", "price", "usage", "billings", "webhook_secret"
]
"""Names of the requests of `AccountProvider`."""

ENDPOINTS: Mapping[AccountEndpoint, tuple[str, str]] = {
    "predictions": ("read_predictions", "list of predictions"),
    "delete": ("read_deleted", "deletion of predictions"),
    "balance": ("read_balance", "balance"),
    "models": ("read_models", "list of models"),
    "price": ("read_price", "prices"),
    "usage": ("read_usage", "usage"),
    "billings": ("read_billings", "billings"),
    "webhook_secret": ("read_webhook_secret", "webhooks"),
}
"""Reader method and name in error texts, by request method."""


def account_of(provider: Provider, endpoint: AccountEndpoint) -> AccountProvider:
    """Return the provider, typed as one that has the endpoint.

    Raises:
        UnsupportedError: It does not define the request method and its reader.
    """
    reader, label = ENDPOINTS[endpoint]
    if hasattr(provider, endpoint) and hasattr(provider, reader):
        return cast("AccountProvider", provider)
    raise UnsupportedError(
        f"{provider.name} has no {label}: {type(provider).__name__} does not define `{endpoint}` and `{reader}`"
    )


def key_of(provider: Provider) -> Secret | None:
    """Return the API key of a provider, its attribute `api_key`; None when it has none that is a `Secret`.

    Ledgers tell accounts apart by it: without one, all sessions of a provider with the same base URL are one account.
    """
    key = getattr(provider, "api_key", None)
    return key if isinstance(key, Secret) else None


def uploads_of(provider: Provider | UploadProvider) -> UploadProvider:
    """Return the provider, typed as one that takes uploads.

    Raises:
        UnsupportedError: It does not define the methods of `UploadProvider`.
    """
    if isinstance(provider, UploadProvider):
        return provider
    raise UnsupportedError(
        f"{provider.name} takes no uploads",
        advice='give the image as a URL, or make the session with images="inline" to send it as a data URI',
    )
