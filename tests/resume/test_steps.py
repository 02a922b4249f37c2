"""Submitting and waiting as two steps of an orchestrator, each in a process of its own, over one ledger."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kling_async import Job, KeyReusedError, KlingSession
from kling_async.emulator import faults
from kling_async.testing import EmulatorThread
from kling_async.testing.plugin import kling_emulator_options, kling_server
from support.patience import PATIENCE_S

__all__ = ["kling_emulator_options", "kling_server"]

pytestmark = pytest.mark.anyio

IMAGE = "https://pictures.example/lake.png"
SUBMIT = """
import asyncio, os, sys
from kling_async import Job, KlingSession

async def main():
    ledger, key, kill = sys.argv[1:]
    async with KlingSession(ledger=ledger) as kling:
        prediction = await kling.submit(Job(prompt="Waves", image="https://pictures.example/lake.png"), key=key)
        print(prediction.id, flush=True)
        if kill == "killed":
            os._exit(9)  # before the orchestrator has the result

asyncio.run(main())
"""


def submit_in_a_process(server: EmulatorThread, ledger: Path | str, *, killed: bool = False) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", SUBMIT, str(ledger), "row-1", "killed" if killed else "well"],
        env=os.environ | dict(server.environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == (9 if killed else 0), ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("where", ["file", "database"])
async def test_submit_may_run_again_without_paying_again(
    kling_server: EmulatorThread, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    ledger = tmp_path / "run.db" if where == "file" else request.getfixturevalue("database")
    first = await asyncio.to_thread(submit_in_a_process, kling_server, ledger, killed=True)
    again = await asyncio.to_thread(submit_in_a_process, kling_server, ledger)
    assert first == again
    assert [charge.prediction_id for charge in kling_server.charges()] == [first]
    async with KlingSession(ledger=ledger) as kling:
        with pytest.raises(KeyReusedError):
            await kling.submit(Job(prompt="Wind", image=IMAGE), key="row-1")
    assert len(kling_server.charges()) == 1


async def test_submit_may_run_again_after_a_lost_reply(kling_server: EmulatorThread, tmp_path: Path) -> None:
    kling_server.faults.add("submit", faults.AcceptThenDrop(), times=1)
    found = set()
    for _ in range(2):
        async with KlingSession(ledger=tmp_path / "run.db", sole_user=True, grace=1) as kling:
            found.add((await kling.submit(Job(prompt="Waves", image=IMAGE), key="row-1")).id)
    assert found == {charge.prediction_id for charge in kling_server.charges()}
    assert len(found) == 1


async def test_waiting_is_a_step_by_id_that_is_cancelled_and_resumed(
    kling_server: EmulatorThread, tmp_path: Path
) -> None:
    prediction_id = await asyncio.to_thread(submit_in_a_process, kling_server, tmp_path / "run.db")
    # Another process, without the ledger, and cancelled in the middle.
    async with KlingSession() as kling:
        waiting = asyncio.create_task(kling.wait(prediction_id))
        await asyncio.sleep(0)  # it has begun, and no reply can be there yet
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    # And a third one, to which nothing of the others is left but the id.
    async with KlingSession() as kling:
        ended = await kling.wait(prediction_id)
        saved = await kling.save(ended, tmp_path / "videos")
    assert ended.id == prediction_id
    assert saved.path.stat().st_size == saved.bytes
    assert len(kling_server.charges()) == 1
