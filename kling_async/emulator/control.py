"""The emulator's own routes, for scripts in other processes: `/__emulator__/account` and `/__emulator__/faults`.

They answer over loopback only.

* `GET /__emulator__/account`: balance, charges, running, peak, requests per route. With an `Authorization` header of
  that account; the default account without one.
* `POST /__emulator__/faults` with `{"route": "submit", "fault": "AcceptThenDrop", "args": {}, "times": 1, "after": 0}`:
  `fault` is a class name of `kling_async.emulator.faults`, `args` its fields; `times: null` means for good.
* `GET /__emulator__/faults`: the rules and how often each has hit.
* `DELETE /__emulator__/faults`: remove every rule.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from kling_async.emulator.exchange import RefusedError, json_object
from kling_async.emulator.faults import build
from kling_async.emulator.wire import nanoseconds, reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from kling_async.emulator.service import Service, Site

__all__ = ["install"]

_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404


def _local(request: web.Request) -> bool:
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def install(app: web.Application, service: Service, site: Site, default_key: str) -> None:
    """Add the routes to an application."""

    def guarded(
        answer: Callable[[web.Request], Awaitable[web.Response]],
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            if not _local(request):
                return site.persona.error(_NOT_FOUND)
            try:
                return await answer(request)
            except RefusedError as refused:
                return site.persona.error(refused.status, refused.message)

        return handle

    async def account(request: web.Request) -> web.Response:
        key = site.persona.key(request.headers.get("Authorization", "")) or default_key
        found = service.accounts.get(key)
        if found is None:
            raise RefusedError(_NOT_FOUND, "No such account")
        now = service.clock.now()
        return reply(
            {
                "now": now,
                "balance": float(found.balance(now)),
                "running": found.running(now),
                "peak_running": found.peak,
                "requests": dict(service.counts),
                "leaks": len(service.leaks),
                "charges": [
                    {
                        "prediction_id": charge.prediction_id,
                        "model": charge.model,
                        "amount": float(charge.amount),
                        "at": nanoseconds(charge.at),
                        "refunded": charge.refunded,
                    }
                    for charge in (entry.charge() for entry in found.entries)
                ],
            }
        )

    async def rules(_: web.Request) -> web.Response:
        return reply(
            [
                {
                    "route": rule.route,
                    "fault": type(rule.fault).__name__,
                    "times": rule.times,
                    "after": rule.after,
                    "hits": rule.hits,
                }
                for rule in service.faults.rules
            ]
        )

    async def add(request: web.Request) -> web.Response:
        body = json_object(await request.read())
        arguments, times, after = body.get("args", {}), body.get("times", 1), body.get("after", 0)
        if (
            not isinstance(arguments, dict)
            or not (times is None or isinstance(times, int))
            or not isinstance(after, int)
        ):
            raise RefusedError(_BAD_REQUEST, "args is an object, times an integer or null, after an integer")
        try:
            fault = build(str(body.get("fault")), arguments)
            service.faults.add(str(body.get("route")), fault, times=times, after=after)
        except ValueError as error:
            raise RefusedError(_BAD_REQUEST, str(error)) from None
        return await rules(request)

    async def clear(request: web.Request) -> web.Response:
        service.faults.clear()
        return await rules(request)

    app.router.add_get("/__emulator__/account", guarded(account))
    app.router.add_get("/__emulator__/faults", guarded(rules))
    app.router.add_post("/__emulator__/faults", guarded(add))
    app.router.add_delete("/__emulator__/faults", guarded(clear))
