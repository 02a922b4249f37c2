"""Webhooks of the service: verify, parse and deliver them. Needs neither a session nor a web framework.

::

    verifier = WebhookVerifier(await kling.webhook_secret())
    receiver = WebhookReceiver(verifier, deliver)
    app.router.add_route("*", "/hooks/kling", aiohttp_handler(receiver))  # aiohttp
    app.mount("/hooks/kling", asgi_app(receiver))  # Starlette, FastAPI; or by itself under any ASGI server

Where the receiver is mounted, give the service the URL with a final slash: frameworks redirect to that, and it is not
known whether the service follows redirects.

Nothing of a body is parsed, logged or delivered before its signature is verified. Webhooks can be late, duplicated or
lost: they make results arrive sooner, while polling remains the safety net.

A **token** in the webhook URL of a submit (`url_with`) names the job that a prediction belongs to. It correlates and
does not authenticate: the signature does not cover it, and it gives no access. Store only its digest (`token_hash`).

**Several processes.** To drop duplicates, a receiver remembers deliveries within its own process; `deliver` runs in the
process that received. Sessions that share a PostgreSQL ledger forward deliveries to each other, so any of them may
receive for all. The SQLite ledger has a single writer: receive in the process of the session, or rely on polling.
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
