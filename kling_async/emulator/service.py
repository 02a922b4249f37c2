"""State shared by all routes: clock, accounts, predictions, files, faults and the request record."""

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
from .media import Media, own_path
from .pictures import (
    DOWNLOAD_FAILED_TEXT,
    MAX_PICTURE_BYTES,
    MEDIA_ACCESS_CODE,
    PictureError,
    check,
    check_media,
    decode_inline,
)
from .predictions import Failure, Prediction, PredictionStore
from .wire import Persona

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .accounts import Account
    from .chaos import ChaosRun
    from .clock import Clock
    from .network import Line
    from .renderer import Renderer

__all__ = ["Leak", "RequestRecord", "Rules", "Service", "Site"]

_LOG = logging.getLogger("kling_async.emulator")
_MAX_RECORDS: Final = 100_000
_MAX_CONCURRENT_DOWNLOADS: Final = 16
_MAX_CONNECTIONS: Final = 64
_HTTP_TIMEOUT_SECONDS: Final = 15.0
_CHUNK_BYTES: Final = 1 << 16
_OK: Final = 200


@attrs.frozen
class RequestRecord:
    """A received request, without secrets.

    Attributes:
        method: HTTP method.
        path: path without query.
        status: HTTP status of the response; None if the connection was closed instead.
        at: time of arrival, in Unix seconds on the emulator's clock.
        route: route name, as in `faults.ROUTES`; `unknown` for any other path.
        persona: `wavespeed` or `gptproto`.
        faults: kinds of the faults it met.
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
    """An API key sent to a URL that takes none: the storage, an upload or an output.

    Attributes:
        method: HTTP method.
        path: path without query.
        route: route name.
        header: header that carried the key.
        at: time of arrival, in Unix seconds on the emulator's clock.
    """

    method: str
    path: str
    route: str
    header: str
    at: float


@attrs.frozen
class Rules:
    """Settings for behaviour that varies between accounts of the real service, or is undocumented.

    Attributes:
        tiny: serve a constant 2 KB video instead of rendering.
        resolution: `small` or `full` size of rendered videos.
        max_upload_bytes: maximum size of one upload.
        retry_after: send `Retry-After` with a 429.
        refund_after: seconds from a failure to its refund; None never refunds.
        no_funds_status: HTTP status of an insufficient balance at WaveSpeed, 403 or 402.
        discount: discount on the list price, 0 to 1.
        echoes: routes whose responses include the `input`: any of `list` and `result`.
        list_total: include `total` in a list.
        unknown_model_status: HTTP status of a submit to an unknown model.
        webhook_refunds: refund a prediction after the last failed delivery of its webhook.
        downloads: download pictures from other hosts; False accepts them unchecked.
        disagreeing: list other models than those that are served.
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
    disagreeing: bool


@attrs.define(eq=False)
class Site:
    """A persona on its own port.

    Attributes:
        persona: response format.
        methods: function from a path to its HTTP methods.
        origin: base URL; empty before it listens.
    """

    persona: Persona
    methods: Callable[[str], frozenset[str]]
    origin: str = ""


class Service:
    """State behind the routes."""

    def __init__(
        self,
        *,
        clock: Clock,
        accounts: dict[str, Account],
        store: PredictionStore,
        media: Media,
        rules: Rules,
        line: Line | None,
    ) -> None:
        self.clock = clock
        self.accounts = accounts
        self.store = store
        self.media = media
        self.rules = rules
        self.line = line
        self.faults = Faults()
        self.chaos: ChaosRun | None = None
        self.origins: set[tuple[str, int]] = set()
        self.requests: deque[RequestRecord] = deque(maxlen=_MAX_RECORDS)
        self.leaks: deque[Leak] = deque(maxlen=_MAX_RECORDS)
        self.counts: Counter[str] = Counter()
        self.peak = 0
        self.renderer: Renderer | None = None
        self.schedule_webhook: Callable[[Prediction], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._download_slots = asyncio.Semaphore(_MAX_CONCURRENT_DOWNLOADS)

    @property
    def session(self) -> aiohttp.ClientSession:
        """HTTP client for downloads of pictures and deliveries of webhooks; created on first use."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_HTTP_TIMEOUT_SECONDS),
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
            )
        return self._session

    def draw_chaos(self, route: str) -> Fault | None:
        """Return the random fault of the next exchange on the route; None without chaos."""
        return None if self.chaos is None or route not in ROUTES else self.chaos.draw(route)

    def running(self) -> int:
        """Return the number of predictions that occupy a slot, over all accounts."""
        now = self.clock.now()
        return sum(account.running(now) for account in self.accounts.values())

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run a coroutine in the background until it ends or the emulator closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("emulator background task failed", exc_info=error)

    async def close(self) -> None:
        """Cancel background tasks, close the HTTP client and remove the rendered videos."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self.renderer is not None:
            await self.renderer.close()

    def accept(self, prediction: Prediction, now: float) -> None:
        """Accept a prediction: check its pictures, videos and sounds, charge it, schedule its webhook and refund.

        Args:
            prediction: the prediction, with its times drawn.
            now: Unix seconds.
        """
        remote = False
        digests: list[str] = []
        pictures = tuple(prediction.model.pictures_in(prediction.inputs).values())
        try:
            for kind, url in prediction.model.media_in(prediction.inputs):
                self._check_media(kind, url, now)
            for value in pictures:
                digest = self._local_digest(value, now)
                remote = remote or digest is None
                digests.append(digest or "")
        except PictureError as error:
            remote = False
            if prediction.failure is None:
                prediction.fail(Failure("failed", error.code, error.message), now)
        prediction.pictures = tuple(digests)
        prediction.set_fingerprint()
        prediction.waiting = remote
        self.store.add(prediction)
        prediction.entry = prediction.account.accept(prediction, now)
        self.peak = max(self.peak, self.running())
        if remote:
            self.spawn(self._download_pictures(prediction, pictures))
        else:
            self._schedule_end(prediction)

    def _schedule_end(self, prediction: Prediction) -> None:
        if prediction.webhook is not None and self.schedule_webhook is not None:
            self.schedule_webhook(prediction)
        if prediction.failure is not None and prediction.entry is not None and self.rules.refund_after is not None:
            prediction.account.refund(prediction.entry, prediction.ends_at + self.rules.refund_after)

    def _local_digest(self, value: str, now: float) -> str | None:
        """Return the digest of an inline or uploaded picture; None if it must be downloaded.

        An empty string stands for a picture whose content is not kept.

        Raises:
            PictureError: if the picture is unusable or not found.
        """
        if value.startswith(("http://", "https://")):
            path = own_path(value, self.origins)
            if path is None:
                return None if self.rules.downloads else ""
            upload = self.media.upload(path, now)
            if upload is None:
                raise PictureError(MEDIA_ACCESS_CODE, DOWNLOAD_FAILED_TEXT)
            if upload.problem is not None:
                raise upload.problem
            return upload.digest
        return self._check_and_cache(decode_inline(value))

    def _check_media(self, kind: str, url: str, now: float) -> None:
        """Check an uploaded video or sound, or an output of this emulator; other hosts are not asked.

        Raises:
            PictureError: if it is not there, or of another kind.
        """
        path = own_path(url, self.origins)
        if path is None:
            return
        if path.startswith("/output/"):
            if self.store.by_output(path.removeprefix("/output/"), now) is None:
                raise PictureError(MEDIA_ACCESS_CODE, f"Failed to download {kind} from the provided URL.")
            return
        upload = self.media.upload(path, now)
        if upload is None:
            raise PictureError(MEDIA_ACCESS_CODE, f"Failed to download {kind} from the provided URL.")
        check_media(kind, self.media.content(upload.digest) or b"")

    def _check_and_cache(self, content: bytes) -> str:
        check(content)
        return "" if self.rules.tiny else self.media.cache_picture(content)

    async def _download_pictures(self, prediction: Prediction, pictures: tuple[str, ...]) -> None:
        failure: Failure | None = None
        try:
            async with self._download_slots:
                digests = [
                    digest or self._check_and_cache(await self._download(url))
                    for digest, url in zip(prediction.pictures, pictures, strict=True)
                ]
            prediction.pictures = tuple(digests)
        except PictureError as error:
            failure = Failure("failed", error.code, error.message)
        now = self.clock.now()
        prediction.waiting = False
        if failure is not None and prediction.failure is None:
            prediction.fail(failure, now)
        else:
            prediction.ends_at = max(prediction.ends_at, now)
        prediction.account.reschedule(prediction)
        self._schedule_end(prediction)

    async def _download(self, url: str) -> bytes:
        """Download a picture; stops after `MAX_PICTURE_BYTES`, since a longer one is refused anyway.

        Raises:
            PictureError: if it cannot be downloaded.
        """
        try:
            async with self.session.get(url) as response:
                if response.status != _OK:
                    raise PictureError(MEDIA_ACCESS_CODE, DOWNLOAD_FAILED_TEXT)
                content = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    content += chunk
                    if len(content) > MAX_PICTURE_BYTES:
                        break
                return bytes(content)
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
            raise PictureError(MEDIA_ACCESS_CODE, DOWNLOAD_FAILED_TEXT) from None
