"""The application of docs/applications/fastapi.md, served as it stands there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from kling_async.emulator import Emulator
from support import pages
from support.patience import PATIENCE_S
from support.web import served

pytestmark = pytest.mark.anyio


async def check_other_sites_cannot_post(http: aiohttp.ClientSession, asked: dict[str, str]) -> None:
    """Send what a browser sends for a page of another site without asking first, and what it asks."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {} if kind is None else {"Content-Type": kind}
        skipped = ("Content-Type",) if kind is None else ()
        async with http.post("/videos", data=json.dumps(asked), headers=headers, skip_auto_headers=skipped) as response:
            assert response.status == 422, kind
    async with http.post("/videos", params=asked) as response:
        assert response.status == 422
    async with http.post("/videos", data=asked) as response:
        assert response.status == 422
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with http.options("/videos", headers=preflight) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
    for method, path in (("POST", "/videos"), ("GET", "/balance")):
        async with http.request(method, path, json=asked, headers={"Host": "evil.example"}) as response:
            assert response.status == 400


async def test_application_of_the_tutorial_pays_once_and_knows_its_jobs_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        monkeypatch.setenv("WAVESPEED_API_KEY", emulator.api_key)
        monkeypatch.setenv("WAVESPEED_BASE_URL", emulator.base_url)
        monkeypatch.setattr("kling_async._session.session.SystemClock", lambda: emulator.clock)
        asked = {"prompt": "Wind", "image": "https://pictures.example/a.jpg"}
        for _ in range(2):
            names: dict[str, Any] = {"__name__": "page"}
            exec(pages.block("tutorial/application.md", "app = "), names)
            async with served(names["app"]) as url, aiohttp.ClientSession(url) as http:
                for _ in range(2):
                    async with http.post("/videos", json=asked, headers={"Idempotency-Key": "lake-1"}) as response:
                        assert response.status == 202
                        assert response.headers["Location"] == "/videos/lake-1"

                async def state() -> str:
                    async with http.get("/videos/lake-1") as response:
                        return str((await response.json())["state"])

                with anyio.fail_after(PATIENCE_S):
                    while await state() != "completed":
                        pass
        assert len(emulator.charges()) == 1


async def test_application_accepts_jobs_and_reports_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(pages.block("applications/fastapi.md", "api = "), names)
    monkeypatch.chdir(tmp_path)
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        monkeypatch.setenv("WAVESPEED_API_KEY", emulator.api_key)
        monkeypatch.setenv("WAVESPEED_BASE_URL", emulator.base_url)
        monkeypatch.setattr("kling_async._session.session.SystemClock", lambda: emulator.clock)
        asked = {"prompt": "Waves", "image": "https://pictures.example/a.png"}
        async with served(names["api"]) as url, aiohttp.ClientSession(url) as http:
            for _ in range(2):
                async with http.post("/videos", json=asked, headers={"Idempotency-Key": "mine"}) as response:
                    assert response.status == 202
                    assert response.headers["Location"] == "/videos/mine"
            await check_other_sites_cannot_post(http, asked)
            with anyio.fail_after(PATIENCE_S):
                async with http.get("/videos/mine/events") as response:
                    assert "event: end" in await response.text()
            async with http.get("/videos/mine") as response:
                assert (await response.json())["state"] == "completed"
            async with http.get("/balance") as response:
                assert await response.json() == pytest.approx(1000 - 0.25)
            async with http.get("/openapi.json") as response:
                assert "JobStatus" in (await response.json())["components"]["schemas"]
        assert len(emulator.charges()) == 1
