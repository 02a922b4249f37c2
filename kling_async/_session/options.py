"""Options of a session, checked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, get_args

import attrs

from kling_async._core.budget import Budget
from kling_async._core.catalogue import LEVELS, Level
from kling_async._core.media import WHITE
from kling_async._core.polling import WATCH_VARIABLE, WatchPolicy
from kling_async._core.seen import Seen
from kling_async.errors import ConfigurationError, UnsupportedError
from kling_async.providers import PROVIDERS, Provider
from kling_async.providers.protocol import account_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    import aiohttp

    from kling_async._core.clock import Clock
    from kling_async._core.http import Timeouts
    from kling_async._core.transport import Transport
    from kling_async._submission.doubts import OnUncertain
    from kling_async.events import Observer
    from kling_async.ledger import Ledger
    from kling_async.limits import RateLimiter
    from kling_async.limits.callers import LimitsByCaller

ALLOW_HTTP_VARIABLE = "KLING_ALLOW_HTTP"
"""Environment variable that allows an `http://` base URL of another machine when it is 1: it may set that URL, too."""
WINDOW_SLACK_S = 0.5
"""Seconds added to the account's window: jobs that start on time here may arrive a little early or late there."""


def _at_least(least: float) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value < least:
            raise ConfigurationError(f"{field.name}: expected at least {least}, got {value}")

    return check


def _rate(_: Any, field: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ConfigurationError(f"{field.name}: expected a positive number of reads per second, got {value!r}")


def _one_of(*choices: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    *first, last = (f'"{choice}"' for choice in choices)

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise ConfigurationError(f"{field.name}: expected {', '.join(first)} or {last}, got {value!r}")

    return check


def _positive(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    positive_seconds(field.name, value)


@attrs.frozen(kw_only=True)
class SessionOptions:
    """Options of a session; `KlingSession` documents them. The repr omits those that may hold a password.

    Raises:
        ConfigurationError: A value is out of range.
    """

    provider: Provider
    level: Level
    max_in_flight: int = attrs.field(validator=_at_least(1))
    adaptive: bool
    max_saving: int | None = attrs.field(validator=attrs.validators.optional(_at_least(1)))
    max_output_bytes: int = attrs.field(validator=_at_least(1))
    rate_limiter: RateLimiter | None
    callers: LimitsByCaller | None
    ledger: Ledger | str | os.PathLike[str] | None = attrs.field(repr=False)
    on_uncertain: OnUncertain = attrs.field(validator=_one_of("reconcile", "hold", "resubmit"))
    grace: float
    sole_user: bool
    budget: Budget | None
    seen: Seen | None
    ignored_parameters: tuple[str, ...] | None
    retry_failed: int = attrs.field(validator=_at_least(0))
    webhook_url: str | None = attrs.field(repr=False)
    images: str = attrs.field(validator=_one_of("upload", "inline"))
    fit: bool
    background: str
    verify: bool | None
    max_uploads: int | None = attrs.field(validator=attrs.validators.optional(_at_least(1)))
    deadline: float = attrs.field(validator=_positive)
    forget_after: float = attrs.field(validator=_positive)
    watch: WatchPolicy
    max_reads_per_second: float | None = attrs.field(validator=attrs.validators.optional(_rate))
    timeouts: Timeouts
    max_reply_bytes: int = attrs.field(validator=_at_least(1))
    proxy: str | None = attrs.field(repr=False)
    ca: str | os.PathLike[str] | None
    client_session: aiohttp.ClientSession | None
    transport: Transport | None
    clock: Clock
    observers: tuple[Observer, ...]

    def __attrs_post_init__(self) -> None:
        if self.fit:
            # Imported here: most sessions convert no images.
            from kling_async._images.preflight import require_pillow  # noqa: PLC0415 -- see above

            require_pillow()
        if self.background != WHITE:
            self._check_background()
        if self.verify:
            from kling_async._images.preflight import require_pillow  # noqa: PLC0415 -- see above

            require_pillow("verify")
        if self.webhook_url is not None:
            _check_webhooks(self.provider, self.webhook_url)

    def _check_background(self) -> None:
        if not self.fit:
            raise ConfigurationError("background: needs fit=True (--fit), which lays transparent images on it")
        # Imported here: Pillow is an extra.
        from kling_async._images.convert import check_background  # noqa: PLC0415 -- see above

        check_background(self.background)


def provider_of(
    provider: str | Provider, api_key: str | None, base_url: str | None, *, allow_http: bool | None = None
) -> Provider:
    """Return a provider by its name, with its key and base URL.

    Raises:
        ConfigurationError: The name is unknown, there is no key, or the base URL is refused.
    """
    if not isinstance(provider, str):
        if api_key is not None or base_url is not None or allow_http is not None:
            raise ConfigurationError("a provider of your own has its key and its base URL already")
        return provider
    cls = PROVIDERS.get(provider.lower())
    if cls is None:
        raise ConfigurationError(f"provider: expected {' or '.join(PROVIDERS)}, got {provider!r}")
    key = api_key or os.environ.get(cls.key_variable)
    if not key:
        raise ConfigurationError(
            f"no API key for {cls.name}",
            advice=f"set {cls.key_variable}, give api_key=, or try it without one: kling-async demo",
        )
    variables = (cls.url_variable, cls.official_url_variable)
    url = base_url or next(filter(None, map(os.environ.get, variables)), cls.default_url)
    if allow_http is None:
        allow_http = os.environ.get(ALLOW_HTTP_VARIABLE) == "1"
    return cls(api_key=key, base_url=url, allow_http=allow_http)


def level_of(level: str | Level) -> Level:
    """Return a level by its name.

    Raises:
        ConfigurationError: The name is unknown.
    """
    if isinstance(level, Level):
        return level
    found = LEVELS.get(level.lower())
    if found is None:
        raise ConfigurationError(f"level: expected {', '.join(LEVELS)} or a Level, got {level!r}")
    return found


def policy_of(watch: WatchPolicy | str | None) -> WatchPolicy:
    """Return a polling policy by its name, which the environment may tell; without one the default.

    Raises:
        ConfigurationError: The name is unknown.
    """
    if isinstance(watch, WatchPolicy):
        return watch
    source, name = ("watch", watch) if watch is not None else (WATCH_VARIABLE, os.environ.get(WATCH_VARIABLE))
    try:
        return WatchPolicy.named(name or "balanced")
    except ValueError as error:
        raise ConfigurationError(f"{source}: {error}") from None


def seen_of(seen: Seen | None, ledger: Ledger) -> Seen:
    """Return the setting for jobs that another batch of a ledger has paid for.

    Args:
        seen: The setting; None for the ledger's default.
        ledger: The ledger.

    Raises:
        ConfigurationError: There is no such setting, or the ledger is in memory and knows of no other batch.
    """
    if seen is None:
        return "stop" if ledger.durable else "pay"
    if seen not in get_args(Seen):
        raise ConfigurationError(f"seen: expected one of {', '.join(get_args(Seen))}, got {seen!r}")
    if seen != "pay" and not ledger.durable:
        raise ConfigurationError(
            f"seen: expected a ledger on disk for {seen!r}, got one in memory, which forgets ended jobs",
            advice="open KlingSession(ledger=...)",
        )
    return seen


def budget_of(budget: Budget | Decimal | str | float | None) -> Budget | None:
    """Return a budget; an amount is taken as USD.

    Raises:
        ConfigurationError: The amount is not a positive number.
    """
    return budget if budget is None or isinstance(budget, Budget) else Budget(budget)


def positive_seconds(name: str, seconds: float) -> None:
    """Raise unless a number of seconds is positive.

    Raises:
        ConfigurationError: It is not.
    """
    if not seconds > 0:
        raise ConfigurationError(f"{name}: expected a positive number of seconds, got {seconds!r}")


def refuse_ledger(ledger: object) -> None:
    """Raise if a batch is given a ledger.

    Raises:
        ConfigurationError: It is.
    """
    if ledger is not None:
        raise ConfigurationError(
            "ledger: expected none, because all batches of a session write the session's ledger",
            advice="open a session for that ledger: KlingSession(ledger=...), then batch(...) or resume(name=...)",
        )


def _check_webhooks(provider: Provider, url: str) -> None:
    from kling_async.webhooks import url_with  # noqa: PLC0415 -- most sessions have none

    url_with(url, "")
    try:
        account_of(provider, "webhook_secret").webhook_secret()
    except UnsupportedError as error:
        raise ConfigurationError(f"webhook_url: {error.message}") from None
