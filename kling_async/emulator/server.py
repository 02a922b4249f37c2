"""The emulator itself: one state, two personas, each listening at a port of its own."""

from __future__ import annotations

import bisect
import contextlib
import importlib.util
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final, Literal, Self

import anyio
import anyio.lowlevel
from aiohttp import web

from kling_async.emulator import catalogue, control, routes

from .accounts import LEVELS, Account, Charge, Level, LevelName
from .chaos import Chaos, ChaosRun
from .clock import Clock, RealClock, ScaledClock
from .exchange import route
from .gptproto import GPTProto
from .outputs import Media
from .predictions import PredictionRecord, PredictionStore, Timing, TimingSource
from .routes import Route, methods_of
from .service import Leak, RequestRecord, Rules, Service, Site
from .webhooks import Delivery, Webhooks
from .wire import WaveSpeed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from .faults import Faults

__all__ = ["DEFAULT_GPTPROTO_KEY", "DEFAULT_KEY", "Emulator", "MissingRendererError", "serve"]

DEFAULT_KEY: Final = "wsk_emulator_0123456789abcdef"
"""The key of the WaveSpeed persona when none are given."""

DEFAULT_GPTPROTO_KEY: Final = "sk-emulator-0123456789abcdef"
"""The key of the GPTProto persona when none are given."""

_SHUTDOWN_SECONDS: Final = 0.5
_SETTLING_TURNS: Final = 10
_GIB: Final = 1024**3
_MIB: Final = 1024**2


class MissingRendererError(ImportError):
    """Videos are wanted and the packages that make them are not installed."""


def _level(level: LevelName | Level) -> Level:
    if isinstance(level, Level):
        return level
    if level not in LEVELS:
        raise ValueError(f"no level {level!r}; there are {', '.join(LEVELS)}")
    return LEVELS[level]


def _money(amount: float | Decimal) -> Decimal:
    return Decimal(str(amount))


class Emulator:
    """WaveSpeedAI API v3 and GPTProto on this computer: `async with Emulator() as emu:`.

    The vendor's own clients work against it unmodified. Everything about time is on `clock`; everything about money
    is in USD.

    Args:
        host: where to listen.
        port: port of the WaveSpeed persona; 0 takes a free one.
        gptproto_port: port of the GPTProto persona; 0 takes a free one.
        keys: accepted API keys, each an account of its own: a sequence, or a mapping to each one's level. None takes
            one default key for each persona. Every key is good at both personas.
        level: `bronze`, `silver`, `gold`, `ultra`, or a `Level`, for keys that name none.
        balance: what each account starts with.
        clock: the time; see `ManualClock` and `ScaledClock`.
        speed: short for `clock=ScaledClock(speed)`.
        timing: how long predictions take: a `Timing`, seconds, or a function of model id and inputs.
        seed: makes times, ids and file names the same in every run; None makes them differ.
        profile: `video` renders real MP4s (needs the extra `emulator`); `tiny` serves one of two kilobytes.
        resolution: `small` renders quickly, `full` in the service's own size.
        max_upload_bytes: greatest single upload.
        storage_bytes: distinct uploaded content kept in memory.
        cache_bytes: rendered videos kept on disk.
        over_limit: what happens above the concurrency limit: `reject` with 429, or `queue`, as a page of the vendor
            has it.
        retry_after: whether a 429 of the limits carries `Retry-After`.
        refund_after: seconds from a failure to its refund; None never refunds.
        no_funds_status: HTTP status when the balance does not suffice: 403 or 402 (GPTProto: always 403).
        discount: share of the list price the accounts are let off, 0 to 1.
        input_echo: whether predictions carry their `input`: in the `list`, in the `result`, or in both (True).
        list_total: whether a list tells its `total`, as older pages of the vendor have it.
        unknown_model_status: HTTP status of a submit to a model that does not exist: 404 or 400.
        webhook_refunds: whether a prediction is refunded when its webhook could not be delivered at last.
        downloads: whether pictures at other hosts are fetched; False takes them unseen, and nothing but webhooks
            leaves this computer.
        chaos: faults by the dice, besides those of `faults`.
        advertise: host name that is written into URLs; None takes `host`, or 127.0.0.1 for all interfaces.

    Raises:
        MissingRendererError: when `profile` is `video` and PyAV or Pillow is missing.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        gptproto_port: int = 0,
        keys: Mapping[str, LevelName | Level] | Sequence[str] | None = None,
        level: LevelName | Level = "gold",
        balance: float | Decimal = 1000.0,
        clock: Clock | None = None,
        speed: float | None = None,
        timing: TimingSource | None = None,
        seed: int | None = None,
        profile: Literal["video", "tiny"] = "video",
        resolution: Literal["small", "full"] = "small",
        max_upload_bytes: int = 200 * _MIB,
        storage_bytes: int = _GIB,
        cache_bytes: int = 512 * _MIB,
        over_limit: Literal["reject", "queue"] = "reject",
        retry_after: bool = False,
        refund_after: float | None = 0.0,
        no_funds_status: Literal[402, 403] = 403,
        discount: float | Decimal = 0.0,
        input_echo: bool | Literal["list", "result"] = False,
        list_total: bool = True,
        unknown_model_status: Literal[400, 404] = 404,
        webhook_refunds: bool = True,
        downloads: bool = True,
        chaos: Chaos | None = None,
        advertise: str | None = None,
    ) -> None:
        if clock is not None and speed is not None:
            raise ValueError("give a clock or a speed, not both")
        for word, allowed in ((profile, ("video", "tiny")), (resolution, ("small", "full")), (over_limit, _OVER)):
            if word not in allowed:
                raise ValueError(f"{word!r} is none of {', '.join(allowed)}")
        if profile == "video":
            _require_renderer()
        if clock is None:
            clock = RealClock() if speed is None else ScaledClock(speed)
        levels = _levels(keys, _level(level))
        self._keys = tuple(levels)
        self._cache_bytes = cache_bytes
        self._ports = (port, gptproto_port)
        self._host = host
        self._advertise = advertise or ("127.0.0.1" if host in {"0.0.0.0", "::", ""} else host)  # noqa: S104 - told apart, not bound
        rng = random.Random(seed)  # noqa: S311 - nothing here is a secret
        self._service = Service(
            clock=clock,
            accounts={
                key: Account(key, account_level, _money(balance), queueing=over_limit == "queue")
                for key, account_level in levels.items()
            },
            store=PredictionStore(Timing() if timing is None else timing, rng),
            media=Media(storage_bytes, rng),
            rules=Rules(
                tiny=profile == "tiny",
                resolution=resolution,
                max_upload_bytes=max_upload_bytes,
                retry_after=retry_after,
                refund_after=refund_after,
                no_funds_status=no_funds_status,
                discount=_money(discount),
                echoes=_echoes(input_echo),
                list_total=list_total,
                unknown_model_status=unknown_model_status,
                webhook_refunds=webhook_refunds,
                downloads=downloads,
            ),
        )
        wavespeed = WaveSpeed(catalogue.WAVESPEED)
        self._wavespeed = Site(wavespeed, methods_of((*routes.WAVESPEED, *routes.COMMON), wavespeed.models))
        self._gptproto = Site(GPTProto(catalogue.GPTPROTO), methods_of((), {}))
        self._webhooks = Webhooks(self._service, self._wavespeed.persona)
        self._service.webhooks = self._webhooks
        self.chaos = chaos
        self._runners: list[web.AppRunner] = []

    @property
    def clock(self) -> Clock:
        """The emulator's time; give it to the client under test as well."""
        return self._service.clock

    @property
    def faults(self) -> Faults:
        """The script of what goes wrong."""
        return self._service.faults

    @property
    def chaos(self) -> Chaos | None:
        """The faults by the dice. Setting it, also to what it was, begins anew: counts and the sequence of faults."""
        return None if self._service.chaos is None else self._service.chaos.chaos

    @chaos.setter
    def chaos(self, chaos: Chaos | None) -> None:
        self._service.chaos = None if chaos is None else ChaosRun(chaos)

    @property
    def chaos_counts(self) -> Mapping[tuple[str, str], int]:
        """How often chaos struck, by route and kind."""
        return {} if self._service.chaos is None else dict(self._service.chaos.counts)

    @property
    def base_url(self) -> str:
        """Base URL of the WaveSpeed persona."""
        return self._wavespeed.origin

    @property
    def gptproto_url(self) -> str:
        """Base URL of the GPTProto persona."""
        return self._gptproto.origin

    @property
    def api_key(self) -> str:
        """An accepted key: the first one."""
        return self._keys[0]

    @property
    def gptproto_key(self) -> str:
        """An accepted key that looks like one of GPTProto's, if there is one; else the first one."""
        return next((key for key in self._keys if key.startswith("sk-")), self._keys[0])

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """The last 100 000 requests, oldest first; `/__emulator__/` is not counted."""
        return tuple(self._service.requests)

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests per route since the start."""
        return dict(self._service.counts)

    @property
    def leaks(self) -> tuple[Leak, ...]:
        """API keys that arrived at the storage, at an upload or at an output."""
        return tuple(self._service.leaks)

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """Attempts to deliver webhooks, oldest first."""
        return tuple(self._webhooks.deliveries)

    @property
    def running(self) -> int:
        """Predictions that occupy a slot now, over all accounts."""
        return self._service.running()

    @property
    def peak_running(self) -> int:
        """The most predictions that occupied a slot at once, over all accounts."""
        return self._service.peak

    def set_level(self, level: LevelName | Level, key: str | None = None) -> None:
        """What an account may do from now on; the default account's, or that of `key`. What runs goes on."""
        self._service.accounts[key or self.api_key].level = _level(level)

    def balance(self, key: str | None = None) -> Decimal:
        """USD left on the account of that key, or of the first one."""
        return self._service.accounts[key or self.api_key].balance(self.clock.now())

    def webhook_secret(self, key: str | None = None) -> str:
        """The secret that signs webhooks of that key, or of the first one."""
        return self._service.accounts[key or self.api_key].webhook_secret

    def charges(self) -> tuple[Charge, ...]:
        """Everything that was charged, over all accounts, oldest first."""
        now = self.clock.now()
        charges: list[Charge] = []
        for account in self._service.accounts.values():
            account.settle(now)
            charges.extend(entry.charge() for entry in account.entries)
        return tuple(sorted(charges, key=lambda charge: charge.at))

    def double_paid(
        self,
        *,
        asked: int | Callable[[Hashable], int] = 1,
        by: Callable[[Charge], Hashable] = attrgetter("fingerprint"),
    ) -> tuple[Charge, ...]:
        """The charges nobody asked for: of every distinct input, those beyond what was asked, oldest first.

        What was given back does not count, nor what is yet to be.

        Args:
            asked: how many runs of each input were wanted: a number, or a function of what `by` returns.
            by: what makes inputs the same: their fingerprint, or for example `lambda charge: charge.prompt`.
        """
        seen: Counter[Hashable] = Counter()
        beyond: list[Charge] = []
        for charge in self.charges():
            if charge.refunded or charge.refund_due is not None:
                continue
            name = by(charge)
            seen[name] += 1
            if seen[name] > (asked(name) if callable(asked) else asked):
                beyond.append(charge)
        return tuple(beyond)

    def running_history(self) -> tuple[tuple[float, int], ...]:
        """Each change of how many predictions ran, over all accounts: when, in Unix seconds, and how many from then on.

        What runs now appears with the time it will end at.
        """
        changes: Counter[float] = Counter()
        for account in self._service.accounts.values():
            before = 0
            for at, running in account.steps():
                changes[at] += running - before
                before = running
        total, steps = 0, []
        for at in sorted(changes):
            total += changes[at]
            steps.append((at, total))
        return tuple(steps)

    def running_at(self, at: float) -> int:
        """How many predictions occupied a slot at that time, in Unix seconds, over all accounts."""
        steps = self.running_history()
        place = bisect.bisect_right(steps, at, key=itemgetter(0))
        return steps[place - 1][1] if place else 0

    def predictions(self) -> tuple[PredictionRecord, ...]:
        """Every prediction that is kept, over all accounts, oldest first."""
        return self._service.store.records(self.clock.now())

    async def __aenter__(self) -> Self:
        if not self._service.rules.tiny:
            from .renderer import Renderer  # noqa: PLC0415 - PyAV and Pillow are optional

            self._service.renderer = Renderer(self._cache_bytes)
            await self._service.renderer.open()
        try:
            await self._start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            if self._service.renderer is not None:
                self._service.renderer.stop()
            await self._stop()
            await self._service.close()

    @contextlib.asynccontextmanager
    async def offline(self) -> AsyncIterator[None]:
        """Within this block nobody listens: connections are refused, open ones are cut. State and URLs stay."""
        ports = self._ports
        await self._stop()
        self._ports = (_port(self._wavespeed), _port(self._gptproto))
        for _ in range(_SETTLING_TURNS):
            # Clients in this event loop shall find their idle connections closed before they use them again.
            await anyio.lowlevel.checkpoint()
        try:
            yield
        finally:
            try:
                await self._start()
            finally:
                self._ports = ports

    async def _start(self) -> None:
        for site, app, port in zip(
            (self._wavespeed, self._gptproto), (self._wavespeed_app(), self._gptproto_app()), self._ports, strict=True
        ):
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
            self._runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, self._host, port).start()
            bound = int(runner.addresses[0][1])
            host = f"[{self._advertise}]" if ":" in self._advertise else self._advertise
            site.origin = f"http://{host}:{bound}"
            names = {self._advertise.lower(), self._host.lower(), "127.0.0.1", "localhost", "::1"}
            self._service.origins |= {(name, bound) for name in names}

    async def _stop(self) -> None:
        while self._runners:
            await self._runners.pop().cleanup()

    def _wavespeed_app(self) -> web.Application:
        app, site = self._application(), self._wavespeed
        control.install(app, self._service, site, self.api_key)
        self._add(app, site, (*routes.WAVESPEED, *routes.COMMON, routes.UNKNOWN))
        return app

    def _gptproto_app(self) -> web.Application:
        app = self._application()
        self._add(app, self._gptproto, (*routes.COMMON, routes.UNKNOWN))
        return app

    def _application(self) -> web.Application:
        # A data URI is a third longer than its picture, and a submit may carry two.
        return web.Application(client_max_size=self._service.rules.max_upload_bytes + 32 * _MIB)

    def _add(self, app: web.Application, site: Site, table: tuple[Route, ...]) -> None:
        for row in table:
            handle = route(self._service, site, row.name, row.handler)
            if row.method == "GET":
                app.router.add_get(row.path, handle)
            else:
                app.router.add_route(row.method, row.path, handle)


_OVER: Final = ("reject", "queue")


def _echoes(echo: bool | Literal["list", "result"]) -> frozenset[str]:  # noqa: FBT001 - an option passed on
    if isinstance(echo, str):
        return frozenset({echo})
    return frozenset({"list", "result"}) if echo else frozenset()


def _port(site: Site) -> int:
    return int(site.origin.rpartition(":")[2])


def _levels(keys: Mapping[str, LevelName | Level] | Sequence[str] | None, level: Level) -> dict[str, Level]:
    if keys is None:
        return {DEFAULT_KEY: level, DEFAULT_GPTPROTO_KEY: level}
    if isinstance(keys, str) or not keys:
        raise ValueError("keys is a sequence of keys, or a mapping of keys to levels, and not empty")
    if isinstance(keys, Mapping):
        return {key: _level(own) for key, own in keys.items()}
    return dict.fromkeys(keys, level)


def _require_renderer() -> None:
    missing = [name for name, module in (("av", "av"), ("pillow", "PIL")) if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingRendererError(
            f"the emulator needs {' and '.join(missing)} to render videos: pip install 'kling-async[emulator]', "
            "or ask for profile='tiny'"
        )


async def serve(emulator: Emulator, *, ready: Callable[[Emulator], None] | None = None) -> None:
    """Run an emulator until SIGINT or SIGTERM, then close it in order.

    Args:
        emulator: not entered yet.
        ready: called once it listens, with its URLs known.
    """
    if sys.platform == "win32":
        # There is no handler for signals in its event loops; Ctrl+C arrives as KeyboardInterrupt.
        async with emulator:
            if ready is not None:
                ready(emulator)
            await anyio.sleep_forever()
    async with emulator:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            if ready is not None:
                ready(emulator)
            async for _ in signals:
                break
