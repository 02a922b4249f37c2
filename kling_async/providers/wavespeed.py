"""WaveSpeedAI API v3 (https://wavespeed.ai/docs)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote, urlencode

import attrs

from kling_async._core.errors import ProtocolError, UnsupportedError
from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.media import UploadTicket
from kling_async._core.secret import Secret

from . import _wire

if TYPE_CHECKING:
    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction


def as_secret(key: str | Secret) -> Secret:
    """A key that does not show itself."""
    return key if isinstance(key, Secret) else Secret(key)


def without_slash(url: str) -> str:
    """A base URL as paths are appended to it."""
    return url.rstrip("/")


def _segment(prediction_id: str) -> str:
    """An id as one segment of a path, whatever is in it."""
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

    name: ClassVar[str] = "wavespeed"
    key_variable: ClassVar[str] = "WAVESPEED_API_KEY"
    url_variable: ClassVar[str] = "WAVESPEED_BASE_URL"
    default_url: ClassVar[str] = "https://api.wavespeed.ai"

    api_key: Secret = attrs.field(converter=as_secret)
    base_url: str = attrs.field(default="https://api.wavespeed.ai", converter=without_slash)

    def authorization(self) -> str:
        """The header's value (docs-authentication)."""
        return f"Bearer {self.api_key.reveal()}"

    @property
    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": self.authorization(), "Accept": "application/json"}

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """`POST /api/v3/{model}`: one paid request; the webhook is a query parameter (docs-api/webhooks)."""
        if self.name not in job.row.providers:
            raise UnsupportedError(f"{self.name} has no model {job.model}", job=job)
        query = f"?{urlencode({'webhook': webhook})}" if webhook else ""
        return self._post(job.model + query, job.inputs(image, end_image), Effect.PAID)

    def result(self, prediction_id: str) -> HttpRequest:
        """`GET /api/v3/predictions/{id}/result`, built here: a `urls.get` from outside never receives the key."""
        return HttpRequest(
            method="GET",
            url=f"{self.base_url}/api/v3/predictions/{_segment(prediction_id)}/result",
            headers=self._headers,
        )

    def read_prediction(self, response: HttpResponse) -> Prediction:
        """The prediction in the envelope of a submit or a result."""
        data = _wire.read_data(response, self.api_key)
        try:
            return _wire.read_prediction(data, self.api_key, request_id=response.request_id)
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

    def _post(self, path: str, body: Mapping[str, object], effect: Effect) -> HttpRequest:
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/api/v3/{path}",
            effect=effect,
            headers={**self._headers, "Content-Type": "application/json"},
            body=json.dumps(body, ensure_ascii=False).encode(),
        )

    def _unreadable(self, response: HttpResponse, why: str) -> ProtocolError:
        return ProtocolError(
            f"the reply cannot be read: {why}",
            status=response.status,
            request_id=response.request_id,
            raw=self.api_key.redact(response.body)[:2000].decode("utf-8", "replace"),
        )
