"""Make the ledgers of pictures that earlier versions encoded otherwise, each with the code of its version.

Run once for each identity rule, with a clone of a version that began batches by it on the path before everything else:

    PYTHONPATH=<clone of that version>:tests python tests/resume/data/make_former_pictures.py
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from kling_async import KlingSession
from kling_async._core.content import IDENTITY_VERSION
from kling_async.emulator import Emulator
from support.former_pictures import BATCH, LEDGERS, jobs


async def pay(path: Path) -> None:
    given = await jobs()
    async with (
        Emulator(profile="tiny", timing=0.01, downloads=False, level="gold") as emulator,
        KlingSession(
            emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, ledger=path, level="gold"
        ) as kling,
        kling.batch(given, name=BATCH) as batch,
    ):
        outcomes = [outcome async for outcome in batch]
        assert all(outcome.ok for outcome in outcomes), outcomes
        assert len(emulator.charges()) == len(given)


def main() -> None:
    path = LEDGERS[IDENTITY_VERSION]
    path.unlink(missing_ok=True)
    asyncio.run(pay(path))
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("journal_mode = DELETE", "page_size = 512"):
        connection.execute(f"PRAGMA {statement}")
    connection.execute("VACUUM")
    connection.close()


if __name__ == "__main__":
    main()
