"""Files that hold prompts are made for their owner only, and existing ones keep their modes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kling_async.ledger import Content, SQLiteLedger
from kling_async.results import Format, export

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="only POSIX has modes"),
]

OF_A_LEDGER = ("", "-wal", "-shm", ".lock")
"""Suffixes of a ledger's files while it is open."""


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def add_job(ledger: SQLiteLedger, key: str) -> None:
    await ledger.claim("", key, content=Content('{"prompt": "She turns"}'), model="kling-v2.1-pro", at=1.0)


def modes(ledger: Path) -> list[int]:
    return [mode(ledger.with_name(ledger.name + suffix)) for suffix in OF_A_LEDGER]


async def test_new_ledger_is_for_its_owner_only(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "new" / "run.db")
    await ledger.open()
    await add_job(ledger, "one")
    assert modes(ledger.path) == [0o600] * 4
    await ledger.aclose()


@pytest.mark.parametrize("given", [0o644, 0o660])
async def test_existing_ledger_keeps_its_mode(tmp_path: Path, given: int) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    ledger.path.touch()
    ledger.path.chmod(given)
    await ledger.open()
    await add_job(ledger, "one")
    assert modes(ledger.path) == [given] * 4
    await ledger.aclose()


@pytest.mark.parametrize("given", [0o600, 0o640])
async def test_restored_ledger_has_the_mode_that_it_had(tmp_path: Path, given: int) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    ledger.path.touch()
    ledger.path.chmod(given)
    await ledger.open()
    await add_job(ledger, "one")
    ledger.path.unlink()
    await add_job(ledger, "two")
    assert modes(ledger.path) == [given] * 4
    await ledger.aclose()


async def test_results_are_for_their_owner_only_unless_they_exist(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await add_job(ledger, "one")
    await ledger.aclose()
    for expected in (0o600, 0o644):
        written = [part for each in export(ledger.path, tmp_path, formats=list(Format)) for part in files_of(each.path)]
        assert len(written) == len(Format)
        assert {mode(path) for path in written} == {expected}
        for path in written:
            path.chmod(0o644)


def files_of(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]
