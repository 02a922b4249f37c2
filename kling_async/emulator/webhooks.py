"""Signed webhooks: one POST when a prediction ends, tried again with growing pauses when it is not taken."""

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

from kling_async.emulator import faults as kinds

from .faults import Call
from .wire import dumps

if TYPE_CHECKING:
    from .predictions import Prediction
    from .service import Service
    from .wire import Persona

__all__ = ["Delivery", "Webhooks", "signature"]

RETRIES: Final = 3
"""How often a delivery is tried again."""

BACKOFF_SECONDS: Final = 10.0
"""The first pause before a retry, on the emulator's clock; each next one is twice as long."""

_HISTORY: Final = 10_000


@attrs.frozen
class Delivery:
    """One attempt to deliver a webhook.

    Attributes:
        prediction_id: the prediction it tells about.
        attempt: 1 for the first.
        status: HTTP status of the receiver; None when it could not be reached.
        at: Unix seconds on the emulator's clock.
    """

    prediction_id: str
    attempt: int
    status: int | None
    at: float

    @property
    def taken(self) -> bool:
        """Whether the receiver answered 2xx."""
        return self.status is not None and self.status // 100 == 2  # noqa: PLR2004 - the 2xx class


def signature(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: `v3,` and the hex of HMAC-SHA256.

    Signed is `{id}.{timestamp}.{body}`; the key is the secret without `whsec_`, as text and not base64-decoded.
    """
    key = secret.removeprefix("whsec_").encode()
    return "v3," + hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


class Webhooks:
    """Sends what is due; a task lives only while something is pending.

    Args:
        service: the state behind the routes.
        persona: the dialect of the bodies.
    """

    def __init__(self, service: Service, persona: Persona) -> None:
        self.deliveries: deque[Delivery] = deque(maxlen=_HISTORY)
        self._service = service
        self._persona = persona
        self._due: list[tuple[float, int, Prediction, int]] = []
        self._numbers = itertools.count()
        self._pending = 0
        self._wake: anyio.Event | None = None

    @property
    def pending(self) -> int:
        """Webhooks that are still to be sent or tried again."""
        return self._pending

    def expect(self, prediction: Prediction) -> None:
        """Send one when the prediction ends."""
        self._pending += 1
        self._plan(prediction, prediction.ends_at, 1)

    def _plan(self, prediction: Prediction, at: float, attempt: int) -> None:
        heapq.heappush(self._due, (at, next(self._numbers), prediction, attempt))
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
                    await self._nap(seconds, self._wake)
                    continue
                _, _, prediction, attempt = heapq.heappop(self._due)
                self._service.spawn(self._deliver(prediction, attempt))
        finally:
            self._wake = None

    async def _nap(self, seconds: float, wake: anyio.Event) -> None:
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
        drawn = service.chance("webhook")
        taken = service.faults.take(call) or (() if drawn is None else (drawn,))
        delay = kinds.first(taken, kinds.Delay)
        if delay is not None:
            await service.clock.sleep(delay.seconds)
        body = self._persona.prediction(prediction, prediction.state(service.clock.now()), prediction.shape)
        body |= {"input": prediction.inputs}
        if kinds.first(taken, kinds.Enveloped) is not None:
            body = {"code": 200, "message": "success", "data": body}
        raw = dumps(body)
        lost = kinds.first(taken, kinds.Drop) is not None
        status = None if lost else await self._post(url, prediction, raw)
        if kinds.first(taken, kinds.Duplicate) is not None:
            await self._post(url, prediction, raw)
        delivery = Delivery(prediction.id, attempt, status, service.clock.now())
        self.deliveries.append(delivery)
        if delivery.taken:
            self._pending -= 1
        elif attempt > RETRIES:
            self._pending -= 1
            if service.rules.webhook_refunds and prediction.entry is not None:
                prediction.account.refund(prediction.entry, delivery.at)
        else:
            self._plan(prediction, delivery.at + BACKOFF_SECONDS * 2 ** (attempt - 1), attempt + 1)

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
