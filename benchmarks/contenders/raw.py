"""Upper limit for Python: an asyncio protocol per slot, prepared bytes, no tasks; polls without a pause."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

from contenders import KEY, Load, arguments

POST = (
    "POST /api/v3/kwaivgi/kling-v2.1-i2v-pro HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)
GET = "GET /api/v3/predictions/{id}/result HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n"


class Slot(asyncio.Protocol):
    """A connection that runs one job after another."""

    def __init__(self, numbers: Iterator[int], host: str) -> None:
        self.numbers = numbers
        self.host = host
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.pending = b""
        self.done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.submit()

    def submit(self) -> None:
        number = next(self.numbers, None)
        if number is None:
            self.transport.close()
            self.ended.set_result(self.done)
            return
        body = json.dumps(arguments(number))
        self.transport.write((POST.format(host=self.host, key=KEY, length=len(body)) + body).encode())

    def data_received(self, data: bytes) -> None:
        self.pending += data
        head, end, body = self.pending.partition(b"\r\n\r\n")
        if not end:
            return
        if len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        self.pending = b""
        prediction = json.loads(body)["data"]
        if prediction["status"] == "completed":
            self.done += bool(prediction["outputs"][0])
            self.submit()
        else:
            self.transport.write(GET.format(id=prediction["id"], host=self.host, key=KEY).encode())


async def work(load: Load) -> None:
    assert not load.interval, "interval: expected 0, this client does not wait"
    loop = asyncio.get_running_loop()
    url = urlsplit(load.url)
    assert url.hostname is not None
    numbers = iter(range(load.jobs))
    slots = [
        (await loop.create_connection(lambda: Slot(numbers, url.netloc), url.hostname, url.port or 80))[1]
        for _ in range(load.running)
    ]
    assert sum(await asyncio.gather(*(slot.ended for slot in slots))) == load.jobs


def run(load: Load) -> None:
    asyncio.run(work(load))
