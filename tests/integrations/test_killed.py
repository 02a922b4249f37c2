"""An application killed under load and restarted: every accepted job is found and paid for once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import anyio
import anyio.abc
import attrs
import pytest

from kling_async.emulator import Emulator, faults
from support.pictures import png

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).parents[1] / "support" / "web.py"
KILLS = 3
JOBS = 80
PICTURES = [png(colour=(40 * number, 90, 120)) for number in range(3)]


@attrs.define
class Application:
    """The application's process and its clients.

    Attributes:
        accepted: Prompts of the jobs that got a 202, by key.
    """

    http: aiohttp.ClientSession
    port: int
    arguments: list[str]
    accepted: dict[str, str] = attrs.field(factory=dict)
    process: anyio.abc.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/videos"

    async def start(self) -> None:
        # With the import path of this process.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(WORKER), str(self.port), *self.arguments]
        self.process = await anyio.open_process(command, stdout=None, stderr=None, env=environment)
        with anyio.fail_after(60):
            while True:
                assert self.process.returncode is None, "the application did not start"
                with contextlib.suppress(aiohttp.ClientError):
                    async with self.http.get(f"{self.url}/none") as response:
                        assert response.status == 404
                        return
                await anyio.sleep(0.05)

    async def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.aclose()

    async def ask(self, number: int) -> None:
        prompt, picture = f"number {number}", PICTURES[number % len(PICTURES)]
        # No response, no promise: the process was killed before it.
        with contextlib.suppress(aiohttp.ClientError):
            async with self.http.post(self.url, params={"prompt": prompt}, data=picture) as response:
                assert response.status == 202
                self.accepted[(await response.json())["key"]] = prompt

    async def look(self, key: str) -> dict[str, str | None]:
        async with self.http.get(f"{self.url}/{key}") as response:
            assert response.status == 200, f"{key} was accepted and is lost"
            status: dict[str, str | None] = await response.json()
            return status

    async def ends(self) -> dict[str, dict[str, str | None]]:
        ended: dict[str, dict[str, str | None]] = {}
        with anyio.fail_after(120):
            while len(ended) < len(self.accepted):
                for key in self.accepted.keys() - ended.keys():
                    status = await self.look(key)
                    if status["state"] not in {"waiting", "running"}:
                        ended[key] = status
                await anyio.sleep(0.1)
        return ended


@pytest.mark.timeout(300)
async def test_killed_application_finds_accepted_jobs_and_pays_once(tmp_path: Path) -> None:
    rng = random.Random(11)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with (
        Emulator(level="ultra", profile="tiny", timing=1.0, balance=1e6, input_echo=True) as emulator,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http,
    ):
        # Slow responses, so that kills interrupt submits.
        emulator.faults.add("submit", faults.Delay(0.05, accepted=True), times=None)
        ledger = str(tmp_path / "l.db")
        web = Application(http, port, [ledger, emulator.base_url, emulator.api_key, "20", "1000"])
        waiting = 0
        await web.start()
        try:
            for kill in range(KILLS):
                async with anyio.create_task_group() as group:
                    for number in range(kill * JOBS, (kill + 1) * JOBS):
                        group.start_soon(web.ask, number)
                    await anyio.sleep(0.15 + 0.5 * rng.random())
                    await web.kill()
                await web.start()
                waiting += Counter([(await web.look(key))["state"] for key in web.accepted])["waiting"]
            ends = await web.ends()
        finally:
            await web.kill()
        print(f"{len(web.accepted)} of {KILLS * JOBS} accepted, {waiting} found waiting after kills")
        assert Counter(end["state"] for end in ends.values()) == {"completed": len(web.accepted)}
        paid = {record.id: str(record.inputs["prompt"]) for record in emulator.predictions()}
        assert max(Counter(paid.values()).values()) == 1, "paid twice"
        assert {key: paid[str(end["prediction_id"])] for key, end in ends.items()} == web.accepted
        assert waiting, "no kill left a waiting job"
