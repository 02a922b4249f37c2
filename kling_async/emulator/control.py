"""Control API: the emulator's own routes, for people and for scripts in other processes.

Served over loopback only, under this computer's names, and not to pages of another origin.

* `GET /__emulator__/`: web page that shows the accounts and adds faults.
* `GET /__emulator__/openapi.json`: the emulated API as OpenAPI 3.1.
* `GET /__emulator__/account`: balance, charges, running, peak, requests per route, chaos by kind. The `Authorization`
  header selects the account; the default account without one.
* `GET /__emulator__/state`: the data of the page: all accounts, the last predictions and requests, the faults.
* `POST /__emulator__/faults` with `{"route": "submit", "fault": "AcceptThenDrop", "args": {}, "times": 1, "after": 0}`:
  add a rule. `fault` is a class name of `kling_async.emulator.faults`, `args` its fields; `times: null` is unlimited.
* `GET /__emulator__/faults`: the rules with their hit counts.
* `DELETE /__emulator__/faults`: remove all rules.
* `POST /__emulator__/chaos` with `{"rate": 0.1, "seed": 7, "kinds": null, "routes": null}`: start; rate 0 stops it.
* `GET /__emulator__/chaos`: settings and counts.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from importlib.resources import files
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import web

from .chaos import Chaos, ChaosRun
from .exchange import RefusedError, json_object
from .faults import build
from .openapi import document
from .wire import Json, nanoseconds, reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.typedefs import Handler, Middleware

    from .accounts import Account, Entry
    from .service import Service, Site

    RequestHandler = Callable[[web.Request], Awaitable[web.Response]]

__all__ = ["install", "under_own_name"]

_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_STATE_ROWS: Final = 60
"""Number of predictions and of requests in the state."""

_MIN_MASKED_KEY_CHARS: Final = 17

_PAGE: Final = files("kling_async.emulator").joinpath("admin.html").read_bytes()
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def install(app: web.Application, service: Service, site: Site, default_key: str) -> None:
    """Add the control routes to an application."""
    control = _Control(service, site, default_key)
    for method, path, handler in (
        ("GET", "", control.page),
        ("GET", "openapi.json", control.openapi),
        ("GET", "account", control.account),
        ("GET", "state", control.state),
        ("GET", "faults", control.rules),
        ("POST", "faults", control.add_rule),
        ("DELETE", "faults", control.clear_rules),
        ("GET", "chaos", control.chaos),
        ("POST", "chaos", control.set_chaos),
    ):
        app.router.add_route(method, f"/__emulator__/{path}", control.guarded(handler))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _host_and_port(value: str) -> tuple[str, int]:
    """Return host and port of an origin or a `Host` header; an empty host if it is neither."""
    try:
        parts = urlsplit(value if "//" in value else f"http://{value}")
        return ((parts.hostname or "").lower(), parts.port or 80) if parts.scheme == "http" else ("", 0)
    except ValueError:
        return "", 0


def under_own_name(service: Service, site: Site) -> Middleware:
    """Return a middleware that refuses requests for foreign host names, whose pages would be of the same origin.

    An address in `Host` is nobody's name. Ports are not compared: containers map them.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host, _ = _host_and_port(request.headers.get("Host", "127.0.0.1"))
        if not _is_address(host) and host not in {name for name, _ in service.origins}:
            return site.persona.error(_FORBIDDEN, f"Not under this name; start the emulator with advertise={host!r}")
        return await handler(request)

    return check


class _Control:
    def __init__(self, service: Service, site: Site, default_key: str) -> None:
        self._service = service
        self._site = site
        self._key = default_key

    def guarded(self, handler: RequestHandler) -> RequestHandler:
        """Wrap a handler so that it serves only this computer, and no pages of another origin."""

        async def handle(request: web.Request) -> web.Response:
            error = self._site.persona.error
            if not _is_local(request.remote or ""):
                return error(_NOT_FOUND)
            # Against DNS rebinding: a foreign name that resolves to this host is refused.
            if _host_and_port(request.host) not in self._service.origins:
                return error(_FORBIDDEN, "Not under this name")
            if self._is_cross_site(request):
                return error(_FORBIDDEN, "Not from another site")
            try:
                return await handler(request)
            except RefusedError as refused:
                return error(refused.status, refused.message)

        return handle

    @staticmethod
    def _is_cross_site(request: web.Request) -> bool:
        """Return whether the browser's headers say that a page of another site sent the request."""
        origin = request.headers.get("Origin")
        if origin is not None and _host_and_port(origin) != _host_and_port(request.host):
            return True
        site = request.headers.get("Sec-Fetch-Site", "none")
        # Another site may link to the page, and nothing else.
        return site not in {"none", "same-origin"} and request.path != "/__emulator__/"

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(body=_PAGE, content_type="text/html", charset="utf-8", headers=_PAGE_HEADERS)

    async def openapi(self, _: web.Request) -> web.Response:
        limit = self._service.rules.max_upload_bytes
        return reply(document(self._site.origin, self._site.persona.models, max_upload_bytes=limit))

    async def account(self, request: web.Request) -> web.Response:
        service = self._service
        account = service.accounts.get(self._site.persona.key(request.headers.get("Authorization", "")) or self._key)
        if account is None:
            raise RefusedError(_NOT_FOUND, "No such account")
        return reply(
            {
                "now": service.clock.now(),
                **self._usage(account),
                "requests": dict(service.counts),
                "leaks": len(service.leaks),
                "chaos": self._chaos(),
                "charges": self._charges(account.entries),
            }
        )

    def _usage(self, account: Account) -> Json:
        now = self._service.clock.now()
        return {
            "balance": float(account.balance(now)),
            "running": account.running(now),
            "peak_running": account.peak,
        }

    @staticmethod
    def _charges(entries: Iterable[Entry]) -> list[Json]:
        return [
            {
                "prediction_id": charge.prediction_id,
                "model": charge.model,
                "amount": float(charge.amount),
                "at": nanoseconds(charge.at),
                "refunded": charge.refunded,
                "fingerprint": charge.fingerprint,
                "prompt": charge.prompt,
            }
            for charge in (entry.charge() for entry in entries)
        ]

    def _chaos(self) -> Json | None:
        return None if self._service.chaos is None else self._service.chaos.summary()

    async def state(self, _: web.Request) -> web.Response:
        service, now = self._service, self._service.clock.now()
        service.store.expire(now)
        for account in service.accounts.values():
            account.settle(now)
        entries = sorted(
            (entry for account in service.accounts.values() for entry in account.entries), key=lambda entry: entry.at
        )
        latest = [entry.prediction.record(now) for entry in reversed(entries[-_STATE_ROWS:])]
        return reply(
            {
                "now": now,
                "running": service.running(),
                "peak_running": service.peak,
                "accounts": [
                    {
                        "key": _masked(account.key),
                        "starts_per_minute": account.level.starts_per_minute,
                        "concurrent": account.level.concurrent,
                        "charged": float(sum(entry.amount for entry in account.entries)),
                        "refunded": float(
                            sum(entry.amount for entry in account.entries if entry.refunded_at is not None)
                        ),
                        **self._usage(account),
                    }
                    for account in service.accounts.values()
                ],
                "predictions": [
                    {
                        "id": record.id,
                        "model": record.model,
                        "prompt": str(record.inputs.get("prompt", "")),
                        "status": record.status,
                        "created_at": record.created_at,
                        "ends_at": record.ends_at,
                        "code": record.code,
                        "error": record.error,
                        "output": record.output,
                        "amount": float(entry.amount),
                        "refunded": entry.refunded_at is not None,
                    }
                    for record, entry in zip(latest, reversed(entries[-_STATE_ROWS:]), strict=True)
                ],
                "total_predictions": len(entries),
                "counts": dict(service.counts),
                "requests": [
                    {
                        "method": record.method,
                        "path": record.path,
                        "status": record.status,
                        "at": record.at,
                        "persona": record.persona,
                        "faults": record.faults,
                    }
                    for record in reversed(deque(service.requests, maxlen=_STATE_ROWS))
                ],
                "leaks": len(service.leaks),
                "faults": self._rules(),
                "chaos": self._chaos(),
            }
        )

    def _rules(self) -> list[Json]:
        return [
            {
                "route": rule.route,
                "fault": type(rule.fault).__name__,
                "times": rule.times,
                "after": rule.after,
                "hits": rule.hits,
            }
            for rule in self._service.faults.rules
        ]

    async def rules(self, _: web.Request) -> web.Response:
        return reply(self._rules())

    async def add_rule(self, request: web.Request) -> web.Response:
        body = json_object(await request.read())
        arguments, times, after = body.get("args", {}), body.get("times", 1), body.get("after", 0)
        if (
            not isinstance(arguments, dict)
            or not (times is None or isinstance(times, int))
            or not isinstance(after, int)
        ):
            raise RefusedError(_BAD_REQUEST, "args: expected an object; times: an integer or null; after: an integer")
        try:
            fault = build(str(body.get("fault")), arguments)
            self._service.faults.add(str(body.get("route")), fault, times=times, after=after)
        except ValueError as error:
            raise RefusedError(_BAD_REQUEST, str(error)) from None
        return reply(self._rules())

    async def clear_rules(self, _: web.Request) -> web.Response:
        self._service.faults.clear()
        return reply(self._rules())

    async def chaos(self, _: web.Request) -> web.Response:
        return reply(self._chaos())

    async def set_chaos(self, request: web.Request) -> web.Response:
        body = json_object(await request.read())
        rate, seed, kinds, routes = (body.get(name) for name in ("rate", "seed", "kinds", "routes"))
        if (
            isinstance(rate, bool)
            or not isinstance(rate, int | float)
            or not (seed is None or isinstance(seed, int))
            or not all(names is None or isinstance(names, list) for names in (kinds, routes))
        ):
            raise RefusedError(
                _BAD_REQUEST,
                "rate: expected a number; seed: an integer or null; kinds and routes: arrays of strings or null",
            )
        try:
            chaos = Chaos(rate, seed or 0, _strings(kinds), _strings(routes))
        except ValueError as error:
            raise RefusedError(_BAD_REQUEST, str(error)) from None
        self._service.chaos = ChaosRun(chaos) if rate else None
        return reply(self._chaos())


def _masked(key: str) -> str:
    # It may be a key of the real service. Of a short key the visible ends would show most.
    return f"{key[:8]}…{key[-4:]}" if len(key) >= _MIN_MASKED_KEY_CHARS else "…"


def _strings(value: object) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None
