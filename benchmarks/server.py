"""A server that is lighter than any client: it accepts every job, and completes it at its k-th read.

A bare asyncio protocol in a process of its own. It prints its port and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys


class Service(asyncio.Protocol):
    """One connection."""

    reads_needed = 4
    reads: dict[str, int] = {}  # noqa: RUF012 -- shared by all connections on purpose

    def __init__(self) -> None:
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while True:
            head, end, rest = self.pending.partition(b"\r\n\r\n")
            if not end:
                return
            length = 0
            lowered = head.lower()
            at = lowered.find(b"\r\ncontent-length:")
            if at >= 0:
                length = int(lowered[at + 17 :].partition(b"\r\n")[0])
            if len(rest) < length:
                return
            self.pending = rest[length:]
            method, path, _ = head.partition(b"\r\n")[0].split(b" ", 2)
            body = json.dumps(self.answer(method, path.decode())).encode()
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )

    def answer(self, method: bytes, path: str) -> dict[str, object]:
        if method == b"POST":
            name = f"{len(self.reads):032x}"
            self.reads[name] = 0
            return envelope(name, "created", [])
        name = path.rsplit("/", 2)[-2]
        self.reads[name] += 1
        if self.reads[name] < self.reads_needed:
            return envelope(name, "processing", [])
        return envelope(name, "completed", [f"https://outputs.example/{name}.mp4"])


def envelope(name: str, status: str, outputs: list[str]) -> dict[str, object]:
    return {
        "code": 200,
        "message": "success",
        "data": {
            "id": name,
            "model": "kwaivgi/kling-v2.1-i2v-pro",
            "outputs": outputs,
            "urls": {"get": f"http://127.0.0.1/api/v3/predictions/{name}/result"},
            "has_nsfw_contents": [False] if outputs else [],
            "status": status,
            "created_at": "2025-09-25T09:12:48.239112031Z",
            "error": "",
            "executionTime": 0,
            "timings": {"inference": 0},
        },
    }


async def main() -> None:
    Service.reads_needed = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
