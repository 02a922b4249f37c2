"""Webhooks over real sockets: the receiver on aiohttp and uvicorn, with the emulator and hostile clients as senders."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import attrs
import pytest
import uvicorn
from aiohttp import web

from kling_async import Job, Status, WaveSpeed, WebhookRefusal
from kling_async.emulator import Emulator, faults
from kling_async.emulator.accounts import Account
from kling_async.webhooks import (
    TOKEN_PARAMETER,
    Delivery,
    WebhookReceiver,
    WebhookVerifier,
    aiohttp_handler,
    asgi_app,
    new_token,
    token_hash,
    url_with,
)
from support.patience import PATIENCE_S
from support.webhooks import body_of, signed

pytestmark = pytest.mark.anyio

SECRET = "whsec_e9EE3BdyXSxcB4ZyZUKjQUEoQX4sF9P1+eMpb/KluCM="
CAP = 4096
IMAGE = "https://pictures.example/face.png"


@attrs.define
class Inbox:
    """Deliveries received; `troubles` are raised first."""

    got: list[Delivery] = attrs.field(factory=list)
    troubles: list[Exception] = attrs.field(factory=list)

    async def deliver(self, delivery: Delivery) -> None:
        await anyio.lowlevel.checkpoint()
        if self.troubles:
            raise self.troubles.pop()
        self.got.append(delivery)

    async def expect(self, count: int) -> None:
        with anyio.fail_after(PATIENCE_S):
            while len(self.got) < count:  # noqa: ASYNC110 -- deliveries arrive over sockets
                await anyio.sleep(0.005)


@contextlib.asynccontextmanager
async def on_aiohttp(receiver: WebhookReceiver) -> AsyncIterator[str]:
    app = web.Application(client_max_size=10)
    app.router.add_route("*", "/hooks/kling", aiohttp_handler(receiver))
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/kling"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def on_uvicorn(receiver: WebhookReceiver) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # `lifespan="on"` requires an application that handles lifespan messages.
        config = uvicorn.Config(
            asgi_app(receiver), log_config=None, lifespan="on", ws="none", http="h11", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        with anyio.fail_after(PATIENCE_S):
            while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
                await anyio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/hooks/kling"
        finally:
            server.should_exit = True
            await serving


Server = Callable[[WebhookReceiver], contextlib.AbstractAsyncContextManager[str]]


@pytest.fixture(params=[on_aiohttp, on_uvicorn], ids=["aiohttp", "asgi"])
def server(request: pytest.FixtureRequest) -> Server:
    serve: Server = request.param
    return serve


# ---- valid and hostile requests ----


@attrs.define
class Mail:
    """Builder of requests; each method makes one kind."""

    now: float
    rng: random.Random

    def good(self, number: int) -> tuple[bytes, dict[str, str]]:
        return self._signed(f"good-{number}")

    def forged(self, number: int) -> tuple[bytes, dict[str, str]]:
        return self._signed(f"evil-{number}", secret="whsec_guess")

    def tampered(self, number: int) -> tuple[bytes, dict[str, str]]:
        _, headers = self.good(number)
        return body_of(f"good-{number}", outputs=["https://evil.example/a.mp4"]), headers

    def moved(self, number: int) -> tuple[bytes, dict[str, str]]:
        body, headers = self.good(number)
        return body, headers | {"webhook-id": f"evil-{number}"}

    def stale(self, number: int) -> tuple[bytes, dict[str, str]]:
        return self._signed(f"old-{number}", off=3700 * (-1) ** number)

    def renewed(self, number: int) -> tuple[bytes, dict[str, str]]:
        body, headers = self.stale(number)
        return body, headers | {"webhook-timestamp": str(int(self.now))}

    def oversized(self, number: int) -> tuple[bytes, dict[str, str]]:
        return self._signed(f"large-{number}", error="x" * CAP)

    def unreadable(self, number: int) -> tuple[bytes, dict[str, str]]:
        body = self.rng.randbytes(self.rng.randrange(200))
        return body, signed(SECRET, body, webhook_id=f"noise-{number}", at=self.now)

    def unsigned(self, number: int) -> tuple[bytes, dict[str, str]]:
        return body_of(f"bare-{number}"), {"webhook-id": f"bare-{number}"}

    def malformed(self, number: int) -> tuple[bytes, dict[str, str]]:
        body, headers = self.good(number)
        name = self.rng.choice(sorted(headers))
        return body, headers | {name: self.rng.choice(["", "a b", "\u00e4", "v3.x v3.y"])}

    def _signed(
        self, id_: str, *, secret: str = SECRET, off: float = 0, **fields: object
    ) -> tuple[bytes, dict[str, str]]:
        body = body_of(id_, **fields)
        return body, signed(secret, body, webhook_id=id_, at=self.now + off)


STATUSES = {
    "forged": 401, "tampered": 401, "moved": 401, "stale": 401, "renewed": 401, "oversized": 413, "unreadable": 400,
    "unsigned": 401, "malformed": 400,
}  # fmt: skip


def mixed_requests(now: float) -> list[tuple[str, bytes, dict[str, str], str]]:
    """Return 200 valid requests among 1,000 bad ones in random order, each replay after its original."""
    mail = Mail(now, random.Random(5))
    traffic = [(kind, *getattr(mail, kind)(number), "POST") for kind in STATUSES for number in range(100)]
    traffic += [("wrong verb", *mail.good(number), mail.rng.choice(["GET", "PUT", "DELETE"])) for number in range(20)]
    traffic += [("good", *mail.good(number), "POST") for number in range(200)]
    mail.rng.shuffle(traffic)
    for number in range(80):
        body, headers = mail.good(number)
        place = traffic.index(("good", body, headers, "POST"))
        traffic.insert(mail.rng.randrange(place + 1, len(traffic) + 1), ("replay", body, headers, "POST"))
    return traffic


async def test_valid_webhooks_are_delivered_among_hostile_ones(server: Server) -> None:
    inbox = Inbox()
    receiver = WebhookReceiver(WebhookVerifier(SECRET, tolerance=3600), inbox.deliver, max_body=CAP)
    traffic = mixed_requests(time.time())
    assert Counter(kind == "good" for kind, *_ in traffic) == {False: 1000, True: 200}
    answers: Counter[tuple[str, int]] = Counter()
    async with server(receiver) as url, aiohttp.ClientSession() as http:
        waiting = iter(traffic)

        async def send() -> None:
            for kind, body, headers, method in waiting:
                async with http.request(method, url, data=body, headers=headers) as response:
                    await response.read()
                    answers[kind, response.status] += 1

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(send)

    assert Counter(delivery.prediction.id for delivery in inbox.got) == {f"good-{number}": 1 for number in range(200)}
    assert {delivery.prediction.output for delivery in inbox.got} == {"https://outputs.example/a.mp4"}
    # The original of a replay may still be in progress.
    replays = {status: answers.pop(("replay", status), 0) for status in (200, 409)}
    assert sum(replays.values()) == 80
    expected = dict.fromkeys(STATUSES.items(), 100)
    assert answers == expected | {("good", 200): 200, ("wrong verb", 405): 20}
    assert (receiver.taken, receiver.failed) == (200, 0)
    assert receiver.refused.total() == 900 + replays[200]


async def test_405_has_allow_header(server: Server) -> None:
    receiver = WebhookReceiver(WebhookVerifier(SECRET), Inbox().deliver)
    async with server(receiver) as url, aiohttp.ClientSession() as http, http.get(url) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = asgi_app(WebhookReceiver(WebhookVerifier(SECRET), Inbox().deliver))
    await app({"type": "websocket", "path": "/hooks/kling", "query_string": b"", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# ---- broken connections ----


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    match = re.fullmatch(r"http://([\d.]+):(\d+)/.*", url)
    assert match
    reader, writer = await asyncio.open_connection(match[1], int(match[2]))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def head(body: bytes, length: str) -> bytes:
    headers = signed(SECRET, body, at=time.time())
    lines = ["POST /hooks/kling HTTP/1.1", "Host: x", length, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def status_of(reader: asyncio.StreamReader) -> int:
    with anyio.fail_after(PATIENCE_S):
        return int((await reader.readline()).split()[1])


async def test_endless_body_is_refused_at_limit(server: Server) -> None:
    """With chunked encoding no header gives the length."""
    inbox = Inbox()
    receiver = WebhookReceiver(WebhookVerifier(SECRET), inbox.deliver, max_body=CAP)
    async with server(receiver) as url, connected(url) as (reader, writer):
        writer.write(head(b"", "Transfer-Encoding: chunked"))
        for _ in range(CAP // 1024 + 1):
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        await writer.drain()
        assert await status_of(reader) == 413
    assert receiver.refused == {WebhookRefusal.TOO_LARGE: 1}
    assert not inbox.got


async def test_chunked_body_is_accepted(server: Server) -> None:
    inbox = Inbox()
    body = body_of("p1")
    async with (
        server(WebhookReceiver(WebhookVerifier(SECRET), inbox.deliver)) as url,
        connected(url) as (reader, writer),
    ):
        writer.write(head(body, "Transfer-Encoding: chunked"))
        for start in range(0, len(body), 7):
            piece = body[start : start + 7]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        assert await status_of(reader) == 200
    assert len(inbox.got) == 1


async def test_stalled_body_times_out(server: Server) -> None:
    receiver = WebhookReceiver(WebhookVerifier(SECRET), Inbox().deliver, patience=0.05)
    async with server(receiver) as url, connected(url) as (reader, writer):
        writer.write(head(b"", "Content-Length: 100"))
        assert await status_of(reader) == 408
    assert receiver.refused == {WebhookRefusal.TOO_SLOW: 1}


async def test_broken_connection_leaves_no_trace(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox()
    body = body_of("p1")
    receiver = WebhookReceiver(WebhookVerifier(SECRET), inbox.deliver)
    async with server(receiver) as url:
        for cut in (0, 10, len(body) - 1):
            async with connected(url) as (_, writer):
                writer.write(head(body, f"Content-Length: {len(body)}") + body[:cut])
                await writer.drain()
        async with connected(url) as (reader, writer):
            writer.write(head(body, f"Content-Length: {len(body)}") + body)
            assert await status_of(reader) == 200
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
        async with connected(url) as (reader, writer):
            writer.write(head(body, "Transfer-Encoding: chunked") + b"5\r\nab\r\nnonsense\r\n")
            assert await status_of(reader) == 400
    assert [delivery.prediction.id for delivery in inbox.got] == ["p1"]
    assert not receiver.refused


async def test_body_that_is_not_encoded_as_it_says_is_refused(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It is no failure of ours: aiohttp logs that it could not read the rest, and no "Error handling request"."""
    inbox = Inbox()
    receiver = WebhookReceiver(WebhookVerifier(SECRET), inbox.deliver)
    async with server(receiver) as url:
        for _ in range(5):
            async with connected(url) as (reader, writer):
                writer.write(head(b"abcde", "Content-Encoding: gzip\r\nContent-Length: 5") + b"abcde")
                assert 400 <= await status_of(reader) < 500
    assert not inbox.got
    assert not [record for record in caplog.records if record.getMessage().startswith("Error handling request")]


# ---- logs ----


async def test_access_logs_hide_token(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token, inbox = new_token(), Inbox()
    body = body_of("p1")
    async with server(WebhookReceiver(WebhookVerifier(SECRET), inbox.deliver)) as url, aiohttp.ClientSession() as http:
        for secret, status in ((SECRET, 200), ("whsec_wrong", 401)):
            headers = signed(secret, body, at=time.time())
            async with http.post(url_with(url, token), data=body, headers=headers) as response:
                assert response.status == status
    assert inbox.got[0].token_hash == token_hash(token)
    assert f"POST /hooks/kling?{TOKEN_PARAMETER}=*** HTTP/1.1" in caplog.text, "the access log is written"
    everything = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert token not in everything
    assert "webhook was refused: forged" in caplog.text
    assert "p1" not in "".join(record.getMessage() for record in caplog.records if "refused" in record.getMessage())


# ---- the service ----


async def submit(http: aiohttp.ClientSession, emulator: Emulator, webhook: str, **fields: Any) -> str:
    """Send a paid request as the provider builds it and return the prediction's id."""
    provider = WaveSpeed(api_key=emulator.api_key, base_url=emulator.base_url)
    job = Job(**{"prompt": "She turns", "image": IMAGE, **fields})
    request = provider.submit(job, IMAGE, None, webhook=webhook)
    headers = dict(request.headers)
    async with http.request(request.method, request.url, data=request.body, headers=headers) as response:
        reply = await response.json()
    return str(reply["data"]["id"])


def service() -> Emulator:
    # The tolerance is wide: at this speed a busy machine would make deliveries stale.
    return Emulator(speed=200, profile="tiny", level="gold", downloads=False, timing=10.0)


def receiver_of(emulator: Emulator, inbox: Inbox, secrets: Any = None) -> WebhookReceiver:
    verifier = WebhookVerifier(secrets or emulator.webhook_secret(), tolerance=10_000, clock=emulator.clock)
    return WebhookReceiver(verifier, inbox.deliver)


async def settled(emulator: Emulator, deliveries: int) -> None:
    with anyio.fail_after(PATIENCE_S):
        while len(emulator.deliveries) < deliveries or emulator._webhooks.pending:  # noqa: ASYNC110 -- over sockets
            await anyio.sleep(0.005)


async def test_each_prediction_is_delivered_with_its_token(server: Server) -> None:
    inbox = Inbox()
    async with service() as emulator, aiohttp.ClientSession() as http:
        receiver = receiver_of(emulator, inbox)
        async with server(receiver) as url:
            emulator.faults.add("webhook", faults.Enveloped(), times=5)
            emulator.faults.add("webhook", faults.Duplicate(), times=5)
            tokens = {}
            for number in range(20):
                token = new_token()
                fields = {"image": "https://pictures.example/none.png"} if number else {}
                tokens[token_hash(token)] = await submit(http, emulator, url_with(url, token), **fields)
            await inbox.expect(20)
            await settled(emulator, 20)
        assert {delivery.token_hash: delivery.prediction.id for delivery in inbox.got} == tokens
        assert len(inbox.got) == 20, "duplicates are delivered once"
        assert receiver.refused == {WebhookRefusal.REPLAYED: 5}
        assert {delivery.prediction.status for delivery in inbox.got} == {Status.COMPLETED}
        assert all(delivery.prediction.input for delivery in inbox.got)
        assert all(abs(delivery.sent_at - emulator.clock.now()) < 10_000 for delivery in inbox.got)
        assert [delivery.attempt for delivery in emulator.deliveries] == [1] * 20
        assert not emulator.leaks


async def test_lost_or_failed_delivery_is_retried(server: Server) -> None:
    inbox = Inbox(troubles=[OSError("disk full")])
    async with service() as emulator, aiohttp.ClientSession() as http:
        emulator.faults.add("webhook", faults.Drop())
        async with server(receiver_of(emulator, inbox)) as url:
            id_ = await submit(http, emulator, url)
            await inbox.expect(1)
            await settled(emulator, 3)
        assert [delivery.status for delivery in emulator.deliveries] == [None, 500, 200]
        assert [(delivery.prediction.id, delivery.token_hash) for delivery in inbox.got] == [(id_, None)]


async def test_secret_rotation_while_running(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox()
    async with service() as emulator, aiohttp.ClientSession() as http:
        old, new = emulator.webhook_secret(), "whsec_bmV3"
        verifier = WebhookVerifier(old, tolerance=10_000, clock=emulator.clock)
        async with server(WebhookReceiver(verifier, inbox.deliver)) as url:
            first = await submit(http, emulator, url)
            await inbox.expect(1)
            # The service signs with a secret that the receiver does not have yet: refused, then retried.
            monkeypatch.setattr(Account, "webhook_secret", new)
            second = await submit(http, emulator, url)
            with anyio.fail_after(PATIENCE_S):
                while len(emulator.deliveries) < 2:  # noqa: ASYNC110 -- over sockets
                    await anyio.sleep(0.001)
            verifier.rotate([old, new])
            await inbox.expect(2)
            # Signed with the old secret.
            monkeypatch.setattr(Account, "webhook_secret", old)
            third = await submit(http, emulator, url)
            await inbox.expect(3)
            await settled(emulator, 4)
        statuses = [delivery.status for delivery in emulator.deliveries]
        assert statuses[:2] == [200, 401]
        assert statuses[-1] == 200
        assert [delivery.prediction.id for delivery in inbox.got] == [first, second, third]


async def test_secret_of_other_account_is_refused(server: Server) -> None:
    inbox = Inbox()
    keys = ["wsk_first_account", "wsk_other_account"]
    async with Emulator(speed=500, profile="tiny", level="gold", downloads=False, timing=1.0, keys=keys) as emulator:
        receiver = receiver_of(emulator, inbox, emulator.webhook_secret(keys[1]))
        async with server(receiver) as url, aiohttp.ClientSession() as http:
            await submit(http, emulator, url)
            await settled(emulator, 4)
        assert [delivery.status for delivery in emulator.deliveries] == [401] * 4
        assert not inbox.got
        assert receiver.refused == {WebhookRefusal.FORGED: 4}
