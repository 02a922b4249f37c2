"""Webhooks of the service: verified, read, handed over. No session is needed, and no framework.

::

    verifier = WebhookVerifier(await kling.webhook_secret())
    receiver = WebhookReceiver(verifier, deliver)
    app.router.add_route("*", "/hooks/kling", aiohttp_handler(receiver))  # aiohttp
    app.mount("/hooks/kling", asgi_app(receiver))  # Starlette, FastAPI; or by itself under any ASGI server

The URL that the service is given ends in a slash where it is mounted: frameworks redirect to that, and whether the
service follows is not known.

Nothing of a body is parsed, logged or handed over before its signature was found good. A webhook is late, twice or lost
at times: it wakes whoever waits, and reading the prediction stays the safety net.

Which job a prediction belongs to is told by a **token** in the URL that was given with the submit (`url_with`). It
correlates and never authenticates: the signature does not cover it, and whoever has it can do nothing with it. Only its
digest (`token_hash`) is to be kept.

**Several processes.** What a receiver remembers, so that a delivery is taken once, is its own process's; and `deliver`
runs in the process that received. Sessions that share a PostgreSQL ledger tell each other what was delivered to one
of them, so that any may receive for all. The SQLite ledger has one writer: there, receive in the process of the
session, or let the reading find it.
"""

from __future__ import annotations

from kling_async.errors import WebhookRefusal, WebhookRefusedError

from .receiver import Delivery, WebhookReceiver, parse
from .servers import aiohttp_handler, asgi_app
from .tokens import TOKEN_PARAMETER, HideTokens, new_token, token_hash, url_with
from .verifier import Verified, WebhookVerifier, verify

__all__ = [
    "TOKEN_PARAMETER",
    "Delivery",
    "HideTokens",
    "Verified",
    "WebhookReceiver",
    "WebhookRefusal",
    "WebhookRefusedError",
    "WebhookVerifier",
    "aiohttp_handler",
    "asgi_app",
    "new_token",
    "parse",
    "token_hash",
    "url_with",
    "verify",
]
