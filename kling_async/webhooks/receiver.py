"""Receiver of webhooks: from the bytes of a request to the delivery and the status of the response."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async._core.prediction import Prediction
from kling_async._log import log
from kling_async.errors import WebhookRefusal, WebhookRefusedError
from kling_async.providers import _wire

from .tokens import token_hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from kling_async._core.secret import Secret

    from .verifier import Verified, WebhookVerifier

MAX_BODY_BYTES = 2**20
"""Default limit of a body. A body repeats the inputs of the job, with images as URLs, and has a few KB."""
BODY_TIMEOUT_S = 30.0
"""Default seconds within which a body must be complete."""

_OK = 200
_METHOD_NOT_ALLOWED = 405
_CONFLICT = 409
_SERVER_ERROR = 500
_STATUS_BY_REFUSAL: Mapping[WebhookRefusal, int] = {
    WebhookRefusal.UNSIGNED: 401,
    WebhookRefusal.MALFORMED: 400,
    WebhookRefusal.STALE: 401,
    WebhookRefusal.FORGED: 401,
    # Any other status would make the service send it again.
    WebhookRefusal.REPLAYED: _OK,
    WebhookRefusal.TOO_LARGE: 413,
    WebhookRefusal.TOO_SLOW: 408,
    WebhookRefusal.UNREADABLE: 400,
}


@attrs.frozen(kw_only=True)
class Delivery:
    """Verified webhook.

    Attributes:
        prediction: The prediction in its body. It may be outdated: compare before it replaces anything.
        token_hash: Digest of the token in the request's URL, or None without one. The signature covers the prediction
            and not the token, so the assignment to a job is unverified.
        webhook_id: The delivery's id.
        sent_at: Time of sending by the service's clock; seconds since the epoch.
    """

    prediction: Prediction
    token_hash: str | None
    webhook_id: str
    sent_at: int


def parse(body: bytes, *, api_key: Secret | None = None) -> Prediction:
    """Parse the prediction in the body of a webhook: bare as documented, or in an envelope.

    Args:
        body: The received bytes; verify them first.
        api_key: The account's key, which is redacted from the prediction; None if it is not known.

    Raises:
        WebhookRefusedError: There is no prediction in the body.
    """
    prediction = _parsed(body, api_key)
    if prediction is None:
        # Raised outside `_parsed`, whose exception would be its context and holds the body.
        raise WebhookRefusedError(
            "no prediction in the webhook",
            reason=WebhookRefusal.UNREADABLE,
            advice="polling finds the end of the prediction",
        )
    return prediction


def _parsed(body: bytes, api_key: Secret | None) -> Prediction | None:
    try:
        record = _wire.decode(body, api_key)
        if isinstance(record, Mapping) and "id" not in record:
            record = record.get("data")
        return _wire.read_prediction(record)
    except ValueError:
        return None


class WebhookReceiver:
    """Verifies and parses webhooks and passes each new one to `deliver`, once.

    The service retries up to three times unless the status is 2xx. The status is 200 when `deliver` has returned, and
    for a duplicate of such a delivery; 500 when `deliver` raised, so that the delivery is accepted when it comes again;
    409 for a duplicate while the first is in progress; and another 4xx when the webhook is refused.

    Keep `deliver` short: set an event, write a row. It runs once per delivery and process; across crashes and processes
    that is at least once.

    Args:
        verifier: Verifies signature, time and novelty.
        deliver: Called with each delivery; a function or a coroutine function. It may raise.
        max_body: Maximum number of bytes read from a body, whatever its headers say.
        patience: Seconds within which a body must be complete.
        api_key: The account's key, which is redacted from predictions; None if it is not known.

    Attributes:
        taken: Number of deliveries for which `deliver` returned.
        failed: Number of deliveries for which `deliver` raised.
        refused: Number of refused webhooks by reason, duplicates included.
    """

    def __init__(
        self,
        verifier: WebhookVerifier,
        deliver: Callable[[Delivery], Awaitable[None] | None],
        *,
        max_body: int = MAX_BODY_BYTES,
        patience: float = BODY_TIMEOUT_S,
        api_key: Secret | None = None,
    ) -> None:
        self.taken = 0
        self.failed = 0
        self.refused: Counter[WebhookRefusal] = Counter()
        self._verifier = verifier
        self._deliver = deliver
        self._max_body = max_body
        self._patience = patience
        self._api_key = api_key
        self._in_progress: set[bytes] = set()

    async def receive(
        self,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        *,
        token: str | None = None,
        method: str = "POST",
    ) -> int:
        """Process one request and return the status of its response.

        Errors of the iteration of `body` and cancellation propagate; the delivery is then accepted when it comes again.

        Args:
            headers: Headers of the request; names in any case.
            body: The received bytes, whole or in chunks.
            token: Value of the query parameter `TOKEN_PARAMETER`, or None.
            method: Method of the request; only POST is accepted.
        """
        if method != "POST":
            return _METHOD_NOT_ALLOWED
        try:
            self._verifier.screen(headers)
            content = await self._read(body)
            verified = self._verifier.authenticate(headers, content)
        except WebhookRefusedError as error:
            return self._refuse(error.reason)
        if verified.digest in self._in_progress:
            # Not 200: the delivery in progress may still fail.
            return _CONFLICT
        if not self._verifier.remember(verified):
            return self._refuse(WebhookRefusal.REPLAYED)
        self._in_progress.add(verified.digest)
        status = _SERVER_ERROR
        try:
            status = await self._parse_and_deliver(verified, content, token)
        finally:
            self._in_progress.discard(verified.digest)
            if status != _OK:
                self._verifier.forget(verified)
        return status

    async def _read(self, body: bytes | AsyncIterable[bytes]) -> bytes:
        content = bytearray()
        try:
            with anyio.fail_after(self._patience):
                if isinstance(body, bytes):
                    content += body
                else:
                    async for chunk in body:
                        content += chunk
                        if len(content) > self._max_body:
                            break
        except TimeoutError:
            raise WebhookRefusedError(
                f"the body is not complete after {self._patience:g} s", reason=WebhookRefusal.TOO_SLOW
            ) from None
        if len(content) > self._max_body:
            raise WebhookRefusedError(f"the body has more than {self._max_body} bytes", reason=WebhookRefusal.TOO_LARGE)
        return bytes(content)

    async def _parse_and_deliver(self, verified: Verified, content: bytes, token: str | None) -> int:
        try:
            prediction = parse(content, api_key=self._api_key)
        except WebhookRefusedError as error:
            return self._refuse(error.reason)
        delivery = Delivery(
            prediction=prediction,
            token_hash=token_hash(token) if token else None,
            webhook_id=verified.webhook_id,
            sent_at=verified.sent_at,
        )
        try:
            returned = self._deliver(delivery)
            if inspect.isawaitable(returned):
                await returned
        except Exception:
            self.failed += 1
            log.exception("delivery of the webhook of prediction %s failed", prediction.id)
            return _SERVER_ERROR
        self.taken += 1
        return _OK

    def _refuse(self, reason: WebhookRefusal) -> int:
        self.refused[reason] += 1
        # One warning of each kind, which may mean a wrong secret or clock; with more, anyone could fill the log.
        warn = self.refused[reason] == 1 and reason is not WebhookRefusal.REPLAYED
        log.log(logging.WARNING if warn else logging.DEBUG, "a webhook was refused: %s", reason.value)
        return _STATUS_BY_REFUSAL[reason]
