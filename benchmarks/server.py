"""A server that is lighter than any client: it accepts every job, and completes it when it was read, or after a time.

A bare asyncio protocol in a process of its own, on uvloop where that is installed, its replies made from templates. It
prints its port and serves until it is killed. It speaks what the clients need of WaveSpeed, with the list of
predictions, of fal's queue (`/fal/...`) and of Replicate (`/v1/...`). `/control` tells what was asked, and
`/control?reads=4&seconds=0` forgets all jobs and says when the next ones complete: at their k-th read, and not before
that age.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import cast
from urllib.parse import parse_qs

import attrs

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with contextlib.suppress(ImportError):
    import uvloop

    new_event_loop = uvloop.new_event_loop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
PREDICTION = (
    b'{"id":"%b","model":"kwaivgi/kling-v2.1-i2v-pro","outputs":[%b],'
    b'"urls":{"get":"https://service.example/api/v3/predictions/%b/result"},"has_nsfw_contents":[%b],'
    b'"status":"%b","created_at":"%b","error":"","executionTime":0,"timings":{"inference":0}}'
)
ENVELOPE = b'{"code":200,"message":"success","data":%b}'
OUTPUT = b'"https://outputs.example/%b.mp4"'
QUEUED = (
    b'{"status":"IN_QUEUE","request_id":"%b","queue_position":0,"response_url":"%b","status_url":"%b/status",'
    b'"cancel_url":"%b/cancel"}'
)
REPLICATE = (
    b'{"id":"%b","model":"kwaivgi/kling-v2.1","version":"hidden","status":"%b","input":{},"output":%b,"logs":"",'
    b'"error":null,"metrics":{},"created_at":"%b","started_at":null,"completed_at":null,'
    b'"urls":{"get":"https://service.example/v1/predictions/%b"}}'
)


@attrs.define(slots=True)
class Job:
    name: bytes
    created: bytes
    due: float
    reads: int = 0
    noticed: bool = False


@attrs.define
class Service:
    """What all connections share."""

    origin: bytes = b""
    reads_needed: int = 4
    seconds: float = 0.0
    jobs: list[Job] = attrs.Factory(list)
    times: list[float] = attrs.Factory(list)
    reads: int = 0
    pages: int = 0
    delays: float = 0.0

    def control(self, query: bytes) -> bytes:
        """Begin anew, if told how, and tell what was asked since the last time that was done."""
        asked = {
            "submits": len(self.jobs),
            "reads": self.reads,
            "pages": self.pages,
            "noticed": sum(job.noticed for job in self.jobs),
            "delay": self.delays / max(len(self.jobs), 1),
            "served": time.process_time(),
        }
        if query:
            wanted = parse_qs(query.decode())
            self.reads_needed, self.seconds = int(wanted["reads"][0]), float(wanted["seconds"][0])
            self.jobs, self.times, self.reads, self.pages, self.delays = [], [], 0, 0, 0.0
        return json.dumps(asked).encode()

    def submit(self) -> Job:
        now = datetime.now(UTC)
        name, created = b"%032x" % len(self.jobs), now.isoformat().encode()
        job = Job(name, created, time.monotonic() + self.seconds)
        self.jobs.append(job)
        self.times.append(now.timestamp())
        return job

    def look(self, job: Job) -> bool:
        """Whether it has ended; this is a read of it."""
        job.reads += 1
        late = time.monotonic() - job.due
        if late < 0 or job.reads < self.reads_needed:
            return False
        if not job.noticed:
            job.noticed = True
            self.delays += late
        return True

    def read(self, name: bytes) -> tuple[Job, bool]:
        self.reads += 1
        job = self.jobs[int(name, 16)]
        return job, self.look(job)

    def wavespeed(self, method: bytes, path: bytes, body: bytes) -> bytes:
        if method == b"GET":
            return ENVELOPE % record(*self.read(path.rsplit(b"/", 2)[-2]))
        if path == b"/api/v3/predictions":
            return ENVELOPE % self.page(json.loads(body))
        return ENVELOPE % record(self.submit(), ended=False)

    def page(self, asked: dict[str, object]) -> bytes:
        """A page of the list, the newest first."""
        self.reads += 1
        self.pages += 1
        number, size = int(str(asked["page"])), int(str(asked["page_size"]))
        before = asked.get("created_before")
        last = len(self.jobs)
        if before:
            last = bisect.bisect_left(self.times, datetime.fromisoformat(str(before)).timestamp())
        last = max(last - size * (number - 1), 0)
        items = (record(job, self.look(job)) for job in reversed(self.jobs[max(last - size, 0) : last]))
        return b'{"page":%d,"items":[%b]}' % (number, b",".join(items))

    def fal(self, method: bytes, path: bytes, _body: bytes) -> bytes:
        if method == b"POST":
            name = self.submit().name
            url = b"%b%b/requests/%b" % (self.origin, path, name)
            return QUEUED % (name, url, url, url)
        path = path.partition(b"?")[0]
        if path.endswith(b"/status"):
            _, ended = self.read(path.rsplit(b"/", 2)[-2])
            return b'{"status":"%b","logs":null,"metrics":{}}' % (b"COMPLETED" if ended else b"IN_PROGRESS")
        self.reads += 1
        return b'{"video":{"url":%b}}' % (OUTPUT % path.rsplit(b"/", 1)[-1])

    def replicate(self, method: bytes, path: bytes, _body: bytes) -> bytes:
        job, ended = (self.submit(), False) if method == b"POST" else self.read(path.rsplit(b"/", 1)[-1])
        status, output = (b"succeeded", OUTPUT % job.name) if ended else (b"processing", b"null")
        return REPLICATE % (job.name, status, output, job.created, job.name)

    def answer(self, method: bytes, path: bytes, body: bytes) -> bytes:
        speak: Callable[[bytes, bytes, bytes], bytes]
        if path.startswith(b"/api/v3/"):
            speak = self.wavespeed
        elif path.startswith(b"/fal/"):
            speak = self.fal
        elif path.startswith(b"/v1/"):
            speak = self.replicate
        else:
            return self.control(path.partition(b"?")[2])
        return speak(method, path, body)


def record(job: Job, ended: bool) -> bytes:  # noqa: FBT001 -- what a look told
    status = b"completed" if ended else b"processing" if job.reads else b"created"
    output, nsfw = (OUTPUT % job.name, b"false") if ended else (b"", b"")
    return PREDICTION % (job.name, output, job.name, nsfw, status, job.created)


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no instance of it.
        self.transport = cast("asyncio.Transport", transport)

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
            body = self.service.answer(method, path, rest[:length])
            self.transport.write(HEAD % (len(body), body))


async def main() -> None:
    service = Service()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(service), "127.0.0.1", 0, backlog=1000)
    port = server.sockets[0].getsockname()[1]
    service.origin = b"http://127.0.0.1:%d" % port
    print(port, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
