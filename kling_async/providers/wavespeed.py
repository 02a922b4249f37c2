"""WaveSpeedAI API v3 (https://wavespeed.ai/docs)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar
from urllib.parse import quote, urlencode

import attrs

from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.media import UploadTicket
from kling_async._core.secret import Secret
from kling_async.errors import ConfigurationError, ProtocolError, UnsupportedError

from . import _units, _wire

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal

    from kling_async._core.account import Billing, Page, ServiceModel, ServicePrice, Usage
    from kling_async._core.images import Image
    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction

T = TypeVar("T")

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def as_secret(key: str | Secret) -> Secret:
    """A key that does not show itself."""
    return key if isinstance(key, Secret) else Secret(key)


def _for_pricing(image: Image | None) -> str | None:
    """An image where only the price is asked: the service does not look at it, and files are not uploaded for it."""
    if image is None or (isinstance(image, str) and not image.startswith("data:")):
        return image
    return "https://example.com/image.png"


def _segment(prediction_id: str) -> str:
    """An id as one segment of a path, whatever is in it."""
    if prediction_id.isascii() and prediction_id.isalnum():
        return prediction_id
    if prediction_id in {".", ".."}:
        return prediction_id.replace(".", "%2E")
    return quote(prediction_id, safe="", errors="surrogatepass")


@attrs.frozen(kw_only=True)
class WaveSpeed:
    """The dialect of WaveSpeedAI.

    Attributes:
        api_key: The account's key.
        base_url: Scheme and host; the key goes nowhere else.
    """

    # Not annotated: for pyright a `ClassVar` does not satisfy the property of the protocol.
    name = "wavespeed"
    key_variable: ClassVar[str] = "WAVESPEED_API_KEY"
    url_variable: ClassVar[str] = "WAVESPEED_BASE_URL"
    default_url: ClassVar[str] = "https://api.wavespeed.ai"

    api_key: Secret = attrs.field(converter=as_secret)
    base_url: str = "https://api.wavespeed.ai"

    def __attrs_post_init__(self) -> None:
        # No converter: for pyright an attribute with one does not satisfy the property of the protocol.
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    def authorization(self) -> str:
        """The header's value (docs-authentication)."""
        return f"Bearer {self.api_key.reveal()}"

    @property
    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": self.authorization()}

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """`POST /api/v3/{model}`: one paid request; the webhook is a query parameter (docs-api/webhooks)."""
        if self.name not in job.row.providers:
            raise UnsupportedError(f"{self.name} has no model {job.model}", job=job)
        query = f"?{urlencode({'webhook': webhook})}" if webhook else ""
        return self._post(job.model + query, job.inputs(image, end_image, provider=self.name), Effect.PAID)

    def result(self, prediction_id: str) -> HttpRequest:
        """`GET /api/v3/predictions/{id}/result`, built here: a `urls.get` from outside never receives the key."""
        return HttpRequest(
            method="GET",
            url=f"{self.base_url}/api/v3/predictions/{_segment(prediction_id)}/result",
            headers=self._headers,
        )

    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        """The prediction in the envelope of a submit or a result."""
        data = _wire.read_data(response, self.api_key)
        try:
            return _wire.read_prediction(data, self.api_key, request_id=response.request_id, key=key)
        except ValueError as error:
            raise self._unreadable(response, str(error)) from None

    def upload_ticket(self, *, filename: str, size: int, content_type: str) -> HttpRequest:
        """`POST /api/v3/media/uploads`, as the vendor's current clients do."""
        return self._post(
            "media/uploads", {"filename": filename, "size": size, "content_type": content_type}, Effect.READ
        )

    def read_ticket(self, response: HttpResponse) -> UploadTicket:
        """Where to PUT the bytes, and the URL that they will have."""
        data = _wire.read_data(response, self.api_key)
        upload = data.get("upload") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(upload, Mapping):
            raise self._unreadable(response, "no upload ticket in it")
        headers = upload.get("headers") or {}
        ticket = (upload.get("url"), upload.get("method", "PUT"), data.get("download_url"))
        if not all(isinstance(part, str) and part for part in ticket) or not isinstance(headers, Mapping):
            raise self._unreadable(response, "the upload ticket is incomplete")
        return UploadTicket(
            url=str(ticket[0]),
            method=str(ticket[1]).upper(),
            headers={str(name): str(value) for name, value in headers.items()},
            download_url=str(ticket[2]),
        )

    def upload_binary(self, *, filename: str, content: bytes, content_type: str) -> HttpRequest:
        """`POST /api/v3/media/upload/binary`, a form with the field `file` (docs: media-upload)."""
        # The digest of the content cannot stand in the content.
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
        """The URL that the file has for 7 days. A refusal is a `code` of 500 in an HTTP 200."""
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
        """`POST /api/v3/predictions`: a read, whatever its verb (docs: predictions). Times are ISO 8601 in UTC."""
        body = {
            "page": page,
            "page_size": page_size,
            "model": model,
            "status": status,
            "created_after": None if created_after is None else _units.iso(created_after),
            "created_before": None if created_before is None else _units.iso(created_before),
        }
        return self._ask("predictions", body)

    def read_predictions(self, response: HttpResponse) -> Page[Prediction]:
        """A page of the list; `total` is not read, since newer pages have none."""

        def read(item: object) -> Prediction:
            return _wire.read_prediction(item, self.api_key, request_id=response.request_id)

        return self._page(response, ("items", "predictions"), read)

    def delete(self, prediction_ids: Sequence[str]) -> HttpRequest:
        """`POST /api/v3/predictions/delete` (docs: prediction-delete). Sending it again deletes nothing more."""
        return self._ask("predictions/delete", {"ids": list(prediction_ids)})

    def read_deleted(self, response: HttpResponse) -> int:
        """How many were deleted."""
        return int(self._read(response, lambda data: _units.amount(data, "deleted_count")))

    def balance(self) -> HttpRequest:
        """`GET /api/v3/balance` (docs: balance)."""
        return self._get("balance")

    def read_balance(self, response: HttpResponse) -> Decimal:
        """USD."""
        return self._read(response, lambda data: _units.amount(data, "balance"))

    def models(self) -> HttpRequest:
        """`GET /api/v3/models` (docs: list-models)."""
        return self._get("models")

    def read_models(self, response: HttpResponse) -> Page[ServiceModel]:
        """The catalogue: a list, or an object with `items`."""
        from . import _account  # noqa: PLC0415 -- see there

        return self._page(response, ("items", "models"), lambda item: _account.model(item, response.request_id))

    def price(self, job: Job) -> HttpRequest:
        """`POST /api/v3/model/price` (docs: pricing-api), with all inputs: without them it tells the base price."""
        image, end_image = _for_pricing(job.image) or "", _for_pricing(job.end_image)
        return self._ask(
            "model/price", {"model_id": job.model, "inputs": job.inputs(image, end_image, provider=self.name)}
        )

    def read_price(self, response: HttpResponse, job: Job) -> ServicePrice:
        """What the service asks for it, before and after discounts."""
        from . import _account  # noqa: PLC0415 -- see there

        return self._read(response, lambda data: _account.price(data, job.model, response.request_id))

    def usage(self, start: datetime, end: datetime, *, model: str | None = None) -> HttpRequest:
        """`POST /api/v3/user/usage_stats` (docs: usage): at most 31 days. Times are ISO 8601 in UTC."""
        body = {"start_time": _units.iso(start), "end_time": _units.iso(end), "model_uuid": model}
        return self._ask("user/usage_stats", body)

    def read_usage(self, response: HttpResponse) -> Usage:
        """What was spent."""
        from . import _account  # noqa: PLC0415 -- see there

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
        """`POST /api/v3/billings/search` (docs: billings). Times are milliseconds since the epoch, as text."""
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
        return self._ask("billings/search", body)

    def read_billings(self, response: HttpResponse) -> Page[Billing]:
        """A page of the bill; neither `total` nor `has_more` is read."""
        from . import _account  # noqa: PLC0415 -- see there

        return self._page(response, ("items",), lambda item: _account.billing(item, response.request_id))

    def webhook_secret(self) -> HttpRequest:
        """`GET /api/v3/webhook/secret` (docs: verify-webhooks)."""
        return self._get("webhook/secret")

    def read_webhook_secret(self, response: HttpResponse) -> Secret:
        """The secret, from the envelope or bare. What cannot be read is not quoted: it may be a secret."""
        data = _wire.read_data(response, self.api_key)
        secret = data.get("secret") if isinstance(data, Mapping) else data
        try:
            if isinstance(secret, str):
                return Secret(secret)
        except ConfigurationError:
            pass
        raise ProtocolError(
            "the reply cannot be read: there is no secret in it", status=response.status, request_id=response.request_id
        )

    def _get(self, path: str) -> HttpRequest:
        return HttpRequest(method="GET", url=f"{self.base_url}/api/v3/{path}", headers=self._headers)

    def _ask(self, path: str, body: Mapping[str, object]) -> HttpRequest:
        """A read that is a POST; what is None is left out."""
        return self._post(path, {name: value for name, value in body.items() if value is not None}, Effect.READ)

    def _read(self, response: HttpResponse, read: Callable[[object], T]) -> T:
        data = _wire.read_data(response, self.api_key)
        try:
            return read(data)
        except ValueError as error:
            raise self._unreadable(response, str(error)) from None

    def _page(self, response: HttpResponse, names: tuple[str, ...], read: Callable[[object], T]) -> Page[T]:
        from . import _account  # noqa: PLC0415 -- see there

        return self._read(response, lambda data: _account.page(data, names, read, response.request_id))

    def _post(self, path: str, body: Mapping[str, object], effect: Effect) -> HttpRequest:
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/api/v3/{path}",
            effect=effect,
            headers={**self._headers, "Content-Type": "application/json"},
            body=_ENCODER.encode(body).encode(),
        )

    def _unreadable(self, response: HttpResponse, why: str) -> ProtocolError:
        return ProtocolError(
            f"the reply cannot be read: {why}",
            status=response.status,
            request_id=response.request_id,
            raw=self.api_key.redact(response.body)[:2000].decode("utf-8", "replace"),
        )


def _download_url(data: object) -> str:
    url = data.get("download_url") if isinstance(data, Mapping) else None
    if not isinstance(url, str) or not url:
        raise ValueError("there is no download_url in it")
    return url
