"""What all routes share: clock, accounts, predictions, files, faults and the record of what happened."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

import aiohttp
import attrs

from .faults import ROUTES, Fault, Faults
from .outputs import Media, own_path
from .pictures import DOWNLOAD_FAILED, MAX_BYTES, MEDIA_ACCESS, PictureError, check, decode_inline
from .predictions import Prediction, PredictionStore, Verdict
from .wire import Persona

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .accounts import Account
    from .chaos import ChaosRun
    from .clock import Clock
    from .renderer import Renderer
    from .webhooks import Webhooks

__all__ = ["Leak", "RequestRecord", "Rules", "Service", "Site"]

_LOG = logging.getLogger("kling_async.emulator")
_HISTORY: Final = 100_000
_DOWNLOADS: Final = 16
_DOWNLOAD_SECONDS: Final = 15.0
_OK: Final = 200


@attrs.frozen
class RequestRecord:
    """A request that was seen; it holds no secrets.

    Attributes:
        method: HTTP method.
        path: the path without query.
        status: HTTP status of the answer; None when the connection was closed instead.
        at: Unix seconds on the emulator's clock when it came in.
        route: name of the route, as in `faults.ROUTES`; `unknown` when there is none.
        persona: `wavespeed` or `gptproto`.
        faults: the kinds of faults it met.
    """

    method: str
    path: str
    status: int | None
    at: float
    route: str
    persona: str
    faults: tuple[str, ...] = ()


@attrs.frozen
class Leak:
    """An API key that was sent where none belongs: to the storage, an upload or an output.

    Attributes:
        method: HTTP method.
        path: the path without query.
        route: name of the route.
        header: the header that carried it.
        at: Unix seconds on the emulator's clock.
    """

    method: str
    path: str
    route: str
    header: str
    at: float


@attrs.frozen
class Rules:
    """How this emulator behaves where the real service is configurable, disputed or unknown.

    Attributes:
        tiny: whether outputs are a constant few-KB file instead of rendered videos.
        resolution: `small` or `full` pixels for rendered videos.
        max_upload_bytes: greatest single upload.
        retry_after: whether a 429 carries `Retry-After`.
        refund_after: seconds from a failure to its refund; None never refunds.
        no_funds_status: HTTP status of an insufficient balance at WaveSpeed, 403 or 402.
        discount: share of the list price the accounts are let off, 0 to 1.
        echoes: which of `list` and `result` carry the `input`.
        list_total: whether a list tells its `total`.
        unknown_model_status: HTTP status of a submit to a model that does not exist.
        webhook_refunds: whether a prediction is refunded when no delivery of its webhook was taken.
        downloads: whether pictures at other hosts are fetched; else they are taken unseen.
    """

    tiny: bool
    resolution: Literal["small", "full"]
    max_upload_bytes: int
    retry_after: bool
    refund_after: float | None
    no_funds_status: int
    discount: Decimal
    echoes: frozenset[str]
    list_total: bool
    unknown_model_status: int
    webhook_refunds: bool
    downloads: bool


@attrs.define(eq=False)
class Site:
    """One persona at its own port.

    Attributes:
        persona: its dialect.
        methods: which methods a path knows.
        origin: its base URL, known once it listens.
    """

    persona: Persona
    methods: Callable[[str], frozenset[str]]
    origin: str = ""


class Service:
    """The state behind the routes."""

    def __init__(
        self,
        *,
        clock: Clock,
        accounts: dict[str, Account],
        store: PredictionStore,
        media: Media,
        rules: Rules,
    ) -> None:
        self.clock = clock
        self.accounts = accounts
        self.store = store
        self.media = media
        self.rules = rules
        self.faults = Faults()
        self.chaos: ChaosRun | None = None
        self.origins: set[tuple[str, int]] = set()
        self.requests: deque[RequestRecord] = deque(maxlen=_HISTORY)
        self.leaks: deque[Leak] = deque(maxlen=_HISTORY)
        self.counts: Counter[str] = Counter()
        self.peak = 0
        self.renderer: Renderer | None = None
        self.webhooks: Webhooks | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._downloads = asyncio.Semaphore(_DOWNLOADS)

    @property
    def session(self) -> aiohttp.ClientSession:
        """For what the service fetches and delivers itself."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_DOWNLOAD_SECONDS),
                connector=aiohttp.TCPConnector(limit=64),
            )
        return self._session

    def chance(self, route: str) -> Fault | None:
        """What chaos has in store for the next exchange of that route, if there is chaos."""
        return None if self.chaos is None or route not in ROUTES else self.chaos.draw(route)

    def running(self) -> int:
        """Predictions that occupy a slot, over all accounts."""
        now = self.clock.now()
        return sum(account.running(now) for account in self.accounts.values())

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run something beside the routes; it is cancelled when the emulator closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a background task of the emulator failed", exc_info=error)

    async def close(self) -> None:
        """Stop everything that runs beside the routes."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self.renderer is not None:
            await self.renderer.close()

    def accept(self, prediction: Prediction, pictures: tuple[str, ...], now: float) -> None:
        """Take a prediction on: look at its pictures, charge it, plan its end.

        Args:
            prediction: with its times drawn.
            pictures: the values of its image fields, start frame first.
            now: Unix seconds.
        """
        foreign: list[str] = []
        digests: list[str] = []
        try:
            for value in pictures:
                found = self._at_hand(value, now)
                if found is None:
                    foreign.append(value)
                digests.append(found or "")
        except PictureError as error:
            foreign.clear()
            if prediction.verdict is None:
                prediction.fail(Verdict("failed", error.code, error.message), now)
        prediction.pictures = tuple(digests)
        prediction.name()
        prediction.waiting = bool(foreign)
        self.store.add(prediction)
        prediction.entry = prediction.account.accept(prediction, now)
        self.peak = max(self.peak, self.running())
        if foreign:
            self.spawn(self._download(prediction, pictures))
        else:
            self._plan_end(prediction)

    def _plan_end(self, prediction: Prediction) -> None:
        if prediction.webhook is not None and self.webhooks is not None:
            self.webhooks.expect(prediction)
        self._plan_refund(prediction)

    def _plan_refund(self, prediction: Prediction) -> None:
        if prediction.verdict is not None and prediction.entry is not None and self.rules.refund_after is not None:
            prediction.account.refund(prediction.entry, prediction.ends_at + self.rules.refund_after)

    def _at_hand(self, value: str, now: float) -> str | None:
        """The digest of a picture that is here already; None when it has to be fetched from another host."""
        if value.startswith(("http://", "https://")):
            path = own_path(value, self.origins)
            if path is None:
                return None if self.rules.downloads else ""
            upload = self.media.upload(path, now)
            if upload is None:
                raise PictureError(MEDIA_ACCESS, DOWNLOAD_FAILED)
            if upload.problem is not None:
                raise upload.problem
            return upload.digest
        return self._examined(decode_inline(value))

    def _examined(self, content: bytes) -> str:
        check(content)
        return "" if self.rules.tiny else self.media.keep(content)

    async def _download(self, prediction: Prediction, pictures: tuple[str, ...]) -> None:
        verdict: Verdict | None = None
        try:
            async with self._downloads:
                digests = [
                    digest or self._examined(await self._fetched(url))
                    for digest, url in zip(prediction.pictures, pictures, strict=True)
                ]
            prediction.pictures = tuple(digests)
        except PictureError as error:
            verdict = Verdict("failed", error.code, error.message)
        now = self.clock.now()
        prediction.waiting = False
        if verdict is not None and prediction.verdict is None:
            prediction.fail(verdict, now)
        else:
            prediction.ends_at = max(prediction.ends_at, now)
        prediction.account.reschedule(prediction)
        self._plan_end(prediction)

    async def _fetched(self, url: str) -> bytes:
        try:
            async with self.session.get(url) as response:
                if response.status != _OK:
                    raise PictureError(MEDIA_ACCESS, DOWNLOAD_FAILED)
                content = bytearray()
                async for piece in response.content.iter_chunked(1 << 16):
                    content += piece
                    if len(content) > MAX_BYTES:
                        break
                return bytes(content)
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
            raise PictureError(MEDIA_ACCESS, DOWNLOAD_FAILED) from None
