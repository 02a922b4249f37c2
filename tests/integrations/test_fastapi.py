"""A FastAPI application on a real uvicorn, over the emulator, from its clients' side."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import attrs
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kling_async import Job, KlingSession, Level, NoLimit, State, WatchPolicy, read_ledger
from kling_async.emulator import Call, Emulator, ManualClock, faults
from kling_async.integrations.fastapi import JobDesk, add_error_handlers, lifespan
from support.manual import running
from support.patience import PATIENCE_S
from support.pictures import png
from support.web import address, application, listening, served
from support.webhooks import body_of, signed

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::ResourceWarning")]

PICTURE = png()
URL = "https://pictures.example/face.png"


class NeverStarts:
    """Rate limiter that never grants a start."""

    async def acquire(self) -> None:
        await anyio.sleep_forever()


@attrs.define
class Site:
    """HTTP client of the application."""

    emulator: Emulator
    http: aiohttp.ClientSession
    url: str

    async def post(self, path: str, body: bytes = b"", **query: str) -> tuple[int, Any, dict[str, str]]:
        async with self.http.post(self.url + path, data=body, params=query) as response:
            return response.status, await response.json(content_type=None), dict(response.headers)

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.http.get(self.url + path) as response:
            return response.status, await response.json(content_type=None)

    async def ended(self, key: str) -> dict[str, Any]:
        with anyio.fail_after(PATIENCE_S):
            while True:
                _, status = await self.get(f"/videos/{key}")
                if status["state"] in {"completed", "failed", "uncertain"}:
                    return dict(status)
                await anyio.sleep(0.02)

    async def events(self, key: str, last: str | None = None) -> tuple[int, list[dict[str, str]]]:
        """Return the events of one connection, which the server ends."""
        headers = {"Last-Event-ID": last} if last else {}
        async with self.http.get(f"{self.url}/videos/{key}/events", headers=headers) as response:
            text = (await response.content.read()).decode()
        found = []
        for block in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                found.append(fields)
        return response.status, found


def opener(emulator: Emulator, **options: Any) -> Any:
    def session() -> KlingSession:
        return KlingSession(
            emulator.api_key,
            clock=emulator.clock,
            **{
                "base_url": emulator.base_url,
                "level": Level("test", 1_000_000, 1_000),
                "rate_limiter": NoLimit(),
                "watch": WatchPolicy.fixed(2.0),
                **options,
            },
        )

    return session


@asynccontextmanager
async def site(
    emulator: Emulator,
    *,
    queue: int = 1000,
    lasts: float = 60.0,
    at: socket.socket | None = None,
    webhooks: bool = False,
    **options: Any,
) -> AsyncIterator[Site]:
    app = application(opener(emulator, **options), desk=lambda: JobDesk(queue=queue), lasts=lasts, webhooks=webhooks)
    async with (
        served(app, at=at) as url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        yield Site(emulator, http, url)


@asynccontextmanager
async def emulated(**options: Any) -> AsyncIterator[Emulator]:
    options = {
        "level": "ultra",
        "profile": "tiny",
        "balance": 1e6,
        "timing": 20.0,
        "seed": 1,
        "downloads": False,
        **options,
    }
    if "clock" not in options:
        options.setdefault("speed", 60)
    async with Emulator(**options) as emulator:
        yield emulator


def arrival() -> tuple[anyio.Event, Callable[[Call], bool]]:
    """Return an event, and a condition for a fault that sets it at the first request."""
    event = anyio.Event()

    def when(_: Call) -> bool:
        event.set()
        return True

    return event, when


async def test_job_is_accepted_with_202_and_found_at_location() -> None:
    async with emulated() as emulator, site(emulator) as web:
        status, body, headers = await web.post("/videos", PICTURE, prompt="Waves")
        assert status == 202
        assert body["state"] == "waiting"
        assert headers["Location"] == f"{web.url}/videos/{body['key']}"
        end = await web.ended(body["key"])
        assert end["state"] == "completed"
        assert end["output"].endswith(".mp4")
        assert end["error"] is None
        assert (await web.get("/videos/other"))[0] == 404
        assert (await web.get("/videos/%00%ff"))[0] == 404
        (record,) = emulator.predictions()
        assert end["prediction_id"] == record.id


def count_tasks() -> int:
    """Return the number of tasks without the readers of the session's watcher, a bounded pool that lives as long."""
    return sum("_read_forever" not in task.get_name() for task in asyncio.all_tasks())


@pytest.mark.repeats
async def test_500_concurrent_requests_leave_no_tasks_or_files() -> None:
    async with emulated(speed=20, timing=5.0) as emulator:
        async with site(emulator, max_in_flight=200) as web:
            await web.post("/now", prompt="warm", image=URL)
            gc.collect()
            tasks, files = count_tasks(), len(list(Path("/dev/fd").iterdir()))
            answers: list[tuple[int, Any, Any]] = []

            async def one(number: int) -> None:
                path = "/now" if number % 2 else "/patient"
                answers.append(await web.post(path, prompt=f"number {number}", image=URL))

            async with anyio.create_task_group() as group:
                for number in range(500):
                    group.start_soon(one, number)
            assert Counter(status for status, _, _ in answers) == {200: 500}
            assert len({body["id"] for _, body, _ in answers}) == 500
            await web.http.close()
            with anyio.fail_after(PATIENCE_S):
                while count_tasks() > tasks or len(list(Path("/dev/fd").iterdir())) > files + 110:  # noqa: ASYNC110 -- no event
                    await anyio.sleep(0.05)
        assert Counter(str(record.inputs["prompt"]) for record in emulator.predictions()).most_common(1)[0][1] == 1
        assert len(emulator.charges()) == 501


async def test_full_queue_returns_503_and_key_is_paid_once() -> None:
    clock = ManualClock()
    async with emulated(clock=clock) as emulator, site(emulator, queue=3, max_in_flight=1) as web:
        emulator.faults.add("submit", faults.Delay(20.0), times=None)
        for number in range(3):
            status, _, _ = await web.post("/videos", PICTURE, prompt=f"{number}", key=f"k{number}")
            assert status == 202
        status, body, headers = await web.post("/videos", PICTURE, prompt="3")
        assert (status, headers["Content-Type"], headers["Retry-After"]) == (503, "application/problem+json", "15")
        assert body["title"] == "Too many jobs are waiting"
        # A waiting job is not counted twice.
        assert (await web.post("/videos", PICTURE, prompt="0", key="k0"))[0] == 202
        status, body, _ = await web.post("/videos", PICTURE, prompt="another", key="k0")
        assert (status, body["key"]) == (409, "k0")
        async with running(clock):
            for number in range(3):
                assert (await web.ended(f"k{number}"))["state"] == "completed"
        assert (await web.post("/videos", PICTURE, prompt="0", key="k0"))[1]["state"] == "completed"
        assert len(emulator.charges()) == 3


async def test_disconnected_client_does_not_end_job() -> None:
    clock, asked, when = ManualClock(), *arrival()
    async with emulated(clock=clock) as emulator, site(emulator) as web:
        emulator.faults.add("submit", faults.Delay(30.0), times=None, when=when)
        async with anyio.create_task_group() as client:
            client.start_soon(partial(web.post, "/patient", prompt="left", image=URL, key="mine"))
            await asked.wait()
            client.cancel_scope.cancel()
        # The server cancels the handler, or the handler has a timeout.
        _, body, _ = await web.post("/patient", prompt="cancelled", image=URL, key="other", seconds="0.1")
        assert body["id"] is None
        assert emulator.charges() == ()
        async with running(clock):
            assert (await web.ended("mine"))["state"] == "completed"
            assert (await web.ended("other"))["state"] == "completed"
        status, body, _ = await web.post("/patient", prompt="cancelled", image=URL, key="other")
        assert (status, bool(body["output"])) == (200, True)
        assert len(emulator.charges()) == 2


async def test_202_follows_ledger_record_and_upload(tmp_path: Path) -> None:
    ledger = tmp_path / "l.db"
    clock, submitted, when = ManualClock(), *arrival()
    async with emulated(clock=clock) as emulator, site(emulator, ledger=ledger) as web:
        for route in ("upload_put", "upload_binary"):
            emulator.faults.add(route, faults.Delay(10.0), times=None)
        emulator.faults.add("submit", faults.Delay(3600.0), when=when)
        async with running(clock):
            status, body, _ = await web.post("/videos", PICTURE, prompt="Waves")
        assert status == 202
        (row,) = read_ledger(ledger)
        assert row.key == body["key"]
        assert row.state in {State.PENDING, State.INTENT}
        asked = [request.route for request in emulator.requests]
        assert any(route.startswith("upload") for route in asked)
        # The closing session waits for its paid request.
        await submitted.wait()
        await clock.advance(3600.0)


async def test_event_stream_resumes_after_disconnect() -> None:
    clock = ManualClock()
    async with (
        emulated(clock=clock, timing=60.0) as emulator,
        site(emulator, lasts=0.15) as web,
        # A second or more, also where the machine has nothing else to do.
        running(clock, pause=0.01),
    ):
        await web.post("/videos", PICTURE, prompt="Waves", key="k")
        received: list[dict[str, str]] = []
        connections, last = 0, None
        with anyio.fail_after(PATIENCE_S):
            while True:
                status, events = await web.events("k", last)
                connections += 1
                if status == 204:
                    break
                received += events
                last = next((event["id"] for event in reversed(received) if "id" in event), last)
        assert connections > 3, "the server ends each stream after `lasts` seconds"
        states = [json.loads(event["data"])["status"] for event in received if event["event"] == "status"]
        assert states == ["waiting", "submitting", "created", "processing", "completed"]
        numbers = [event["id"] for event in received if "id" in event]
        assert len(set(numbers)) == len(numbers), "no event is repeated"
        assert received[-1]["event"] == "end"
        assert (await web.events("k", numbers[1]))[1] == received[2:]
        assert (await web.events("none"))[0] == 404
        # An id of another process, or an invalid one: the present state of the job is sent.
        for unknown in ("0.1", "x", f"{numbers[0].partition('.')[0]}.99999999999999999999"):
            _, events = await web.events("k", unknown)
            assert [event["event"] for event in events] == ["status", "end"]


async def test_errors_are_problem_details_without_key(tmp_path: Path) -> None:
    async with emulated() as emulator, site(emulator, budget="0.30", ledger=tmp_path / "l.db") as web:
        status, body, headers = await web.post("/videos", PICTURE, prompt="")
        assert (status, headers["Content-Type"]) == (422, "application/problem+json")
        assert [one["path"] for one in body["errors"]] == ["prompt"]
        status, body, _ = await web.post("/videos", b"no picture", prompt="Waves")
        assert (status, [one["path"] for one in body["errors"]]) == (422, ["image"])
        status, body, _ = await web.post("/now", prompt="Waves", image="file:///etc/passwd")
        assert (status, [one["path"] for one in body["errors"]]) == (422, ["image"])
        assert (await web.post("/now", prompt="Waves", image=URL))[0] == 200
        status, body, _ = await web.post("/now", prompt="Wind", image=URL)
        assert status == 402
        assert "0.3" not in json.dumps(body), "the client does not see the budget"
        # In the background, the error is in the job's status.
        await web.post("/videos", PICTURE, prompt="Wind", key="poor")
        end = await web.ended("poor")
        assert (end["state"], end["error"]["status"]) == ("failed", 402)
        (row,) = [row for row in read_ledger(tmp_path / "l.db") if row.key == "poor"]
        assert row.state is State.SKIPPED

    async with emulated() as emulator:
        emulator.faults.add("submit", faults.Status(401, f"bad key {emulator.api_key}"))
        async with site(emulator) as web:
            async with web.http.post(web.url + "/now", params={"prompt": "x", "image": URL}) as response:
                text = await response.text()
            assert response.status == 502
            assert emulator.api_key not in text
            assert "bad" not in text


async def test_job_reported_as_failed_is_not_sent_after_restart(tmp_path: Path) -> None:
    ledger = tmp_path / "l.db"
    async with emulated() as emulator:
        # No server listens there.
        async with site(emulator, ledger=ledger, base_url="http://127.0.0.1:9") as web:
            await web.post("/videos", prompt="Waves", key="k", image=URL)
            end = await web.ended("k")
            assert (end["state"], end["error"]["status"], end["error"]["spent"]) == ("failed", 502, "no")
        async with site(emulator, ledger=ledger) as web:
            assert (await web.get("/videos/k"))[1]["state"] == "failed"
            await anyio.sleep(0.2)
            assert emulator.charges() == ()
            # Submitted again, it is run.
            await web.post("/videos", prompt="Waves", key="k", image=URL)
            assert (await web.ended("k"))["state"] == "completed"
        async with site(emulator, ledger=ledger) as web:
            assert (await web.get("/videos/k"))[1]["output"]
            _, events = await web.events("k")
            assert [event["event"] for event in events] == ["status", "end"]
        assert len(emulator.charges()) == 1


async def test_waiting_jobs_run_after_restart(tmp_path: Path) -> None:
    ledger = tmp_path / "l.db"
    keys = [f"k{number}" for number in range(5)]
    async with emulated() as emulator:
        async with site(emulator, ledger=ledger, rate_limiter=NeverStarts()) as web:
            for key in keys:
                assert (await web.post("/videos", PICTURE, prompt=key, key=key))[0] == 202
            assert {row.state for row in read_ledger(ledger)} == {State.PENDING}
        async with site(emulator, ledger=ledger) as web:
            # No client submits them again.
            assert [(await web.ended(key))["state"] for key in keys] == ["completed"] * 5
        assert sorted(str(record.inputs["prompt"]) for record in emulator.predictions()) == keys


async def test_missing_image_file_does_not_prevent_start(tmp_path: Path) -> None:
    face, ledger = tmp_path / "face.png", tmp_path / "l.db"
    face.write_bytes(PICTURE)
    async with emulated() as emulator:
        async with opener(emulator, ledger=ledger, rate_limiter=NeverStarts())() as kling:
            desk = JobDesk()
            async with desk.open(kling):
                assert (await desk.submit(Job(prompt="Waves", image=face), key="k")).state == "waiting"
        face.unlink()
        async with site(emulator, ledger=ledger) as web:
            end = await web.ended("k")
            assert (end["state"], end["error"]["errors"][0]["path"]) == ("failed", "image")
        assert emulator.charges() == ()


async def test_webhook_ends_job_and_forgery_is_refused() -> None:
    clock = ManualClock()
    async with emulated(clock=clock) as emulator:
        # The webhook URL contains the port, so it must be known in advance.
        at = listening()
        hooks = f"{address(at)}/hooks/kling"
        async with site(emulator, at=at, webhooks=True, webhook_url=hooks, watch=WatchPolicy.webhook_first()) as web:
            key, end = "k", None
            await web.post("/videos", PICTURE, prompt="Waves", key=key)
            with anyio.fail_after(PATIENCE_S):
                while (id_ := (await web.get("/videos/k"))[1]["prediction_id"]) is None:  # noqa: ASYNC110 -- no event
                    await anyio.sleep(0.01)
            body = body_of(id_, outputs=["https://evil.example/x.mp4"])
            now = clock.now()
            for headers in ({}, signed("whsec_wrong", body, at=now), signed("whsec_wrong", body, at=now - 9_000)):
                async with web.http.post(hooks, data=body, headers=headers) as response:
                    assert response.status in {400, 401}
            for number in range(60):
                forged = signed(f"whsec_{number}", body, at=now, webhook_id=f"w{number}")
                async with web.http.post(hooks, data=body, headers=forged) as response:
                    assert response.status == 401
            large = signed("whsec_wrong", body, at=now)
            async with web.http.post(hooks, data=io.BytesIO(bytes(2 * 2**20)), headers=large) as response:
                assert response.status == 413
            async with web.http.get(hooks) as response:
                assert response.status == 405
            async with running(clock):
                end = await web.ended(key)
            assert end["state"] == "completed"
            assert "evil" not in end["output"]
        asked = Counter(request.route for request in emulator.requests)
        assert asked["result"] + asked["list"] == 0, "the end came by webhook, without polling"


async def test_lifespan_works_with_starlette() -> None:
    async def make(request: Request) -> JSONResponse:
        jobs: JobDesk = request.state.kling
        prediction = await jobs.generate(Job(prompt=request.query_params["prompt"], image=URL))
        return JSONResponse({"output": prediction.output})

    async with emulated() as emulator:
        app = Starlette(routes=[Route("/", make, methods=["POST"])], lifespan=lifespan(opener(emulator)))
        add_error_handlers(app)
        async with served(app) as url, aiohttp.ClientSession() as http:
            async with http.post(url, params={"prompt": "Waves"}) as response:
                assert response.status == 200
            async with http.post(url, params={"prompt": ""}) as response:
                assert (response.status, response.content_type) == (422, "application/problem+json")
