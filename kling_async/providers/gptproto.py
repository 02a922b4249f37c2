"""GPTProto (https://docs.gptproto.com): the same paths on another host, with its own key form and error shapes.

It documents neither uploads, list, delete, balance nor webhooks; asking for one is an error that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import attrs

from kling_async._core.errors import UnsupportedError

from .wavespeed import WaveSpeed, without_slash

if TYPE_CHECKING:
    from kling_async._core.http import HttpRequest
    from kling_async._core.job import Job


@attrs.frozen(kw_only=True)
class GPTProto(WaveSpeed):
    """The dialect of GPTProto.

    Attributes:
        api_key: The account's key, `sk-...`.
        base_url: Scheme and host; the key goes nowhere else.
        auth_scheme: "raw" as in every curl example of its pages, or "bearer" as in its prose and its own SDK.
    """

    name: ClassVar[str] = "gptproto"
    key_variable: ClassVar[str] = "GPTPROTO_API_KEY"
    url_variable: ClassVar[str] = "GPTPROTO_BASE_URL"
    default_url: ClassVar[str] = "https://gptproto.com"

    base_url: str = attrs.field(default="https://gptproto.com", converter=without_slash)
    auth_scheme: Literal["raw", "bearer"] = "raw"

    def authorization(self) -> str:
        """The header's value."""
        key = self.api_key.reveal()
        return f"Bearer {key}" if self.auth_scheme == "bearer" else key

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        """`POST /api/v3/{model}`: one paid request.

        Raises:
            UnsupportedError: Its pages have not the model, or a webhook was asked for.
        """
        if webhook:
            raise UnsupportedError("gptproto has no webhooks for these models", job=job)
        return super().submit(job, image, end_image)

    def upload_ticket(self, *, filename: str, size: int, content_type: str) -> HttpRequest:
        """Refused.

        Raises:
            UnsupportedError: Always.
        """
        del filename, size, content_type
        raise UnsupportedError(
            "gptproto takes no uploads",
            advice='give the image as a URL, or make the session with images="inline" to send it as a data URI',
        )
