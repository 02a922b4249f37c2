"""GPTProto (https://docs.gptproto.com): the paths of WaveSpeedAI on another host, with its own key and error formats.

Its pages document neither uploads, lists, deletion, balance, prices nor webhooks, so the class has no such members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import attrs

from kling_async.errors import UnsupportedError

from ._v3 import ApiV3

if TYPE_CHECKING:
    from kling_async._core.http import HttpRequest
    from kling_async._core.job import Job


@attrs.frozen(kw_only=True)
class GPTProto(ApiV3):
    """Provider for GPTProto.

    Attributes:
        api_key: The account's API key, `sk-...`.
        base_url: Scheme and host; the key is sent nowhere else.
        auth_scheme: "raw" as in every curl example of its pages, or "bearer" as in its prose and its own SDK.
    """

    name = "gptproto"
    key_variable: ClassVar[str] = "GPTPROTO_API_KEY"
    url_variable: ClassVar[str] = "GPTPROTO_BASE_URL"
    default_url: ClassVar[str] = "https://gptproto.com"

    base_url: str = "https://gptproto.com"
    auth_scheme: Literal["raw", "bearer"] = "raw"

    def authorization(self) -> str:
        """Return the value of the Authorization header."""
        key = self.api_key.reveal()
        return f"Bearer {key}" if self.auth_scheme == "bearer" else key

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """Build the paid request `POST /api/v3/{model}`.

        Raises:
            UnsupportedError: The provider does not have the model, or a webhook was given.
        """
        if webhook:
            raise UnsupportedError("gptproto has no webhooks for these models", job=job)
        return super().submit(job, image, end_image)
