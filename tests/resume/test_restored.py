"""A ledger that was restored from a backup: what the account has and the ledger lacks is noticed where it can be."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from kling_async import Job, KlingError, UnknownPredictionError
from kling_async.emulator import ScaledClock
from kling_async.ledger import SQLiteLedger
from kling_async.testing import LoopClock
from support.service import IMAGE, Service, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.promise(1)]


def jobs(count: int) -> dict[str, Job]:
    return {f"k{number}": Job(prompt=f"number {number}", image=IMAGE) for number in range(count)}


async def run(service: Service, path: Path, count: int, **options: Any) -> dict[str, KlingError | None]:
    async with (
        open_session(service, ledger=SQLiteLedger(path), grace=1) as kling,
        kling.batch(jobs(count), name="b", **options) as batch,
    ):
        return {outcome.key: outcome.error async for outcome in batch}


async def restored(tmp_path: Path, *, echo: bool) -> tuple[Service, Path]:
    """Return a service that made four videos, and a ledger that knows of two."""
    service = Service(
        clock=cast("LoopClock", ScaledClock(100)),
        latency=0.001,
        seconds=10,
        echo=(lambda inputs: inputs) if echo else None,
    )
    path, backup = tmp_path / "run.db", tmp_path / "backup.db"
    await run(service, path, 2)
    shutil.copy(path, backup)
    await run(service, path, 4)
    assert len(service.paid) == 4
    return service, backup


async def test_jobs_that_the_account_has_already_stop_the_run(tmp_path: Path) -> None:
    service, backup = await restored(tmp_path, echo=True)
    errors = await run(service, backup, 5)
    assert {key for key, error in errors.items() if error is None} == {"k0", "k1"}
    assert any(isinstance(error, UnknownPredictionError) for error in errors.values())
    assert len(service.paid) <= 5
    assert [body["prompt"] for body in service.paid[4:]] in ([], ["number 4"])
    errors = await run(service, backup, 4, seen="pay")
    assert set(errors.values()) == {None}


async def test_unknown_predictions_without_input_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service, backup = await restored(tmp_path, echo=False)
    with caplog.at_level(logging.WARNING):
        await run(service, backup, 4)
    assert "the account has 2 predictions that are newer than all of this ledger's" in caplog.text
    assert len(service.paid) == 6, "nobody can know"


async def test_newest_ledger_is_not_suspected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service, _ = await restored(tmp_path, echo=True)
    lists = service.lists
    with caplog.at_level(logging.WARNING):
        errors = await run(service, tmp_path / "run.db", 6)
    assert set(errors.values()) == {None}
    assert "newer than all" not in caplog.text
    assert service.lists == lists + 1, "one read of one page"
    assert len(service.paid) == 6
