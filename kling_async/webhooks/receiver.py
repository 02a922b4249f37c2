"""One delivery from its bytes to whoever waits, and the status that the sender is told."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async._core.http import decode_json
from kling_async._core.prediction import Prediction
from kling_async.errors import WebhookRefusal, WebhookRefusedError
from kling_async.providers import _wire

from .tokens import token_hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from kling_async._core.secret import Secret

    from .verifier import Verified, WebhookVerifier

log = logging.getLogger("kling_async")

MAX_BODY = 2**20
"""Bytes; a body holds the inputs of the job, for which a picture is a URL, and is a few KB."""

PATIENCE = 30.0
"""Seconds that a body may take."""

_TAKEN = 200
_METHOD_NOT_ALLOWED = 405
_UNDER_WAY = 409
_FAILED = 500
_STATUS: Mapping[WebhookRefusal, int] = {
    WebhookRefusal.UNSIGNED: 401,
    WebhookRefusal.MALFORMED: 400,
    WebhookRefusal.STALE: 401,
    WebhookRefusal.FORGED: 401,
    # It has what it wants: another answer would make it try again.
    WebhookRefusal.REPLAYED: _TAKEN,
    WebhookRefusal.TOO_LARGE: 413,
    WebhookRefusal.TOO_SLOW: 408,
    WebhookRefusal.UNREADABLE: 400,
}


@attrs.frozen(kw_only=True)
class Delivery:
    """One webhook that the service did send.

    Attributes:
        prediction: What it says. Late news comes too: compare before it replaces anything.
        token_hash: Digest of the token in the URL that it came to, or None without one. The signature does not cover
            the token: the prediction is the account's, and for which job it is rests on the sender's word.
        webhook_id: The delivery's id.
        sent_at: When it was sent; seconds since the epoch, by the service's clock.
    """

    prediction: Prediction
    token_hash: str | None
    webhook_id: str
    sent_at: int


def parse(body: bytes, *, api_key: Secret | None = None) -> Prediction:
    """The prediction in the body of a webhook: bare as documented, or in an envelope.

    Args:
        body: The bytes as they came; verify them first.
        api_key: The account's key, where it is known: the prediction's error then does not quote it.

    Raises:
        WebhookRefusedError: There is no prediction in it.
    """
    prediction = _parsed(body, api_key)
    if prediction is None:
        # Raised here, where its context is not an error that holds the body.
        raise WebhookRefusedError(
            "there is no prediction in the webhook",
            reason=WebhookRefusal.UNREADABLE,
            advice="what it is about is found by reading it",
        )
    return prediction


def _parsed(body: bytes, api_key: Secret | None) -> Prediction | None:
    try:
        record = decode_json(body)
        if isinstance(record, Mapping) and "id" not in record:
            record = record.get("data")
        return _wire.read_prediction(record, api_key)
    except ValueError:
        return None


class WebhookReceiver:
    """Takes deliveries: verifies, reads, and hands over what is new, once.

    What it answers decides whether the service tries again, which it does up to three times for all but 2xx. So a
    delivery is answered with 200 when `deliver` has returned; with 200 too when it was taken before; with 500, and
    forgotten, when `deliver` raised; and with a 4xx when it is refused.

    Keep `deliver` short: wake somebody, write a row. It runs once per delivery and process; that is at least once, and
    not exactly once, after a crash.

    Args:
        verifier: Believes the service, and nobody else.
        deliver: Is given each delivery; a function, or a coroutine function. It may raise.
        max_body: Bytes of a body that are read at most, whatever its headers say.
        patience: Seconds that a body may take.
        api_key: The account's key, where it is known: a prediction's error then does not quote it.

    Attributes:
        taken: How many were handed over.
        failed: How often `deliver` raised.
        refused: How many were refused, by reason; replays are among them.
    """

    def __init__(
        self,
        verifier: WebhookVerifier,
        deliver: Callable[[Delivery], Awaitable[None] | None],
        *,
        max_body: int = MAX_BODY,
        patience: float = PATIENCE,
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
        self._under_way: set[bytes] = set()

    async def receive(
        self,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        *,
        token: str | None = None,
        method: str = "POST",
    ) -> int:
        """The status to answer with.

        What the iteration of `body` raises, and cancellation, go through; the delivery can then come again.

        Args:
            headers: Of the request; their names in any case.
            body: The bytes as they came, whole or in pieces.
            token: The query's `TOKEN_PARAMETER`, or None without one.
            method: The verb; only POST is taken.
        """
        if method != "POST":
            return _METHOD_NOT_ALLOWED
        try:
            self._verifier.screen(headers)
            content = await self._read(body)
            verified = self._verifier.authenticate(headers, content)
        except WebhookRefusedError as error:
            return self._refuse(error.reason)
        if verified.digest in self._under_way:
            # It may yet fail: "taken" could be a lie.
            return _UNDER_WAY
        if not self._verifier.remember(verified):
            return self._refuse(WebhookRefusal.REPLAYED)
        self._under_way.add(verified.digest)
        status = _FAILED
        try:
            status = await self._hand_over(verified, content, token)
        finally:
            self._under_way.discard(verified.digest)
            if status != _TAKEN:
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
            raise WebhookRefusedError("the body takes too long", reason=WebhookRefusal.TOO_SLOW) from None
        if len(content) > self._max_body:
            raise WebhookRefusedError(f"the body has more than {self._max_body} bytes", reason=WebhookRefusal.TOO_LARGE)
        return bytes(content)

    async def _hand_over(self, verified: Verified, content: bytes, token: str | None) -> int:
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
            handed = self._deliver(delivery)
            if inspect.isawaitable(handed):
                await handed
        except Exception:
            self.failed += 1
            log.exception("the webhook of prediction %s could not be handed over", prediction.id)
            return _FAILED
        self.taken += 1
        return _TAKEN

    def _refuse(self, reason: WebhookRefusal) -> int:
        self.refused[reason] += 1
        # The first of a kind tells of a wrong secret or clock; more of them could be anybody's, to fill the log.
        aloud = self.refused[reason] == 1 and reason is not WebhookRefusal.REPLAYED
        log.log(logging.WARNING if aloud else logging.DEBUG, "a webhook was refused: %s", reason.value)
        return _STATUS[reason]
