"""Repeated SIGKILL at random moments: every job ends, is paid once, and is not lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from kling_async import State, read_ledger
from kling_async.emulator import Emulator, faults
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).parents[1] / "support" / "worker.py"
JOBS = int(os.environ.get("KLING_KILL_JOBS", "240"))
KILLS = int(os.environ.get("KLING_KILLS", "8"))
SEED = int(os.environ.get("KLING_SEED", "7"))


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("echo", [True, False], ids=["echo", "no echo"])
@pytest.mark.promise(1, 2)
@pytest.mark.repeats
async def test_killed_and_resumed_batch_pays_once_and_loses_nothing(tmp_path: Path, *, echo: bool) -> None:
    rng = random.Random(SEED)
    path = tmp_path / "run.db"
    in_doubt = 0
    async with Emulator(
        level="ultra", profile="tiny", timing=lambda model, inputs: 1.0, balance=1e6, input_echo=echo
    ) as emulator:
        emulator.faults.add("submit", faults.Delay(0.03, accepted=True), times=None)
        # The worker imports what this process imports.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(WORKER), str(path), emulator.base_url, emulator.api_key, str(JOBS), "40"]
        for kill in range(KILLS + 1):
            process = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None, env=environment)
            with anyio.fail_after(PATIENCE_S + JOBS):
                if kill == KILLS:
                    assert await process.wait() == 0
                    continue
                # Accepted but not answered, so that each kill hits a submit in flight.
                unanswered = emulator.faults.add("submit", faults.Delay(86_400.0, accepted=True))
                enough = round(JOBS * (kill + rng.random()) / (KILLS + 1))
                while not unanswered.spent or len(emulator.predictions()) < enough:
                    assert process.returncode is None, "it ended before it was killed"
                    await anyio.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            in_doubt += sum(row.state is State.INTENT for row in read_ledger(path))
        paid = Counter(str(record.inputs["prompt"]) for record in emulator.predictions())
        rows = list(read_ledger(path))
    # Shown by `pytest -s` and on failure.
    print(f"seed {SEED}, {KILLS} kills, {in_doubt} intents left by them, {len(rows)} jobs")
    assert max(paid.values()) == 1, "paid twice"
    assert len(rows) == JOBS
    held = [row for row in rows if row.state is State.UNCERTAIN]
    ids = {row.prediction_id for row in rows} - {None}
    if echo:
        assert held == []
    assert {row.state for row in rows} <= {State.COMPLETED, State.UNCERTAIN}
    # Every accepted id is in a row, except those of held jobs whose owner is unknown.
    assert sum(paid.values()) - len(ids) <= len(held)
    assert in_doubt >= KILLS
