"""Signed deliveries, retries, duplicates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import pytest
from aiohttp import web

from kling_async.emulator import faults
from kling_async.emulator.webhooks import signature

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


def test_signatures() -> None:
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
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.query = ""

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.answers.pop(0) if self.answers else 200)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    box = Receiver()
    app = web.Application()
    app.router.add_post("/hook", box.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    box.query = f"?webhook=http%3A%2F%2F127.0.0.1%3A{runner.addresses[0][1]}%2Fhook"
    yield box
    await runner.cleanup()


async def quiet(emu: Emulator, count: int) -> None:
    """Deliveries run over real sockets, in real time."""
    with anyio.fail_after(10):
        while len(emu.deliveries) < count:  # noqa: ASYNC110 - the emulator has no event for it
            await anyio.sleep(0.001)


async def test_a_delivery(api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver) -> None:
    prediction = (await api.submit(image=image, query=receiver.query)).data
    assert str(emu.predictions()[0].webhook).endswith("/hook")
    await clock.advance(59)
    assert receiver.got == []
    await clock.advance(1)
    await quiet(emu, 1)
    [(headers, raw)] = receiver.got
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
    assert len(receiver.got) == 1
    assert emu._webhooks.pending == 0


async def test_retries_grow_and_end(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    receiver.answers = [500, 404, 301, 503, 200]
    await api.submit(image=image, query=receiver.query)
    await clock.advance(60)
    await quiet(emu, 1)
    for count, seconds in ((2, 10), (3, 20), (4, 40)):
        await clock.advance(seconds - 1)
        assert len(emu.deliveries) == count - 1
        await clock.advance(1)
        await quiet(emu, count)
    await clock.advance(10_000)
    assert [delivery.status for delivery in emu.deliveries] == [500, 404, 301, 503]
    assert [delivery.attempt for delivery in emu.deliveries] == [1, 2, 3, 4]
    assert emu._webhooks.pending == 0


async def test_nobody_there_and_lost_and_twice(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    emu.faults.add("webhook", faults.Drop())
    emu.faults.add("webhook", faults.Duplicate(), after=1)
    await api.submit(image=image, query=receiver.query)
    await clock.advance(60)
    await quiet(emu, 1)
    assert (receiver.got, emu.deliveries[0].status) == ([], None)
    await clock.advance(10)
    await quiet(emu, 2)
    assert len(receiver.got) == 2
    assert receiver.got[0][1] == receiver.got[1][1]
    await api.submit(image=image, query="?webhook=http://127.0.0.1:9/hook")
    await clock.advance(60)
    await quiet(emu, 3)
    assert emu.deliveries[-1].status is None


async def test_failures_are_told_and_deletions_are_not(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    await api.submit(image="data:,", query=receiver.query)
    gone = (await api.submit(image=image, query=receiver.query)).data["id"]
    await api.call("DELETE", f"/api/v3/predictions/{gone}")
    await clock.advance(60)
    await quiet(emu, 1)
    [(_, raw)] = receiver.got
    assert (json.loads(raw)["status"], json.loads(raw)["code"]) == ("failed", 1401)
    assert emu._webhooks.pending == 0


async def test_webhooks_that_are_refused(api: Api, image: str) -> None:
    for query in ("?webhook=", "?webhook=hook", "?webhook=ftp://a/b", "?webhook=http://[x"):
        assert (await api.submit(image=image, query=query)).status == 400
    reply = await api.submit(image=image, query="?webhook=https://a.b/c", enable_base64_output=True)
    assert reply.status == 400
    assert reply.body["error"].startswith("webhook callback does not support base64 output")


async def test_a_delivery_in_an_envelope(
    api: Api, emu: Emulator, clock: ManualClock, image: str, receiver: Receiver
) -> None:
    emu.faults.add("webhook", faults.Enveloped())
    prediction = (await api.submit(image=image, query=receiver.query)).data
    await clock.advance(60)
    await quiet(emu, 1)
    body = json.loads(receiver.got[0][1])
    assert (body["code"], body["data"]["id"]) == (200, prediction["id"])
