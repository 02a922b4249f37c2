"""Example: a receiver of webhooks by itself, without a session.

`WEBHOOK_SECRET=whsec_... python -m kling_async.examples.webhooks` prints the id, status and output of every delivery
that is genuine and new. Put it behind your https address, and submit with `webhook_url=` of that address.
"""

from __future__ import annotations

import argparse
import os

from aiohttp import web

from kling_async.webhooks import Delivery, WebhookReceiver, WebhookVerifier, aiohttp_handler


async def deliver(delivery: Delivery) -> None:
    """Use a delivery: it is verified, and given once. After an exception the service delivers it again."""
    prediction = delivery.prediction
    print(prediction.id, prediction.status.value, prediction.output, flush=True)  # noqa: T201 -- addressed to the user


def application(secret: str) -> web.Application:
    """Return the application that receives at /hooks/kling."""
    app = web.Application()
    app.router.add_route("*", "/hooks/kling", aiohttp_handler(WebhookReceiver(WebhookVerifier(secret), deliver)))
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m kling_async.examples.webhooks")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    # From `await kling.webhook_secret()`, or the provider's dashboard.
    web.run_app(application(os.environ["WEBHOOK_SECRET"]), host="127.0.0.1", port=given.port)
