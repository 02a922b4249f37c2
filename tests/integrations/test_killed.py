"""An application killed under load and restarted: every accepted job is found and paid for once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import anyio
import anyio.abc
import attrs
import pytest

from kling_async.emulator import Emulator, ManualClock, faults
from support.manual import running
from support.patience import PATIENCE_S
from support.pictures import png

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).parents[1] / "support" / "web.py"
KILLS = 3
JOBS = 80
IN_FLIGHT = 20
PICTURES = [png(colour=(40 * number, 90, 120)) for number in range(3)]


@attrs.define
class Application:
    """The application's process and its clients.

    Attributes:
        accepted: Prompts of the jobs that got a 202, by key.
    """

    http: aiohttp.ClientSession
    arguments: list[str]
    accepted: dict[str, str] = attrs.field(factory=dict)
    process: anyio.abc.Process | None = None
    url: str = ""

    async def start(self) -> None:
        # With the import path of this process.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(WORKER), *self.arguments]
        self.process = await anyio.open_process(command, stderr=None, env=environment)
        assert self.process.stdout is not None
        with anyio.fail_after(PATIENCE_S):
            port = int(await self.process.stdout.receive())
            self.url = f"http://127.0.0.1:{port}/videos"
            async with self.http.get(f"{self.url}/none") as response:
                assert response.status == 404

    async def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.aclose()

    async def ask(self, number: int) -> None:
        prompt, picture = f"number {number}", PICTURES[number % len(PICTURES)]
        # The process was killed before it responded, so nothing was promised.
        with contextlib.suppress(aiohttp.ClientError):
            async with self.http.post(self.url, params={"prompt": prompt}, data=picture) as response:
                assert response.status == 202
                self.accepted[(await response.json())["key"]] = prompt

    async def look(self, key: str) -> dict[str, str | None]:
        async with self.http.get(f"{self.url}/{key}") as response:
            assert response.status == 200, f"{key} was accepted and is lost"
            status: dict[str, str | None] = await response.json()
            return status

    async def states(self, keys: Iterable[str]) -> dict[str, dict[str, str | None]]:
        keys = list(keys)
        return dict(zip(keys, await asyncio.gather(*map(self.look, keys)), strict=True))

    async def ends(self) -> dict[str, dict[str, str | None]]:
        ended: dict[str, dict[str, str | None]] = {}
        with anyio.fail_after(PATIENCE_S):
            while len(ended) < len(self.accepted):
                states = await self.states(self.accepted.keys() - ended.keys())
                ended |= {key: now for key, now in states.items() if now["state"] not in {"waiting", "running"}}
                await anyio.sleep(0.1)
        return ended


@pytest.mark.timeout(300)
async def test_killed_application_finds_accepted_jobs_and_pays_once(tmp_path: Path) -> None:
    rng = random.Random(11)
    # No prediction ends between a process's first request and its end.
    clock = ManualClock(time.time())
    async with (
        Emulator(level="ultra", profile="tiny", clock=clock, timing=5.0, balance=1e6, input_echo=True) as emulator,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as http,
    ):
        ledger = str(tmp_path / "l.db")
        web = Application(http, [ledger, emulator.base_url, emulator.api_key, str(IN_FLIGHT), "1000"])
        waiting = 0
        await web.start()
        try:
            for kill in range(KILLS):
                # Accepted but not answered, so that each kill hits submits in flight.
                held = emulator.faults.add("submit", faults.Delay(86_400.0, accepted=True), times=2)
                # Predictions of earlier processes end and release their slots.
                await clock.advance(600.0)
                taken = len(web.accepted) + rng.randrange(IN_FLIGHT + 1, JOBS)
                async with anyio.create_task_group() as group:
                    for number in range(kill * JOBS, (kill + 1) * JOBS):
                        group.start_soon(web.ask, number)
                    with anyio.fail_after(PATIENCE_S):
                        while len(web.accepted) < taken or not held.spent:  # noqa: ASYNC110 -- from another process
                            await anyio.sleep(0.005)
                    await web.kill()
                await web.start()
                waiting += Counter(now["state"] for now in (await web.states(web.accepted)).values())["waiting"]
            async with running(clock, pause=0.02):
                ends = await web.ends()
        finally:
            await web.kill()
        print(f"{len(web.accepted)} of {KILLS * JOBS} accepted, {waiting} found waiting after kills")
        assert Counter(end["state"] for end in ends.values()) == {"completed": len(web.accepted)}
        paid = {record.id: str(record.inputs["prompt"]) for record in emulator.predictions()}
        assert max(Counter(paid.values()).values()) == 1, "paid twice"
        assert {key: paid[str(end["prediction_id"])] for key, end in ends.items()} == web.accepted
        assert waiting, "no kill left a waiting job"
