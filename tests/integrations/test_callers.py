"""Uploads, keys that belong to callers, and lists, by the application of docs/applications/fastapi.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from kling_async import (
    CallerLimits,
    ConfigurationError,
    InvalidJobError,
    Job,
    KlingSession,
    UnknownJobError,
    events,
)
from kling_async._core.content import Content
from kling_async._core.media import MAX_IMAGE_BYTES
from kling_async._core.states import Row
from kling_async.integrations._callers import key_in_ledger
from kling_async.integrations.fastapi import (
    JobPage,
    Jobs,
    JobService,
    JobStatus,
    accepted,
    add_error_handlers,
    lifespan,
)
from kling_async.ledger import SQLiteLedger
from kling_async.testing import EmulatorThread, served
from kling_async.testing.plugin import kling_emulator_options, kling_server
from support import pages
from support.patience import PATIENCE_S
from support.pictures import png

__all__ = ["kling_emulator_options", "kling_server"]

ANNA = {"Authorization": "Bearer a-token", "Content-Type": "image/png"}
BEN = {"Authorization": "Bearer b-token", "Content-Type": "image/png"}
IMAGE = "https://pictures.example/lake.png"


@pytest.fixture
def kling_server_of_long_videos(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorThread]:
    """Yield a server whose predictions outlast the test."""
    with EmulatorThread(profile="tiny", level="gold", timing=1e6, downloads=False) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def app(kling_server: EmulatorThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    names: dict[str, Any] = {"__name__": "page"}
    exec(pages.block("applications/fastapi.md", "uploads = "), names)
    monkeypatch.chdir(tmp_path)
    return names["uploads"]


def post(http: TestClient, headers: dict[str, str], order: str) -> Any:
    return http.post("/videos", params={"prompt": "Waves", "order": order}, content=png(), headers=headers)


def test_uploads_are_accepted_and_belong_to_their_callers(app: Any, kling_server: EmulatorThread) -> None:
    with TestClient(app) as http:
        for headers in (ANNA, ANNA, BEN):
            response = post(http, headers, "1742")
            assert response.status_code == 202, response.text
            assert response.headers["Location"] == "/videos/1742"
            assert response.json()["key"] == "1742"
        assert post(http, ANNA, "7").status_code == 202
        assert http.get("/videos/7", headers=BEN).status_code == 404
        assert http.get("/videos/ben%2F1742", headers=ANNA).status_code == 404
        assert http.get("/videos/7", headers=ANNA).json()["key"] == "7"
        assert [each["key"] for each in http.get("/videos", headers=ANNA).json()["jobs"]] == ["1742", "7"]
        assert [each["key"] for each in http.get("/videos", headers=BEN).json()["jobs"]] == ["1742"]
        assert [each["key"] for each in http.get("/videos?order=7", headers=ANNA).json()["jobs"]] == ["7"]
        assert http.get("/videos", headers={"Authorization": "Bearer other"}).status_code == 401
        assert (
            http.post(
                "/videos?prompt=x&order=9", content=b"x", headers={**ANNA, "Content-Type": "text/plain"}
            ).status_code
            == 415
        )
        # Of the size that a job may have; it is no picture.
        largest = http.post("/videos?prompt=x&order=9", content=bytes(MAX_IMAGE_BYTES), headers=ANNA)
        assert largest.json()["errors"][0]["path"] == "image"
        larger = http.post("/videos?prompt=x&order=9", content=bytes(MAX_IMAGE_BYTES + 1), headers=ANNA)
        assert (larger.status_code, larger.json()["detail"]) == (413, "Expected a picture of up to 10 MB.")
    with TestClient(app) as http:  # another process with the same ledger
        assert http.get("/videos/7", headers=ANNA).json()["key"] == "7"
        assert http.get("/videos/7", headers=BEN).status_code == 404
    assert len(kling_server.charges()) <= 3


def test_responses_are_in_the_schema(app: Any) -> None:
    with TestClient(app) as http:
        post = http.get("/openapi.json").json()["paths"]["/videos"]["post"]
    assert post["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobStatus")
    assert "Location" in post["responses"]["202"]["headers"]
    assert post["requestBody"]["content"]["image/png"]["schema"]["format"] == "binary"


@pytest.mark.anyio
async def test_everything_about_a_key_is_its_callers(kling_server: EmulatorThread, tmp_path: Path) -> None:
    service = JobService()
    job = Job(prompt="Waves", image=IMAGE)
    async with KlingSession(ledger=tmp_path / "run.db") as kling, service.open(kling):
        with anyio.fail_after(PATIENCE_S):
            prediction = await service.generate(job, key="a", caller="anna")
            assert (await service.generate(job, key="a", caller="anna")).id == prediction.id
            other = await service.generate(job, key="a", caller="ann")
        assert other.id != prediction.id
        changes = [change async for change in service.follow("a", caller="anna")]
        assert {change.status.key for change in changes if change} == {"a"}
        last = changes[-1]
        assert last is not None
        assert service.has_seen_all("a", last.id, caller="anna")
        assert not service.has_seen_all("a", last.id, caller="ben")
        for caller in ("ben", None):
            with pytest.raises(UnknownJobError):
                await service.get("a", caller=caller)
        with pytest.raises(InvalidJobError, match="caller"):
            await service.submit(job, caller="")
        first = await service.page(limit=1)
        assert ([each.key for each in first.jobs], first.next) == (["ann/a"], "ann/a")
        rest = await service.page(limit=1, after=first.next)
        assert ([each.key for each in rest.jobs], rest.next) == (["anna/a"], None)
        with pytest.raises(InvalidJobError, match="limit"):
            await service.page(limit=0)


class CountingLedger(SQLiteLedger):
    """A ledger that counts the jobs that are looked up one by one."""

    lookups = 0

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        self.lookups += 1
        return await super().find(batch, key)


@pytest.mark.anyio
async def test_page_reads_each_row_once(kling_server: EmulatorThread, tmp_path: Path) -> None:
    service = JobService()
    async with KlingSession(ledger=tmp_path / "run.db") as kling, service.open(kling):
        with anyio.fail_after(PATIENCE_S):
            made = [await service.generate(Job(prompt="Waves", image=IMAGE), key=key, caller="anna") for key in "ab"]
        here = await service.page(caller="anna")
    ledger = CountingLedger(tmp_path / "run.db")
    service = JobService()
    async with KlingSession(ledger=ledger) as kling, service.open(kling):
        page = await service.page(caller="anna")
        assert ledger.lookups == 0
        assert page == here == JobPage(jobs=[await service.get(key, caller="anna") for key in "ab"])
        with pytest.raises(ConfigurationError, match="labels"):
            await service.page(labels={"order": None})
    assert [each.prediction_id for each in page.jobs] == [each.id for each in made]


@pytest.mark.anyio
async def test_job_that_got_the_video_of_another_batch_is_known_to_later_processes(
    kling_server: EmulatorThread, tmp_path: Path
) -> None:
    job, path = Job(prompt="Waves", image=IMAGE), tmp_path / "run.db"
    async with KlingSession(ledger=path) as kling, kling.batch({"x": job}, name="earlier") as batch:
        (made,) = [outcome async for outcome in batch]
    service = JobService(batch="shop")
    async with KlingSession(ledger=path) as kling:
        async with kling.batch({"a": job}, name="shop", seen="reuse") as batch:
            assert [outcome.ok async for outcome in batch] == [True]
        async with service.open(kling):
            status = await service.get("a")
            assert (await service.page()).jobs == [status]
    assert made.prediction is not None
    assert status == JobStatus(
        key="a",
        state="completed",
        status="completed",
        prediction_id=made.prediction.id,
        output=made.prediction.output,
    )
    assert len(kling_server.charges()) == 1


@pytest.mark.anyio
@pytest.mark.repeats
async def test_bounds_hold_for_each_of_fifty_callers_at_once(
    kling_server_of_long_videos: EmulatorThread, tmp_path: Path
) -> None:
    limits = {"caller-7": CallerLimits(running=1, queued=2)}
    accepted_of: Counter[str] = Counter()

    def observe(event: events.Event) -> None:
        accepted_of[event.key.partition("/")[0]] += isinstance(event, events.Accepted)

    def session() -> KlingSession:
        return KlingSession(level="gold", ledger=tmp_path / "web.db", callers=limits, observers=[observe])

    api = FastAPI(lifespan=lifespan(session, desk=lambda: JobService(queue=1000)))
    add_error_handlers(api)

    @api.post("/videos/{caller}/{number}", status_code=202)
    async def make(caller: str, number: int, jobs: Jobs) -> JSONResponse:
        status = await jobs.submit(Job(prompt=f"{caller} {number}", image=IMAGE), key=str(number), caller=caller)
        return accepted(status, location=f"/videos/{status.key}")

    replies: dict[str, list[httpx.Response]] = defaultdict(list)
    with served(api) as url:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:

            async def post(caller: str, number: int) -> None:
                replies[caller].append(await http.post(f"/videos/{caller}/{number}"))

            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    for caller in range(50):
                        tasks.start_soon(post, f"caller-{caller}", number)
    refused = [reply for reply in replies.pop("caller-7") if reply.status_code != 202]
    assert {reply.status_code for each in replies.values() for reply in each} == {202}
    assert len(refused) in {7, 8}, "one runs, or is about to, and two wait"
    assert {reply.status_code for reply in refused} == {429}
    assert all(int(reply.headers["Retry-After"]) > 0 for reply in refused)
    assert refused[0].json()["title"] == "Too many of your jobs are waiting"
    assert accepted_of["caller-7"] <= 1


@pytest.mark.anyio
async def test_pages_need_a_ledger_on_disk(kling_server: EmulatorThread) -> None:
    service = JobService()
    async with KlingSession() as kling, service.open(kling):
        with pytest.raises(ConfigurationError, match="ledger on disk"):
            await service.page(caller="anna")


def test_no_name_of_a_caller_reaches_into_another_ones_keys() -> None:
    assert key_in_ledger("b/c", "a") != key_in_ledger("c", "a/b")
    assert key_in_ledger("x", "anna@example.com") == "anna@example.com/x"
    assert key_in_ledger("a/x", None) == "a/x"
