"""The emulator: one shared state and two personas, each on its own port."""

from __future__ import annotations

import bisect
import contextlib
import email.utils
import functools
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

from kling_async.emulator import control, routes

from .accounts import LEVELS, Account, Charge, Level, LevelName
from .catalogue import GPTPROTO, WAVESPEED
from .chaos import Chaos, ChaosRun
from .clock import Clock, RealClock, ScaledClock
from .exchange import route
from .gptproto import GPTProto
from .media import Media
from .network import NETWORKS, Line, Network, NetworkName
from .predictions import PredictionRecord, PredictionStore, Timing, TimingSource
from .routes import Route, methods_of
from .service import Leak, RequestRecord, Rules, Service, Site
from .wavespeed import WaveSpeed
from .webhooks import Delivery, Webhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from .faults import Faults

__all__ = ["DEFAULT_GPTPROTO_KEY", "DEFAULT_KEY", "Emulator", "MissingRendererError", "serve"]

DEFAULT_KEY: Final = "wsk_emulator_0123456789abcdef"
"""Key of the WaveSpeed persona if none are given."""

DEFAULT_GPTPROTO_KEY: Final = "sk-emulator-0123456789abcdef"
"""Key of the GPTProto persona if none are given."""

_SHUTDOWN_TIMEOUT_SECONDS: Final = 0.5
_OFFLINE_LOOP_TURNS: Final = 10
_MIB_BYTES: Final = 1024**2
_GIB_BYTES: Final = 1024**3
# Two pictures as data URIs, each a third longer than its picture, and the rest of a submit.
_MAX_SUBMIT_BYTES: Final = 32 * _MIB_BYTES


class MissingRendererError(ImportError):
    """The packages that render videos are not installed."""


def _level(level: LevelName | Level) -> Level:
    if isinstance(level, Level):
        return level
    if level not in LEVELS:
        kind = type(level)
        expected = f"a kling_async.emulator.Level or one of {', '.join(LEVELS)}"
        # The client has a `Level` of its own.
        raise ValueError(f"level: expected {expected}, got {level!r}, a {kind.__module__}.{kind.__qualname__}")
    return LEVELS[level]


def _network(network: NetworkName | Network) -> Network:
    if isinstance(network, Network):
        return network
    if network not in NETWORKS:
        raise ValueError(f"network: expected a Network or one of {', '.join(NETWORKS)}, got {network!r}")
    return NETWORKS[network]


def _money(amount: float | Decimal) -> Decimal:
    return Decimal(str(amount))


class Emulator:
    """Local server for WaveSpeedAI API v3 and GPTProto: `async with Emulator() as emu:`.

    The vendor's own clients work against it unmodified. All times are on `clock`; all amounts are in USD.

    Args:
        host: address to listen on.
        port: port of the WaveSpeed persona; 0 selects a free one.
        gptproto_port: port of the GPTProto persona; 0 selects a free one.
        keys: accepted API keys, each with an account of its own: a sequence, or a mapping to levels. None creates one
            default key per persona. Every key is valid at both personas.
        level: `bronze`, `silver`, `gold`, `ultra` or a `Level`, for keys without one of their own.
        balance: initial balance of each account.
        clock: source of time, such as `ManualClock` or `ScaledClock`; None uses the system clock.
        speed: shorthand for `clock=ScaledClock(speed)`.
        timing: duration of predictions: a `Timing`, seconds, or a function of model id and inputs; None is `Timing()`.
        seed: seed of times, ids and file names, for reproducible runs; None makes each run different.
        profile: `video` renders real MP4s (needs the extra `emulator`); `tiny` serves a constant 2 KB one.
        resolution: `small` renders quickly, `full` in the service's size.
        max_upload_bytes: maximum size of one upload.
        storage_bytes: maximum size of distinct uploaded content, in memory.
        cache_bytes: maximum size of rendered videos, on disk.
        over_limit: response above the concurrency limit: `reject` with 429, or `queue`, as one page of the vendor says.
        retry_after: send `Retry-After` with a 429 of the limits.
        refund_after: seconds from a failure to its refund; None never refunds.
        no_funds_status: HTTP status of an insufficient balance: 403 or 402 (GPTProto: always 403).
        discount: discount on the list price, 0 to 1.
        input_echo: include the `input` of predictions in `list`, in `result`, or in both (True).
        list_total: include `total` in a list, as older pages of the vendor show it.
        unknown_model_status: HTTP status of a submit to an unknown model: 404 or 400.
        webhook_refunds: refund a prediction after the last failed delivery of its webhook.
        downloads: download pictures from other hosts; False accepts them unchecked, so that only webhooks connect to
            other hosts.
        catalogue: `GET /models` describes the models as they are, or `disagreeing`: with other fields, lengths, prices
            and models, as after changes at the service. Submits and charges are unchanged.
        chaos: random faults, in addition to `faults`; None for none.
        network: line to the clients: `wan`, `thin` or a `Network`; None is one without latency and limits.
        advertise: host name in URLs, under which requests are answered, as they are under addresses and `localhost`;
            None uses `host`, or 127.0.0.1 if that is all interfaces.

    Raises:
        MissingRendererError: if `profile` is `video` and PyAV or Pillow is missing.
        ValueError: if an option is invalid.
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
        max_upload_bytes: int = 200 * _MIB_BYTES,
        storage_bytes: int = _GIB_BYTES,
        cache_bytes: int = 512 * _MIB_BYTES,
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
        catalogue: Literal["agreeing", "disagreeing"] = "agreeing",
        chaos: Chaos | None = None,
        network: NetworkName | Network | None = None,
        advertise: str | None = None,
    ) -> None:
        if clock is not None and speed is not None:
            raise ValueError("clock, speed: expected at most one, got both")
        for name, value, choices in (
            ("profile", profile, ("video", "tiny")),
            ("resolution", resolution, ("small", "full")),
            ("catalogue", catalogue, ("agreeing", "disagreeing")),
            ("over_limit", over_limit, ("reject", "queue")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        if profile == "video":
            _require_renderer()
        if clock is None:
            clock = RealClock() if speed is None else ScaledClock(speed)
        levels = _levels(keys, _level(level))
        self._keys = tuple(levels)
        self._cache_bytes = cache_bytes
        self._ports = (port, gptproto_port)
        self._host = host
        self._advertise = advertise or ("127.0.0.1" if host in {"0.0.0.0", "::", ""} else host)  # noqa: S104 -- compared, not bound
        rng = random.Random(seed)  # noqa: S311 -- not used for security
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
                echoes=_echo_routes(input_echo),
                list_total=list_total,
                unknown_model_status=unknown_model_status,
                webhook_refunds=webhook_refunds,
                downloads=downloads,
                disagreeing=catalogue == "disagreeing",
            ),
            line=None if network is None else Line(_network(network), clock, random.Random(f"{seed} network")),  # noqa: S311 -- not used for security
        )
        wavespeed = WaveSpeed(WAVESPEED)
        self._wavespeed = Site(wavespeed, methods_of((*routes.WAVESPEED, *routes.COMMON), wavespeed.models))
        self._gptproto = Site(GPTProto(GPTPROTO), methods_of((), {}))
        self._webhooks = Webhooks(self._service, self._wavespeed.persona)
        self._service.schedule_webhook = self._webhooks.schedule
        self.chaos = chaos
        self._runners: list[web.AppRunner] = []

    @property
    def clock(self) -> Clock:
        """The emulator's clock; pass it to the client under test as well."""
        return self._service.clock

    @property
    def faults(self) -> Faults:
        """Scripted faults."""
        return self._service.faults

    @property
    def chaos(self) -> Chaos | None:
        """Random faults, or None. Every assignment restarts the counts and the sequence of faults."""
        return None if self._service.chaos is None else self._service.chaos.chaos

    @chaos.setter
    def chaos(self, chaos: Chaos | None) -> None:
        self._service.chaos = None if chaos is None else ChaosRun(chaos)

    @property
    def chaos_counts(self) -> Mapping[tuple[str, str], int]:
        """Number of random faults so far, by route and kind."""
        return {} if self._service.chaos is None else dict(self._service.chaos.counts)

    @property
    def network(self) -> Network | None:
        """The line to the clients; None is one without latency and limits."""
        return None if self._service.line is None else self._service.line.network

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
        """The first accepted key."""
        return self._keys[0]

    @property
    def gptproto_key(self) -> str:
        """The first accepted key that starts with `sk-`, as GPTProto's do; without one, the first key."""
        return next((key for key in self._keys if key.startswith("sk-")), self._keys[0])

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """The last 100 000 requests, oldest first, without those to `/__emulator__/`."""
        return tuple(self._service.requests)

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests per route since the start."""
        return dict(self._service.counts)

    @property
    def leaks(self) -> tuple[Leak, ...]:
        """API keys that were sent to the storage, to an upload or to an output."""
        return tuple(self._service.leaks)

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """Delivery attempts of webhooks, oldest first."""
        return tuple(self._webhooks.deliveries)

    @property
    def running(self) -> int:
        """Number of predictions that occupy a slot now, over all accounts."""
        return self._service.running()

    @property
    def peak_running(self) -> int:
        """Highest number of predictions that occupied a slot at once, over all accounts."""
        return self._service.peak

    def set_level(self, level: LevelName | Level, key: str | None = None) -> None:
        """Change the level of an account; running predictions continue.

        Args:
            level: level name or limits.
            key: API key of the account; None is the first one.

        Raises:
            ValueError: if there is no level of that name.
        """
        self._service.accounts[key or self.api_key].level = _level(level)

    def balance(self, key: str | None = None) -> Decimal:
        """Return the balance of an account in USD; without a key, of the first one."""
        return self._service.accounts[key or self.api_key].balance(self.clock.now())

    def webhook_secret(self, key: str | None = None) -> str:
        """Return the secret that signs the webhooks of an account; without a key, of the first one."""
        return self._service.accounts[key or self.api_key].webhook_secret

    def charges(self) -> tuple[Charge, ...]:
        """Return all charges, over all accounts, oldest first."""
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
        """Return the surplus charges: for each distinct input, those beyond the wanted number, oldest first.

        Charges that were or will be refunded are not counted.

        Args:
            asked: wanted runs per input: a number, or a function of the value that `by` returns.
            by: function from a charge to the identity of its input, for example `lambda charge: charge.prompt`.
        """
        counts: Counter[Hashable] = Counter()
        surplus: list[Charge] = []
        for charge in self.charges():
            if charge.refunded or charge.refund_due is not None:
                continue
            identity = by(charge)
            counts[identity] += 1
            if counts[identity] > (asked(identity) if callable(asked) else asked):
                surplus.append(charge)
        return tuple(surplus)

    def running_history(self) -> tuple[tuple[float, int], ...]:
        """Return each change of the number of occupied slots, over all accounts: Unix seconds and the new number.

        For running predictions it includes their future end.
        """
        changes: Counter[float] = Counter()
        for account in self._service.accounts.values():
            before = 0
            for at, running in account.running_history():
                changes[at] += running - before
                before = running
        total, history = 0, []
        for at in sorted(changes):
            total += changes[at]
            history.append((at, total))
        return tuple(history)

    def running_at(self, at: float) -> int:
        """Return the number of occupied slots at `at`, in Unix seconds, over all accounts."""
        history = self.running_history()
        index = bisect.bisect_right(history, at, key=itemgetter(0))
        return history[index - 1][1] if index else 0

    def predictions(self) -> tuple[PredictionRecord, ...]:
        """Return all predictions of the last seven days, over all accounts, oldest first."""
        return self._service.store.records(self.clock.now())

    async def __aenter__(self) -> Self:
        if not self._service.rules.tiny:
            from .renderer import Renderer  # noqa: PLC0415 -- PyAV and Pillow are optional

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
        """Stop listening within this block: open connections are closed, new ones refused. State and URLs stay."""
        ports = self._ports
        await self._stop()
        self._ports = (_port(self._wavespeed), _port(self._gptproto))
        for _ in range(_OFFLINE_LOOP_TURNS):
            # Clients in this event loop must notice that their idle connections were closed.
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
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT_SECONDS)
            self._runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, self._host, port).start()
            bound = int(runner.addresses[0][1])
            host = f"[{self._advertise}]" if ":" in self._advertise else self._advertise
            site.origin = f"http://{host}:{bound}"
            names = {self._advertise.lower(), self._host.lower(), "127.0.0.1", "localhost", "::1"}
            self._service.origins |= {(name, bound) for name in names}

    async def _stop(self) -> None:
        # A cancellation, which `Task.cancel` delivers in spite of the shield, ends one of them early, not the others.
        async with contextlib.AsyncExitStack() as stack:
            while self._runners:
                stack.push_async_callback(self._runners.pop().cleanup)

    def _wavespeed_app(self) -> web.Application:
        site = self._wavespeed
        app = self._application(site)
        control.install(app, self._service, site, self.api_key)
        self._add_routes(app, site, (*routes.WAVESPEED, *routes.COMMON, routes.UNKNOWN))
        return app

    def _gptproto_app(self) -> web.Application:
        app = self._application(self._gptproto)
        self._add_routes(app, self._gptproto, (*routes.GPTPROTO, *routes.COMMON, routes.UNKNOWN))
        return app

    def _application(self, site: Site) -> web.Application:
        limit = self._service.rules.max_upload_bytes + _MAX_SUBMIT_BYTES
        app = web.Application(client_max_size=limit, middlewares=[control.under_own_name(self._service, site)])
        app.on_response_prepare.append(self._set_date)
        return app

    async def _set_date(self, _: web.Request, response: web.StreamResponse) -> None:
        """Send the time of the emulator's clock, instead of the computer's."""
        response.headers["Date"] = _http_date(int(self.clock.now()))

    def _add_routes(self, app: web.Application, site: Site, table: tuple[Route, ...]) -> None:
        for row in table:
            handle = route(self._service, site, row.name, row.handler)
            if row.method == "GET":
                app.router.add_get(row.path, handle)
            else:
                app.router.add_route(row.method, row.path, handle)


@functools.lru_cache(maxsize=1)
def _http_date(at: int) -> str:
    return email.utils.formatdate(at, usegmt=True)


def _echo_routes(echo: bool | Literal["list", "result"]) -> frozenset[str]:  # noqa: FBT001 -- value of a public option
    if isinstance(echo, str):
        return frozenset({echo})
    return frozenset({"list", "result"}) if echo else frozenset()


def _port(site: Site) -> int:
    return int(site.origin.rpartition(":")[2])


def _levels(keys: Mapping[str, LevelName | Level] | Sequence[str] | None, level: Level) -> dict[str, Level]:
    if keys is None:
        return {DEFAULT_KEY: level, DEFAULT_GPTPROTO_KEY: level}
    if isinstance(keys, str) or not keys:
        raise ValueError("keys: expected a non-empty sequence of keys or mapping of keys to levels")
    if isinstance(keys, Mapping):
        return {key: _level(own) for key, own in keys.items()}
    return dict.fromkeys(keys, level)


def _require_renderer() -> None:
    missing = [name for name, module in (("av", "av"), ("pillow", "PIL")) if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingRendererError(
            f"profile 'video' needs {' and '.join(missing)}: pip install 'kling-async[emulator]', or use profile='tiny'"
        )


async def serve(emulator: Emulator, *, ready: Callable[[Emulator], None] | None = None) -> None:
    """Run an emulator until SIGINT or SIGTERM, then close it.

    Args:
        emulator: an emulator that is not running.
        ready: called with the emulator once it listens.
    """
    if sys.platform == "win32":
        # Event loops on Windows have no signal handlers; Ctrl+C raises KeyboardInterrupt.
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
