"""Read from the service until an answer succeeds or is final. A paid request is never sent here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar, cast

import attrs

from kling_async._core.answers import MAX_READ_PAUSE_S, RULES, Answers, Kind
from kling_async._core.clock import Clock
from kling_async._core.http import Effect
from kling_async._core.transport import Transport
from kling_async._tasks import is_cancelled
from kling_async._turns import shows_crowding
from kling_async.errors import ApiError, ConnectionLostError, KlingError, ReplyTooLargeError, Spent, TransportError
from kling_async.providers import Provider

from .retry import pause

if TYPE_CHECKING:
    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.prediction import Prediction
    from kling_async._core.transport import StreamedBody, StreamingTransport
    from kling_async._turns import Turn

T = TypeVar("T")


async def send_once(transport: Transport, request: HttpRequest, body: StreamedBody | None = None) -> HttpResponse:
    """Send an unpaid request once, and return the reply, whatever its status.

    Args:
        transport: Sends it; a `StreamingTransport`, if there is a streamed body.
        request: The request.
        body: Body to stream.

    Raises:
        TransportError: There was no reply, or the transport was cancelled by itself and not by the caller.
        ValueError: The request is a paid one.
    """
    if request.effect is not Effect.READ:
        raise ValueError(f"expected a read, got {request!r}")
    try:
        if body is None:
            return await transport.send(request)
        return await cast("StreamingTransport", transport).send_stream(request, body)
    except asyncio.CancelledError as stray:
        if is_cancelled():
            raise
        raise ConnectionLostError("the transport cancelled a read", spent=Spent.NO) from stray


@attrs.frozen
class Reads:
    """Sends unpaid requests, and repeats them until an answer succeeds or is final.

    Attributes:
        transport: Sends them.
        clock: The session's clock.
        rng: Draws jitter from [0, 1).
    """

    transport: Transport
    clock: Clock
    rng: Callable[[], float]
    # Monotonic time until which the service has asked for a pause, by the kind of request.
    _paused_until: dict[Kind, float] = attrs.field(factory=dict, init=False)

    async def read(
        self,
        request: HttpRequest,
        parse: Callable[[HttpResponse], T],
        kind: Kind = Kind.CALL,
        *,
        within: float | None = None,
        turn: Turn | None = None,
    ) -> T:
        """Send an unpaid request until its answer succeeds, and return what it says.

        Args:
            request: A request with `Effect.READ`.
            parse: Parses a reply, or raises an `ApiError`.
            kind: Kind of the request, which decides what is final.
            within: Seconds for all attempts; at least two are made. Default: those of the kind.
            turn: Its turn among others of its kind, which learns of refusals.

        Raises:
            ApiError: The service refused finally, or did not answer in time; the text has all answers.
            ReplyTooLargeError: The reply is larger than allowed.
            TransportError: There was no reply in time; likewise.
            ValueError: The request is a paid one.
        """

        async def attempt() -> T:
            return parse(await send_once(self.transport, request))

        return await self.repeat(attempt, kind, within=within, turn=turn)

    async def repeat(
        self,
        attempt: Callable[[], Awaitable[T]],
        kind: Kind,
        *,
        within: float | None = None,
        turn: Turn | None = None,
    ) -> T:
        """Call a function that sends unpaid requests until it succeeds, and return its value.

        Args:
            attempt: Sends the requests; its errors are answers.
            kind: Kind of the requests, which decides what is final.
            within: As for `read`.
            turn: As for `read`.

        Raises:
            ApiError: As `read` does.
            TransportError: As `read` does.
        """
        began = self.clock.monotonic()
        within = RULES[kind].within if within is None else within
        answers: Answers | None = None
        while True:
            while (remaining := self._paused_until.get(kind, began) - self.clock.monotonic()) > 0:
                # A timer may fire slightly early.
                await self.clock.sleep(remaining + 0.001)
            error: KlingError
            try:
                return await attempt()
            except ReplyTooLargeError:
                raise
            except (ApiError, TransportError) as caught:
                # The frames hold the body of an upload.
                error = caught.with_traceback(None)
            if turn is not None and shows_crowding(error):
                turn.record_refused()
            answers = answers or Answers(kind)
            now = self.clock.monotonic()
            final = answers.add(error, now)
            hint = error.retry_after if isinstance(error, ApiError) else None
            delay = pause(answers.count, self.rng, hint)
            if final or (answers.count > 1 and now + delay - began > within):
                raise answers.raised(error, final=final)
            if hint is not None:
                self._paused_until[kind] = max(self._paused_until.get(kind, now), now + min(hint, MAX_READ_PAUSE_S))
            await self.clock.sleep(delay)


@attrs.frozen
class ServiceReads(Reads):
    """Reads from one provider.

    Attributes:
        provider: Builds requests and parses replies.
    """

    provider: Provider

    async def prediction(
        self, prediction_id: str, kind: Kind = Kind.CALL, *, within: float | None = None
    ) -> Prediction:
        """Read a prediction.

        Args:
            prediction_id: Its id.
            kind: `Kind.STATUS` for one that is known to be paid for.
            within: Seconds for all attempts. Default: those of the kind.

        Raises:
            ApiError: The service refused.
            TransportError: There was no reply.
        """
        try:
            return await self.read(
                self.provider.result(prediction_id), self.provider.read_prediction, kind, within=within
            )
        except (ApiError, TransportError) as error:
            error.prediction_id = prediction_id
            raise
