"""Read predictions for the watcher, and classify the replies."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

from kling_async._core.prediction import Prediction
from kling_async._http.reads import send_once
from kling_async.errors import ApiError, TransportError
from kling_async.providers.protocol import account_of

if TYPE_CHECKING:
    from datetime import datetime

    from kling_async._core.account import Page
    from kling_async._core.transport import Transport
    from kling_async.providers import Provider


@attrs.frozen
class Reply:
    """A reply to the read of one prediction.

    Attributes:
        prediction: The record; None if the reply equals the last one, which is not parsed again.
        reply: Hash of the reply.
    """

    prediction: Prediction | None
    reply: int


@attrs.frozen
class FailedRead:
    """A read that failed.

    Attributes:
        error: Its error.
    """

    error: ApiError | TransportError


Read: TypeAlias = Reply | FailedRead


class Reader:
    """Reads predictions, one by one or by pages of the account's list.

    Args:
        transport: Sends the reads.
        provider: Builds them and parses the replies.

    Attributes:
        singles: Number of single reads so far.
        pages: Number of pages read so far.
    """

    def __init__(self, transport: Transport, provider: Provider) -> None:
        self.singles = 0
        self.pages = 0
        self._transport = transport
        self._provider = provider

    async def read(self, prediction_id: str, *, key: str | None, known_reply: int | None) -> Read:
        """Read one prediction.

        Args:
            prediction_id: Its id.
            key: Key of its job.
            known_reply: Hash of the last reply; None before the first.
        """
        self.singles += 1
        try:
            response = await send_once(self._transport, self._provider.result(prediction_id))
            reply = hash((response.status, response.body))
            return Reply(None if reply == known_reply else self._provider.read_prediction(response, key=key), reply)
        except (ApiError, TransportError) as error:
            return FailedRead(error)

    async def read_page(self, number: int, size: int, created_before: datetime | None) -> Page[Prediction] | FailedRead:
        """Read one page of the account's predictions, newest first.

        Args:
            number: Number of the page, from 1.
            size: Predictions per page.
            created_before: Only predictions created before; None for all.

        Raises:
            UnsupportedError: The provider has no list.
        """
        provider = account_of(self._provider, "predictions")
        request = provider.predictions(page=number, page_size=size, created_before=created_before)
        self.pages += 1
        try:
            return provider.read_predictions(await send_once(self._transport, request))
        except (ApiError, TransportError) as error:
            return FailedRead(error)
