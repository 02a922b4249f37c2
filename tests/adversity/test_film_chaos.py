"""Films of random shapes under random faults and kills: every film is whole or its failure told, nothing paid twice."""

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

from kling_async import Row, State, read_ledger
from kling_async._core.states import WITH_VIDEO
from kling_async.emulator import Chaos, Emulator, faults
from support.patience import PATIENCE_S
from support.shared_clock import SharedClock
from support.trees import trees

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).parents[1] / "support" / "tree_worker.py"
FILMS = int(os.environ.get("KLING_CHAOS_FILMS", "12"))
KILLS = int(os.environ.get("KLING_FILM_KILLS", "3"))
SEED = int(os.environ.get("KLING_SEED", "7"))
SPEED, SLOTS = (120.0, 24) if FILMS < 100 else (40.0, 100)


def check_films(rows: list[Row], parents: dict[str, str | None], emulator: Emulator) -> None:
    """Check that each clip has a video or says why it has none, and that none was paid for twice."""
    states = {row.key: row for row in rows}
    assert states.keys() == parents.keys()
    assert not emulator.double_paid(by=lambda charge: charge.prompt), "paid twice"
    kept = Counter(charge.prompt for charge in emulator.charges() if charge.refund_due is None)
    for key, row in states.items():
        parent = parents[key]
        if parent is not None and states[parent].state not in WITH_VIDEO:
            assert row.state is State.SKIPPED, key
            assert f"it continues the job {parent!r}, which has no video" in str(row.error)
        else:
            assert row.state in {*WITH_VIDEO, State.FAILED}, (key, row.state, row.error)
        assert kept[key] == (row.state in WITH_VIDEO), (key, row.state)
    ids = {row.prediction_id for row in rows}
    assert not {charge.prediction_id for charge in emulator.charges() if charge.refund_due is None} - ids, "lost"


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "downloaded"])
@pytest.mark.promise(1, 2)
@pytest.mark.repeats
async def test_films_survive_faults_and_kills(tmp_path: Path, *, saved: bool) -> None:
    rng = random.Random(SEED)
    path, parents, clock = tmp_path / "run.db", trees(FILMS, SEED), SharedClock(SPEED)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    killed: set[str] = set()
    async with Emulator(
        level="ultra",
        profile="tiny",
        balance=1e6,
        input_echo=True,
        seed=SEED,
        clock=clock,
        chaos=Chaos(rate=0.1, seed=SEED),
    ) as emulator:
        # The worker imports what this process imports.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(scratch)}
        folder = str(tmp_path / "out") if saved else ""
        # With 0, failures of the service end films.
        numbers = (FILMS, SEED, SLOTS, 0 if saved else 1)
        words = [str(path), emulator.base_url, emulator.api_key, *map(str, numbers), str(clock), folder]
        command = [sys.executable, str(WORKER), *words]
        for kill in range(KILLS + 1):
            process = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None, env=environment)
            with anyio.fail_after(PATIENCE_S + len(parents)):
                if kill == KILLS:
                    killed = {path.name for path in scratch.iterdir()}
                    assert await process.wait() == 0
                    continue
                # Every other kill meets a submit that was accepted and not answered.
                unanswered = emulator.faults.add("submit", faults.Delay(1e9, accepted=True)) if kill % 2 else None
                enough = round(len(parents) * (kill + rng.random()) / (KILLS + 1)) + 1
                while len(emulator.predictions()) < enough or (unanswered is not None and not unanswered.spent):
                    assert process.returncode is None, "it ended before it was killed"
                    await anyio.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        rows = list(read_ledger(path))
        states = Counter(row.state.value for row in rows)
        counts = emulator.chaos_counts
        print(
            f"seed {SEED}: {FILMS} films, {len(parents)} clips, {KILLS} kills, {sum(counts.values())} faults, {states}"
        )
        check_films(rows, parents, emulator)
    assert {path.name for path in scratch.iterdir()} <= killed, "what was downloaded for frames was not removed"
    if saved:
        assert len(list((tmp_path / "out").glob("*.mp4"))) == states["downloaded"]
