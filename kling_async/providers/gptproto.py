"""GPTProto (https://docs.gptproto.com): the same paths on another host, with its own key form and error shapes.

It documents neither uploads, list, delete, balance nor webhooks; asking for one is an error that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import attrs

from kling_async.errors import UnsupportedError

from .wavespeed import WaveSpeed

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

    name = "gptproto"
    key_variable: ClassVar[str] = "GPTPROTO_API_KEY"
    url_variable: ClassVar[str] = "GPTPROTO_BASE_URL"
    default_url: ClassVar[str] = "https://gptproto.com"

    base_url: str = "https://gptproto.com"
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

    def upload_binary(self, **upload: Any) -> NoReturn:
        """Refused."""
        del upload
        raise UnsupportedError("gptproto takes no uploads (POST /api/v3/media/upload/binary)")

    def predictions(self, **filters: Any) -> NoReturn:
        """Refused."""
        _refuse("list of predictions", "POST /api/v3/predictions", filters)

    def delete(self, prediction_ids: object) -> NoReturn:
        """Refused."""
        _refuse("deletion of predictions", "POST /api/v3/predictions/delete", prediction_ids)

    def balance(self) -> NoReturn:
        """Refused."""
        _refuse("balance", "GET /api/v3/balance")

    def models(self) -> NoReturn:
        """Refused."""
        _refuse("list of models", "GET /api/v3/models")

    def price(self, job: Job) -> NoReturn:
        """Refused."""
        _refuse("prices", "POST /api/v3/model/price", job)

    def usage(self, start: object, end: object, *, model: str | None = None) -> NoReturn:
        """Refused."""
        _refuse("usage", "POST /api/v3/user/usage_stats", start, end, model)

    def billings(self, **filters: Any) -> NoReturn:
        """Refused."""
        _refuse("billings", "POST /api/v3/billings/search", filters)

    def webhook_secret(self) -> NoReturn:
        """Refused."""
        _refuse("webhook secret", "GET /api/v3/webhook/secret")


def _refuse(what: str, endpoint: str, *unused: object) -> NoReturn:
    """Say that no page of the provider has it.

    Raises:
        UnsupportedError: Always.
    """
    del unused
    raise UnsupportedError(f"gptproto has no {what} ({endpoint}): none of its pages names it")
