"""WaveSpeedAI API v3 (https://wavespeed.ai/docs)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar
from urllib.parse import quote

import attrs

from kling_async._core.frames import hides_init_arguments
from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.media import UploadTicket
from kling_async._core.secret import Secret
from kling_async.errors import ConfigurationError, ProtocolError

from . import _units, _wire
from ._v3 import ApiV3

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal

    from kling_async._core.account import Billing, Page, ServiceModel, ServicePrice, Usage
    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction

T = TypeVar("T")


@hides_init_arguments
@attrs.frozen(kw_only=True)
class WaveSpeed(ApiV3):
    """Provider for WaveSpeedAI.

    Attributes:
        api_key: The account's API key (docs-authentication).
        base_url: Scheme and host; the key is sent nowhere else.
        allow_http: Send the key unencrypted, if `base_url` is an `http://` URL of another machine.
    """

    name = "wavespeed"
    key_variable: ClassVar[str] = "WAVESPEED_API_KEY"
    url_variable: ClassVar[str] = "WAVESPEED_BASE_URL"
    default_url: ClassVar[str] = "https://api.wavespeed.ai"

    base_url: str = "https://api.wavespeed.ai"

    def upload_ticket(self, *, filename: str, size: int, content_type: str) -> HttpRequest:
        """Build `POST /api/v3/media/uploads`, as the vendor's current clients do."""
        return self._post(
            "media/uploads", {"filename": filename, "size": size, "content_type": content_type}, Effect.READ
        )

    def read_ticket(self, response: HttpResponse) -> UploadTicket:
        """Parse the response to `upload_ticket`."""
        data = _wire.read_data(response, self.api_key)
        upload = data.get("upload") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(upload, Mapping):
            raise self._unreadable(response, "no upload ticket in it")
        headers = upload.get("headers") or {}
        ticket = (upload.get("url"), upload.get("method", "PUT"), data.get("download_url"))
        if not all(isinstance(part, str) and part for part in ticket) or not isinstance(headers, Mapping):
            raise self._unreadable(response, "incomplete upload ticket")
        return UploadTicket(
            url=str(ticket[0]),
            method=str(ticket[1]).upper(),
            headers={str(name): str(value) for name, value in headers.items()},
            download_url=str(ticket[2]),
        )

    def upload_binary(self, *, filename: str, content: bytes, content_type: str) -> HttpRequest:
        """Build `POST /api/v3/media/upload/binary`, a form with the field `file` (docs: media-upload)."""
        # The content cannot contain its own digest.
        boundary = f"kling-{hashlib.sha256(content).hexdigest()[:40]}"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quote(filename)}"\r\n'
            f"Content-Type: {content_type}\r\n\r\n"
        )
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/api/v3/media/upload/binary",
            headers={**self._headers, "Content-Type": f"multipart/form-data; boundary={boundary}"},
            body=b"".join((head.encode(), content, f"\r\n--{boundary}--\r\n".encode())),
        )

    def read_upload(self, response: HttpResponse) -> str:
        """Return the URL that the file has for 7 days. The service refuses by `code` 500 in an HTTP 200."""
        return self._read(response, _download_url)

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
        """Build `POST /api/v3/predictions`, a read (docs: predictions). Times are ISO 8601 in UTC."""
        body = {
            "page": page,
            "page_size": page_size,
            "model": model,
            "status": status,
            "created_after": None if created_after is None else _units.iso(created_after),
            "created_before": None if created_before is None else _units.iso(created_before),
        }
        return self._query("predictions", body)

    def read_predictions(self, response: HttpResponse) -> Page[Prediction]:
        """Parse a page of the list. `total` is ignored: newer responses do not have it."""

        def read(item: object) -> Prediction:
            return _wire.read_prediction(item, request_id=response.request_id)

        return self._page(response, ("items", "predictions"), read)

    def delete(self, prediction_ids: Sequence[str]) -> HttpRequest:
        """Build `POST /api/v3/predictions/delete` (docs: prediction-delete); sending it twice is harmless."""
        return self._query("predictions/delete", {"ids": list(prediction_ids)})

    def read_deleted(self, response: HttpResponse) -> int:
        """Return the number of deleted predictions."""
        return int(self._read(response, lambda data: _units.amount(data, "deleted_count")))

    def balance(self) -> HttpRequest:
        """Build `GET /api/v3/balance` (docs: balance)."""
        return self._get("balance")

    def read_balance(self, response: HttpResponse) -> Decimal:
        """Return the balance in USD."""
        return self._read(response, lambda data: _units.amount(data, "balance"))

    def models(self) -> HttpRequest:
        """Build `GET /api/v3/models` (docs: list-models)."""
        return self._get("models")

    def read_models(self, response: HttpResponse) -> Page[ServiceModel]:
        """Parse the catalogue: a list, or an object with `items`."""
        from . import _account  # noqa: PLC0415 -- its docstring says why

        return self._page(response, ("items", "models"), lambda item: _account.model(item, response.request_id))

    def price(self, job: Job) -> HttpRequest:
        """Build `POST /api/v3/model/price` (docs: pricing-api), with all inputs: else it returns the base price."""
        return self._query("model/price", {"model_id": job.model, "inputs": job.priced_inputs(self.name)})

    def read_price(self, response: HttpResponse, job: Job) -> ServicePrice:
        """Parse the price before and after discounts."""
        from . import _account  # noqa: PLC0415 -- its docstring says why

        return self._read(response, lambda data: _account.price(data, job.model, response.request_id))

    def usage(self, start: datetime, end: datetime, *, model: str | None = None) -> HttpRequest:
        """Build `POST /api/v3/user/usage_stats` (docs: usage), at most 31 days. Times are ISO 8601 in UTC."""
        body = {"start_time": _units.iso(start), "end_time": _units.iso(end), "model_uuid": model}
        return self._query("user/usage_stats", body)

    def read_usage(self, response: HttpResponse) -> Usage:
        """Parse the usage."""
        from . import _account  # noqa: PLC0415 -- its docstring says why

        return self._read(response, lambda data: _account.usage(data, response.request_id))

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
        """Build `POST /api/v3/billings/search` (docs: billings). Times are milliseconds since the epoch, as text."""
        body = {
            "page": page,
            "page_size": page_size,
            "billing_type": kind,
            "prediction_uuids": list(prediction_ids) or None,
            "model_uuid": model,
            "sort": "created_at DESC",
            "start_time": None if start is None else _units.milliseconds(start),
            "end_time": None if end is None else _units.milliseconds(end),
        }
        return self._query("billings/search", body)

    def read_billings(self, response: HttpResponse) -> Page[Billing]:
        """Parse a page of the bill. `total` and `has_more` are ignored."""
        from . import _account  # noqa: PLC0415 -- its docstring says why

        return self._page(response, ("items",), lambda item: _account.billing(item, response.request_id))

    def webhook_secret(self) -> HttpRequest:
        """Build `GET /api/v3/webhook/secret` (docs: verify-webhooks)."""
        return self._get("webhook/secret")

    def read_webhook_secret(self, response: HttpResponse) -> Secret:
        """Return the secret, in an envelope or bare. Errors do not quote the response: it may hold a secret."""
        secret = _signing_secret(_wire.read_data(response, self.api_key))
        if secret is None:
            # Raised here, where no local variable holds the data: error reporters print locals.
            raise ProtocolError(
                "cannot parse the response: no secret in it", status=response.status, request_id=response.request_id
            )
        return secret

    def _get(self, path: str) -> HttpRequest:
        return HttpRequest(method="GET", url=f"{self.base_url}/api/v3/{path}", headers=self._headers)

    def _query(self, path: str, body: Mapping[str, object]) -> HttpRequest:
        """Build a read that is a POST; fields that are None are left out."""
        return self._post(path, {name: value for name, value in body.items() if value is not None}, Effect.READ)

    def _page(self, response: HttpResponse, names: tuple[str, ...], read: Callable[[object], T]) -> Page[T]:
        from . import _account  # noqa: PLC0415 -- its docstring says why

        return self._read(response, lambda data: _account.page(data, names, read, response.request_id))


def _signing_secret(data: object) -> Secret | None:
    """Return the secret in a response, or None."""
    secret = data.get("secret") if isinstance(data, Mapping) else data
    try:
        return Secret(secret) if isinstance(secret, str) else None
    except ConfigurationError:
        return None


def _download_url(data: object) -> str:
    url = data.get("download_url") if isinstance(data, Mapping) else None
    if not isinstance(url, str) or not url:
        raise ValueError("no download_url in it")
    return url
