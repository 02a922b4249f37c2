"""Requests and responses that WaveSpeedAI and GPTProto share: submit and read one prediction under `/api/v3`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote, urlencode

import attrs

from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.secret import Secret
from kling_async.errors import ProtocolError, UnsupportedError

from . import _wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction

_ENCODER = json.JSONEncoder(ensure_ascii=False)
_MAX_QUOTED_BYTES = 2000
"""Length to which `ProtocolError.raw` is cut."""


def as_secret(key: str | Secret) -> Secret:
    """Wrap a key so that no repr shows it."""
    return key if isinstance(key, Secret) else Secret(key)


def _path_segment(prediction_id: str) -> str:
    """Quote an id as one segment of a URL path."""
    if prediction_id.isascii() and prediction_id.isalnum():
        return prediction_id
    if prediction_id in {".", ".."}:
        return prediction_id.replace(".", "%2E")
    return quote(prediction_id, safe="", errors="surrogatepass")


@attrs.frozen(kw_only=True)
class ApiV3:
    """Base of the built-in providers; each sets its name, its environment variables and its default URL.

    Attributes:
        api_key: The account's API key.
        base_url: Scheme and host; the key is sent nowhere else.
    """

    # Not annotated: for pyright a `ClassVar` does not satisfy the property of the protocol.
    name = ""
    key_variable: ClassVar[str]
    url_variable: ClassVar[str]
    default_url: ClassVar[str]

    api_key: Secret = attrs.field(converter=as_secret)
    base_url: str

    def __attrs_post_init__(self) -> None:
        # No converter: for pyright an attribute with one does not satisfy the property of the protocol.
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    def authorization(self) -> str:
        """Return the value of the Authorization header."""
        return f"Bearer {self.api_key.reveal()}"

    @property
    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": self.authorization()}

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """Build the paid request `POST /api/v3/{model}`; the webhook is a query parameter (docs-api/webhooks).

        Raises:
            UnsupportedError: The provider does not have the model.
        """
        if self.name not in job.row.providers:
            raise UnsupportedError(f"{self.name} has no model {job.model}", job=job)
        query = f"?{urlencode({'webhook': webhook})}" if webhook else ""
        return self._post(job.model + query, job.inputs(image, end_image, provider=self.name), Effect.PAID)

    def result(self, prediction_id: str) -> HttpRequest:
        """Build `GET /api/v3/predictions/{id}/result`.

        The URL is built from `base_url`: a `urls.get` in a response may name another host, and never gets the key.
        """
        return HttpRequest(
            method="GET",
            url=f"{self.base_url}/api/v3/predictions/{_path_segment(prediction_id)}/result",
            headers=self._headers,
        )

    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        """Parse the response to `submit` or `result`."""
        data = _wire.read_data(response, self.api_key)
        try:
            return _wire.read_prediction(data, self.api_key, request_id=response.request_id, key=key)
        except ValueError as error:
            raise self._unreadable(response, str(error)) from None

    def _post(self, path: str, body: Mapping[str, object], effect: Effect) -> HttpRequest:
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/api/v3/{path}",
            effect=effect,
            headers={**self._headers, "Content-Type": "application/json"},
            body=_ENCODER.encode(body).encode(),
        )

    def _unreadable(self, response: HttpResponse, reason: str) -> ProtocolError:
        return ProtocolError(
            f"cannot parse the response: {reason}",
            status=response.status,
            request_id=response.request_id,
            raw=self.api_key.redact(response.body)[:_MAX_QUOTED_BYTES].decode("utf-8", "replace"),
        )
