"""kill -9 at random moments, again and again: nothing is paid for twice, nothing is lost, and everything ends."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from kling_async import State, read_ledger
from kling_async.emulator import Emulator, faults

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).parents[1] / "support" / "worker.py"
JOBS = int(os.environ.get("KLING_KILL_JOBS", "240"))
KILLS = int(os.environ.get("KLING_KILLS", "8"))
SEED = int(os.environ.get("KLING_SEED", "7"))


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("echo", [True, False], ids=["echo", "no echo"])
@pytest.mark.promise(1, 2)
async def test_killed_and_resumed_pays_once_and_loses_nothing(tmp_path: Path, *, echo: bool) -> None:
    rng = random.Random(SEED)
    path = tmp_path / "run.db"
    kills = in_doubt = 0
    async with Emulator(
        level="ultra", profile="tiny", timing=lambda model, inputs: 1.0, balance=1e6, input_echo=echo
    ) as emulator:
        # Answers take a moment, so that kills meet submits on their way.
        emulator.faults.add("submit", faults.Delay(0.03, accepted=True), times=None)
        # The worker imports what this process imports.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(WORKER), str(path), emulator.base_url, emulator.api_key, str(JOBS), "40"]
        while True:
            process = await anyio.open_process(command, stderr=None, env=environment)
            lines: list[str] = []
            limit = 0.7 + 1.2 * rng.random() if kills < KILLS else 120.0
            with anyio.move_on_after(limit):
                assert process.stdout is not None
                async for chunk in process.stdout:
                    lines += chunk.decode().splitlines()
                await process.wait()
            if process.returncode is None:
                assert kills < KILLS, "it did not end"
                process.send_signal(signal.SIGKILL)
                kills += 1
                await process.wait()
                in_doubt += sum(row.state is State.INTENT for row in read_ledger(path)) if path.exists() else 0
            await process.aclose()
            if process.returncode == 0 and kills >= min(KILLS, 1):
                break
        paid = Counter(str(record.inputs["prompt"]) for record in emulator.predictions())
        rows = list(read_ledger(path))
    # Shown by `pytest -s`, and with a failure.
    print(f"seed {SEED}, {kills} kills, {in_doubt} intents left by them, {len(rows)} jobs")
    assert max(paid.values()) == 1, "paid twice"
    assert len(rows) == JOBS
    held = [row for row in rows if row.state is State.UNCERTAIN]
    ids = {row.prediction_id for row in rows} - {None}
    if echo:
        assert held == []
    assert {row.state for row in rows} <= {State.COMPLETED, State.UNCERTAIN}
    # Every accepted id is a row's, but those of jobs that are held because whose they are is not known.
    assert sum(paid.values()) - len(ids) <= len(held)
    assert kills
