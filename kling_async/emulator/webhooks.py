"""Signed webhooks: one POST when a prediction ends, retried with exponential backoff."""

from __future__ import annotations

import hashlib
import heapq
import hmac
import itertools
from collections import deque
from typing import TYPE_CHECKING, Final

import aiohttp
import anyio
import attrs

from .faults import Call, kinds
from .wire import dumps

if TYPE_CHECKING:
    from .predictions import Prediction
    from .service import Service
    from .wire import Persona

__all__ = ["Delivery", "Webhooks", "signature"]

MAX_RETRIES: Final = 3
"""Retries of a failed delivery."""

FIRST_BACKOFF_SECONDS: Final = 10.0
"""Wait before the first retry, on the emulator's clock; it doubles with each retry."""

_MAX_DELIVERIES: Final = 10_000


@attrs.frozen
class Delivery:
    """One attempt to deliver a webhook.

    Attributes:
        prediction_id: id of the prediction.
        attempt: number of the attempt, from 1.
        status: HTTP status of the receiver; None if it could not be reached.
        at: time of the attempt, in Unix seconds on the emulator's clock.
    """

    prediction_id: str
    attempt: int
    status: int | None
    at: float

    @property
    def taken(self) -> bool:
        """True if the receiver responded with 2xx."""
        return self.status is not None and self.status // 100 == 2  # noqa: PLR2004 -- the 2xx class


def signature(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: `v3,` and the hex HMAC-SHA256 of `{id}.{timestamp}.{body}`.

    The HMAC key is the secret without `whsec_`, as text: it is not base64-decoded.
    """
    key = secret.removeprefix("whsec_").encode()
    return "v3," + hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


class Webhooks:
    """Scheduled webhook deliveries; a task runs only while there are any.

    Args:
        service: state behind the routes.
        persona: response format of the bodies.
    """

    def __init__(self, service: Service, persona: Persona) -> None:
        self.deliveries: deque[Delivery] = deque(maxlen=_MAX_DELIVERIES)
        self._service = service
        self._persona = persona
        self._due: list[tuple[float, int, Prediction, int]] = []
        self._sequence = itertools.count()
        self._pending = 0
        self._wake: anyio.Event | None = None

    @property
    def pending(self) -> int:
        """Number of webhooks that are neither delivered nor given up."""
        return self._pending

    def schedule(self, prediction: Prediction) -> None:
        """Schedule the webhook for the end of the prediction."""
        self._pending += 1
        self._schedule_attempt(prediction, prediction.ends_at, 1)

    def _schedule_attempt(self, prediction: Prediction, at: float, attempt: int) -> None:
        heapq.heappush(self._due, (at, next(self._sequence), prediction, attempt))
        if self._wake is None:
            self._wake = anyio.Event()
            self._service.spawn(self._run())
        else:
            self._wake.set()

    async def _run(self) -> None:
        clock = self._service.clock
        try:
            while self._due:
                self._wake = anyio.Event()
                seconds = self._due[0][0] - clock.now()
                if seconds > 0:
                    await self._sleep_or_wake(seconds, self._wake)
                    continue
                _, _, prediction, attempt = heapq.heappop(self._due)
                self._service.spawn(self._deliver(prediction, attempt))
        finally:
            self._wake = None

    async def _sleep_or_wake(self, seconds: float, wake: anyio.Event) -> None:
        """Sleep until the next delivery is due or an earlier one is scheduled."""
        async with anyio.create_task_group() as group:

            async def sleep() -> None:
                await self._service.clock.sleep(seconds)
                wake.set()

            group.start_soon(sleep)
            await wake.wait()
            group.cancel_scope.cancel()

    async def _deliver(self, prediction: Prediction, attempt: int) -> None:
        service = self._service
        url = prediction.webhook
        if url is None or prediction.deleted_at is not None:
            self._pending -= 1
            return
        call = Call("webhook", "POST", "", self._persona.name, {"id": prediction.id})
        drawn = service.draw_chaos("webhook")
        faults = service.faults.take(call) or (() if drawn is None else (drawn,))
        delay = kinds.first(faults, kinds.Delay)
        if delay is not None:
            await service.clock.sleep(delay.seconds)
        body = self._persona.prediction(prediction, prediction.state(service.clock.now()), prediction.shape)
        body |= {"input": prediction.inputs}
        if kinds.first(faults, kinds.Enveloped) is not None:
            body = {"code": 200, "message": "success", "data": body}
        raw = dumps(body)
        lost = kinds.first(faults, kinds.Drop) is not None
        status = None if lost else await self._post(url, prediction, raw)
        if kinds.first(faults, kinds.Duplicate) is not None:
            await self._post(url, prediction, raw)
        delivery = Delivery(prediction.id, attempt, status, service.clock.now())
        self.deliveries.append(delivery)
        if delivery.taken:
            self._pending -= 1
        elif attempt > MAX_RETRIES:
            self._pending -= 1
            if service.rules.webhook_refunds and prediction.entry is not None:
                prediction.account.refund(prediction.entry, delivery.at)
        else:
            self._schedule_attempt(prediction, delivery.at + FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), attempt + 1)

    async def _post(self, url: str, prediction: Prediction, raw: bytes) -> int | None:
        timestamp = int(self._service.clock.now())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": prediction.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(prediction.account.webhook_secret, prediction.id, timestamp, raw),
        }
        try:
            async with self._service.session.post(url, data=raw, headers=headers) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
