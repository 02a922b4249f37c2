"""Requests and responses that WaveSpeedAI and GPTProto share: submit and read one prediction under `/api/v3`."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING, ClassVar, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import attrs

from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.secret import Secret
from kling_async.errors import ApiError, ConfigurationError, ProtocolError, UnsupportedError

from . import _wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kling_async._core.job import Job
    from kling_async._core.prediction import Prediction

T = TypeVar("T")

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


def _checked_url(url: str, *, allow_http: bool) -> str:
    """Return a base URL.

    Raises:
        ConfigurationError: It is none, or the API key would be sent unencrypted to another machine.
    """
    if "@" in url:
        raise ConfigurationError(
            "base_url: expected https://host, got a URL with user info, which is not shown",
            advice="leave user and password out: the API key alone signs requests",
        )
    shown = re.split("[?#]", url)[0]
    if shown != url:
        raise ConfigurationError(
            f"base_url: expected https://host, got {shown!r} with a query or a fragment, which is not shown",
            advice="end the base URL before ? and #",
        )
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError:
        scheme, host = "", None
    if not host or scheme not in {"https", "http"}:
        raise ConfigurationError(f"base_url: expected https://host, got {shown!r}", advice="write it with its scheme")
    if scheme == "http" and not allow_http and not is_this_machine(host):
        raise ConfigurationError(
            f"base_url: expected https://host, or an http:// URL of this machine, got {shown!r}: the API key would be "
            "sent unencrypted",
            advice="use https://; in a network that you trust, pass allow_http=True or set KLING_ALLOW_HTTP=1",
        )
    return url


@cache
def is_local(base_url: str) -> bool:
    """Return whether a base URL is that of a service on this machine, such as an emulator."""
    return not base_url.startswith("https://") and is_this_machine(urlsplit(base_url).hostname or "")


def is_this_machine(host: str) -> bool:
    """Return whether a host is this machine by its name or address, without a look-up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    # Imported here: services have https:// URLs.
    from ipaddress import ip_address  # noqa: PLC0415 -- see above

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.frozen(kw_only=True)
class ApiV3:
    """Base of the built-in providers; each sets its name, its environment variables and its default URL.

    Attributes:
        api_key: The account's API key.
        base_url: Scheme and host; the key is sent nowhere else.
        allow_http: Send the key unencrypted, if `base_url` is an `http://` URL of another machine.

    Raises:
        ConfigurationError: The key is malformed, or the base URL is no `https://` URL, has user info, a query or a
            fragment, or is an `http://` URL of another machine that was not allowed.
    """

    # Not annotated: for pyright a `ClassVar` does not satisfy the property of the protocol.
    name = ""
    key_variable: ClassVar[str]
    url_variable: ClassVar[str]
    official_url_variable: ClassVar[str] = ""
    default_url: ClassVar[str]

    api_key: Secret = attrs.field(converter=as_secret)
    base_url: str
    allow_http: bool = attrs.field(default=False, repr=False)

    def __attrs_post_init__(self) -> None:
        # No converter: for pyright an attribute with one does not satisfy the property of the protocol.
        object.__setattr__(self, "base_url", _checked_url(self.base_url, allow_http=self.allow_http).rstrip("/"))

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
        """Parse the response to `submit` or `result`.

        An error may have a prediction beside its code: a record with a status is returned as it is; the id of one
        without becomes the error's `prediction_id`.
        """
        try:
            data = _wire.read_data(response, self.api_key)
        except ApiError as error:
            found = _wire.record_beside(error.raw)
            if found is None:
                raise
            error.prediction_id, data = found
            if not isinstance(data, dict) or "status" not in data:
                raise
        try:
            return _wire.read_prediction(data, request_id=response.request_id, key=key)
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

    def _read(self, response: HttpResponse, read: Callable[[object], T]) -> T:
        """Return what `read` makes of the data of a response.

        Raises:
            ApiError: The service refused, or `read` raised `ValueError`.
        """
        data = _wire.read_data(response, self.api_key)
        try:
            return read(data)
        except ValueError as error:
            raise self._unreadable(response, str(error)) from None

    def _unreadable(self, response: HttpResponse, reason: str) -> ProtocolError:
        return ProtocolError(
            f"cannot parse the response: {reason}",
            status=response.status,
            request_id=response.request_id,
            raw=self.api_key.redact(response.body)[:_MAX_QUOTED_BYTES].decode("utf-8", "replace"),
        )
