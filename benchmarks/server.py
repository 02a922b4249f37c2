"""A server that uses less CPU than any client: it accepts every job and completes it after some reads or some time.

A bare asyncio protocol in a process of its own, on uvloop if installed, with responses made from templates. It prints
its port and serves until it is killed. It implements the parts that the clients need of WaveSpeed (with the list of
predictions), of fal's queue (`/fal/...`) and of Replicate (`/v1/...`). `/control` returns the counts;
`/control?reads=4&seconds=0` also resets them, removes all jobs and sets when new ones complete: at their k-th read, and
not before that age.
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
    """A job; `due` is the earliest time of its end, in seconds of `time.monotonic`."""

    name: bytes
    created: bytes
    due: float
    reads: int = 0
    noticed: bool = False


@attrs.define
class Service:
    """State shared by all connections."""

    origin: bytes = b""
    reads_needed: int = 4
    seconds: float = 0.0
    jobs: list[Job] = attrs.Factory(list)
    times: list[float] = attrs.Factory(list)
    reads: int = 0
    pages: int = 0
    total_delay: float = 0.0

    def control(self, query: bytes) -> bytes:
        """Return the counts since the last reset; with a query, reset them and set when jobs complete."""
        counts = {
            "submits": len(self.jobs),
            "reads": self.reads,
            "pages": self.pages,
            "noticed": sum(job.noticed for job in self.jobs),
            "delay": self.total_delay / max(len(self.jobs), 1),
            "served": time.process_time(),
        }
        if query:
            settings = parse_qs(query.decode())
            self.reads_needed, self.seconds = int(settings["reads"][0]), float(settings["seconds"][0])
            self.jobs, self.times, self.reads, self.pages, self.total_delay = [], [], 0, 0, 0.0
        return json.dumps(counts).encode()

    def submit(self) -> Job:
        now = datetime.now(UTC)
        name, created = b"%032x" % len(self.jobs), now.isoformat().encode()
        job = Job(name, created, time.monotonic() + self.seconds)
        self.jobs.append(job)
        self.times.append(now.timestamp())
        return job

    def count_read(self, job: Job) -> bool:
        """Count a read of the job and return whether it has ended."""
        job.reads += 1
        delay = time.monotonic() - job.due
        if delay < 0 or job.reads < self.reads_needed:
            return False
        if not job.noticed:
            job.noticed = True
            self.total_delay += delay
        return True

    def read(self, name: bytes) -> tuple[Job, bool]:
        self.reads += 1
        job = self.jobs[int(name, 16)]
        return job, self.count_read(job)

    def wavespeed(self, method: bytes, path: bytes, body: bytes) -> bytes:
        if method == b"GET":
            return ENVELOPE % prediction(*self.read(path.rsplit(b"/", 2)[-2]))
        if path == b"/api/v3/predictions":
            return ENVELOPE % self.page(json.loads(body))
        return ENVELOPE % prediction(self.submit(), ended=False)

    def page(self, query: dict[str, object]) -> bytes:
        """Return a page of the list, newest first."""
        self.reads += 1
        self.pages += 1
        number, size = int(str(query["page"])), int(str(query["page_size"]))
        before = query.get("created_before")
        last = len(self.jobs)
        if before:
            last = bisect.bisect_left(self.times, datetime.fromisoformat(str(before)).timestamp())
        last = max(last - size * (number - 1), 0)
        items = (prediction(job, self.count_read(job)) for job in reversed(self.jobs[max(last - size, 0) : last]))
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

    def respond(self, method: bytes, path: bytes, body: bytes) -> bytes:
        """Return the body of the response to a request."""
        handle: Callable[[bytes, bytes, bytes], bytes]
        if path.startswith(b"/api/v3/"):
            handle = self.wavespeed
        elif path.startswith(b"/fal/"):
            handle = self.fal
        elif path.startswith(b"/v1/"):
            handle = self.replicate
        else:
            return self.control(path.partition(b"?")[2])
        return handle(method, path, body)


def prediction(job: Job, ended: bool) -> bytes:  # noqa: FBT001 -- result of `count_read`
    status = b"completed" if ended else b"processing" if job.reads else b"created"
    output, nsfw = (OUTPUT % job.name, b"false") if ended else (b"", b"")
    return PREDICTION % (job.name, output, job.name, nsfw, status, job.created)


class Connection(asyncio.Protocol):
    """A connection; requests may be pipelined."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of `asyncio.Transport`.
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
            body = self.service.respond(method, path, rest[:length])
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
