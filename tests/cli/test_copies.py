"""Commands with a ledger file that was copied without its `-wal` file."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from anyio.to_thread import run_sync

from kling_async import LedgerError
from kling_async.ledger import Content, Entry, SQLiteLedger, State
from support.cli import Cli

pytestmark = pytest.mark.anyio


async def test_incomplete_copy_is_shown_and_opened_only_when_declared_complete(cli: Cli) -> None:
    ledger = SQLiteLedger(cli.folder / "run.db")
    await ledger.open()
    await ledger.claim("b", "k", content=Content("{}"), model="m", at=1.0)
    await ledger.record(Entry(batch="b", key="k", state=State.INTENT, at=2.0, attempt=1))
    copied = SQLiteLedger(shutil.copy(ledger.path, cli.folder / "alone.db"))
    await ledger.aclose()

    async def command(*words: str) -> subprocess.CompletedProcess[str]:
        return await run_sync(lambda: cli(*words))

    for words in (("status", "alone.db"), ("status", "alone.db", "--json"), ("ledger", "alone.db")):
        shown = await command(*words)
        assert shown.returncode == 0
        assert "alone.db-wal beside it, which has the latest steps, is missing" in shown.stderr
    assert json.loads((await command("status", "alone.db", "--json")).stdout)["writer"] is None
    whole = await command("status", "run.db")
    assert (whole.returncode, whole.stderr) == (0, "")

    asked = await command("ledger", "alone.db", "declare-complete")
    assert (asked.returncode, "confirm with --yes" in asked.stderr) == (2, True)
    assert "alone.db has no jobs" in asked.stderr
    assert "is paid for again by the next run" in asked.stderr
    with pytest.raises(LedgerError, match="is missing"):
        await copied.open()
    declared = await command("ledger", "alone.db", "declare-complete", "--yes")
    assert (declared.returncode, "alone.db can be opened again" in declared.stdout) == (0, True)
    await copied.open()
    await copied.aclose()
    needless = await command("ledger", "alone.db", "declare-complete", "--yes")
    assert (needless.returncode, "lacks no file" in needless.stderr) == (2, True)
