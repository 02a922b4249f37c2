"""Reads of predictions for the watcher, and what their replies mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

from kling_async._core.prediction import Prediction
from kling_async.errors import (
    ApiError,
    KlingError,
    TransportError,
    UnsupportedError,
)
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
        prediction: The record; None when the reply is the known one.
        reply: Hash of the reply: an equal one says nothing new, and is not parsed again.
    """

    prediction: Prediction | None
    reply: int


@attrs.frozen
class Final:
    """An error that another read would meet again."""

    error: KlingError


@attrs.frozen
class Passing:
    """An error that another read may not meet."""

    error: KlingError


Read: TypeAlias = "Reply | Final | Passing"


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
            response = await self._transport.send(self._provider.result(prediction_id))
            reply = hash((response.status, response.body))
            return Reply(None if reply == known_reply else self._provider.read_prediction(response, key=key), reply)
        except ApiError as error:
            return Final(error) if error.refused and not error.transient else Passing(error)
        except TransportError as error:
            return Passing(error)

    async def read_page(
        self, number: int, size: int, created_before: datetime | None
    ) -> Page[Prediction] | Final | Passing:
        """Read one page of the account's predictions, newest first."""
        try:
            provider = account_of(self._provider, "predictions")
            request = provider.predictions(page=number, page_size=size, created_before=created_before)
            self.pages += 1
            return provider.read_predictions(await self._transport.send(request))
        except (TransportError, ApiError, UnsupportedError) as error:
            return Passing(error) if error.transient else Final(error)
