"""Signed webhook deliveries, retries and duplicates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import pytest
from aiohttp import web

from kling_async.emulator import faults
from kling_async.emulator.webhooks import signature
from support.patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from emulator.conftest import Api

    from kling_async.emulator import Emulator, ManualClock

pytestmark = pytest.mark.anyio

SAMPLE = (
    '{"id":"45b392b22c3b449fa935bd4dc","model":"wavespeed-ai/flux-dev","outputs":["https://d2p7pge43lyniu.cloudfront.net'
    '/output/18058184-5df8-4d05-9e1b-7ad84c8b963e-u1_9bfd4537-e541-4ad0-a0f6-4812b11a37f1.jpeg"],"urls":{"get":'
    '"https://api.wavespeed.ai/api/v3/predictions/45b392b22c3b449fa935bd4dc2219dfe/result"},"has_nsfw_contents":[false],'
    '"status":"completed","created_at":"2025-09-25T09:12:48.239112031Z","error":"","executionTime":6710,'
    '"timings":{"inference":6710}}'
)


def test_signature_matches_vendor_samples() -> None:
    secret = "whsec_e9EE3BdyXSxcB4ZyZUKjQUEoQX4sF9P1+eMpb/KluCM="
    assert len(SAMPLE) == 464
    for at, expected in (
        (1758798328, "7a32ef7ef2c0cc05dbf74c9456add530c638730d40b36ecbce282a4251feaba7"),
        (1758802746, "f8b7bf9947e6c9eae9009baa626b1a91202e0103bce66fbcc516195b6a20c7d9"),
    ):
        assert signature(secret, "45b392b22c3b449fa935bd4dc", at, SAMPLE.encode()) == f"v3,{expected}"
    body = b'{"id":"abc","status":"completed"}'
    expected = "v3,e8372ddd525edf7672849ea82429e819d69cf30a1665a1e6d5b3648202021c53"
    assert signature("whsec_test_secret", "abc", 1700000000, body) == expected


class Receiver:
    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.query = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.received.append((dict(request.headers), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.query = f"?webhook=http%3A%2F%2F127.0.0.1%3A{runner.addresses[0][1]}%2Fhook"
    yield receiver
    await runner.cleanup()


async def wait_for_deliveries(emu: Emulator, count: int) -> None:
    """Wait in real time: deliveries run over real sockets."""
    with anyio.fail_after(PATIENCE_S):
        while len(emu.deliveries) < count:  # noqa: ASYNC110 -- the emulator has no event for it
            await anyio.sleep(0.001)


async def test_delivery_is_signed_and_sent_once(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    prediction = (await api.submit(image=image, query=receiver.query)).data
    assert str(emu.predictions()[0].webhook).endswith("/hook")
    await clock.advance(59)
    assert receiver.received == []
    await clock.advance(1)
    await wait_for_deliveries(emu, 1)
    [(headers, raw)] = receiver.received
    body = json.loads(raw)
    assert body.pop("input")["prompt"] == "a cat"
    assert body == (await api.result(prediction["id"])).data
    secret = (await api.call("GET", "/api/v3/webhook/secret")).data["secret"]
    assert secret == emu.webhook_secret()
    assert secret.startswith("whsec_")
    at = int(headers["webhook-timestamp"])
    assert at == int(clock.now())
    assert headers["webhook-signature"] == signature(secret, headers["webhook-id"], at, raw)
    assert headers["Content-Type"] == "application/json"
    await clock.advance(1000)
    assert len(receiver.received) == 1
    assert emu._webhooks.pending == 0


async def test_failed_delivery_is_retried_with_backoff(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    receiver.statuses = [500, 404, 301, 503, 200]
    await api.submit(image=image, query=receiver.query)
    await clock.advance(60)
    await wait_for_deliveries(emu, 1)
    for count, seconds in ((2, 10), (3, 20), (4, 40)):
        await clock.advance(seconds - 1)
        assert len(emu.deliveries) == count - 1
        await clock.advance(1)
        await wait_for_deliveries(emu, count)
    await clock.advance(10_000)
    assert [delivery.status for delivery in emu.deliveries] == [500, 404, 301, 503]
    assert [delivery.attempt for delivery in emu.deliveries] == [1, 2, 3, 4]
    assert emu._webhooks.pending == 0


async def test_lost_duplicate_and_unreachable_deliveries(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    emu.faults.add("webhook", faults.Drop())
    emu.faults.add("webhook", faults.Duplicate(), after=1)
    await api.submit(image=image, query=receiver.query)
    await clock.advance(60)
    await wait_for_deliveries(emu, 1)
    assert (receiver.received, emu.deliveries[0].status) == ([], None)
    await clock.advance(10)
    await wait_for_deliveries(emu, 2)
    assert len(receiver.received) == 2
    assert receiver.received[0][1] == receiver.received[1][1]
    await api.submit(image=image, query="?webhook=http://127.0.0.1:9/hook")
    await clock.advance(60)
    await wait_for_deliveries(emu, 3)
    assert emu.deliveries[-1].status is None


async def test_failures_are_delivered_and_deletions_are_not(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    await api.submit(image="data:,", query=receiver.query)
    deleted = (await api.submit(image=image, query=receiver.query)).data["id"]
    await api.call("DELETE", f"/api/v3/predictions/{deleted}")
    await clock.advance(60)
    await wait_for_deliveries(emu, 1)
    [(_, raw)] = receiver.received
    assert (json.loads(raw)["status"], json.loads(raw)["code"]) == ("failed", 1401)
    assert emu._webhooks.pending == 0


async def test_submit_refuses_invalid_webhooks(api: Api, image: str) -> None:
    for query in ("?webhook=", "?webhook=hook", "?webhook=ftp://a/b", "?webhook=http://[x"):
        assert (await api.submit(image=image, query=query)).status == 400
    reply = await api.submit(image=image, query="?webhook=https://a.b/c", enable_base64_output=True)
    assert reply.status == 400
    assert reply.body["error"].startswith("webhook callback does not support base64 output")


async def test_enveloped_delivery_wraps_the_body(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    emu.faults.add("webhook", faults.Enveloped())
    prediction = (await api.submit(image=image, query=receiver.query)).data
    await clock.advance(60)
    await wait_for_deliveries(emu, 1)
    body = json.loads(receiver.received[0][1])
    assert (body["code"], body["data"]["id"]) == (200, prediction["id"])
