"""GPTProto (https://docs.gptproto.com): the paths of WaveSpeedAI on another host, with its own key and error formats.

Its pages document neither uploads, lists, deletion, balance nor webhooks, so the class has no such members. Its prices
are in the public list of its home page, which its own command line reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import attrs

from kling_async._core.frames import hides_init_arguments
from kling_async._core.http import HttpRequest
from kling_async.errors import UnsupportedError

from ._v3 import ApiV3

if TYPE_CHECKING:
    from kling_async._core.account import ServicePrice
    from kling_async._core.http import HttpResponse
    from kling_async._core.job import Job


@hides_init_arguments
@attrs.frozen(kw_only=True)
class GPTProto(ApiV3):
    """Provider for GPTProto.

    Attributes:
        api_key: The account's API key, `sk-...`.
        base_url: Scheme and host; the key is sent nowhere else.
        allow_http: Send the key unencrypted, if `base_url` is an `http://` URL of another machine.
        auth_scheme: "raw" as in every curl example of its pages, or "bearer" as in its prose and its own SDK.
    """

    name = "gptproto"
    key_variable: ClassVar[str] = "GPTPROTO_API_KEY"
    url_variable: ClassVar[str] = "GPTPROTO_BASE_URL"
    official_url_variable: ClassVar[str] = "GPTPROTO_API_BASE_URL"
    default_url: ClassVar[str] = "https://gptproto.com"

    base_url: str = "https://gptproto.com"
    auth_scheme: Literal["raw", "bearer"] = "raw"

    def authorization(self) -> str:
        """Return the value of the Authorization header."""
        return super().authorization() if self.auth_scheme == "bearer" else self.api_key.reveal()

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """Build the paid request `POST /api/v3/{model}`.

        Raises:
            UnsupportedError: The provider does not have the model, or a webhook was given.
        """
        if webhook:
            raise UnsupportedError("gptproto has no webhooks for these models", job=job)
        return super().submit(job, image, end_image)

    def price(self, job: Job) -> HttpRequest:
        """Build `GET /api/home-model-catalog`, the public list of prices; it needs no key, and gets none.

        Raises:
            UnsupportedError: The provider does not have the model.
        """
        if self.name not in job.row.providers:
            raise UnsupportedError(f"{self.name} has no model {job.model}", job=job)
        return HttpRequest(method="GET", url=f"{self.base_url}/api/home-model-catalog?language=en")

    def read_price(self, response: HttpResponse, job: Job) -> ServicePrice:
        """Parse the price of a job from the list, which has one price per model."""
        from . import _price_list  # noqa: PLC0415 -- most sessions ask for no price

        return self._read(response, lambda data: _price_list.price(data, job, response.request_id))
