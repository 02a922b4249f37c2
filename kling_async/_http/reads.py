"""Read from the service, with retries."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import attrs

from kling_async._core.clock import Clock
from kling_async._core.transport import Transport
from kling_async.errors import ApiError
from kling_async.providers import Provider

from .retry import send_read

if TYPE_CHECKING:
    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.prediction import Prediction


@attrs.frozen
class ServiceReads:
    """Sends unpaid requests, with retries after transient failures.

    Attributes:
        transport: Sends them.
        provider: Builds requests and parses replies.
        clock: The session's clock.
        rng: Draws jitter.
    """

    transport: Transport
    provider: Provider
    clock: Clock
    rng: Random

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send an unpaid request, and return the reply, whatever its status.

        Raises:
            TransportError: There was no reply.
        """
        return await send_read(self.transport, request, self.clock, rng=self.rng.random)

    async def prediction(self, prediction_id: str) -> Prediction:
        """Read a prediction.

        Raises:
            ApiError: The service refused.
            TransportError: There was no reply.
        """
        response = await self.send(self.provider.result(prediction_id))
        try:
            return self.provider.read_prediction(response)
        except ApiError as error:
            error.prediction_id = prediction_id
            raise
