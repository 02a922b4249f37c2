"""Make `hashed_keys.db` with the code of the version before jobs were called after their pictures (identity rule 2).

Run once, with a copy of that version on the path before everything else:

    PYTHONPATH=<copy of that version>:tests python tests/resume/data/make_hashed_keys.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path

from kling_async import KlingSession
from kling_async._core.content import IDENTITY_VERSION
from kling_async.emulator import Emulator
from support.first_release import clock
from support.hashed_keys import FOLDER, HASHED_KEYS, LIST, folder_jobs, list_jobs


async def make(path: Path) -> None:
    async with Emulator(clock=clock(), profile="tiny", timing=1.0, downloads=False, level="gold") as emulator:
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            async with KlingSession(
                emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, ledger=path, level="gold"
            ) as kling:
                for name, jobs in ((LIST, list_jobs(Path(folder))), (FOLDER, folder_jobs(Path(folder)))):
                    async with kling.batch(jobs, name=name, seen="pay") as batch:
                        assert all([outcome.ok async for outcome in batch])
        assert len(emulator.charges()) == 5


def main() -> None:
    if IDENTITY_VERSION != 2:
        sys.exit("this is not that version")
    HASHED_KEYS.unlink(missing_ok=True)
    asyncio.run(make(HASHED_KEYS))
    connection = sqlite3.connect(HASHED_KEYS, isolation_level=None)
    # In small pages.
    for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA page_size = 512", "VACUUM", "PRAGMA journal_mode = WAL"):
        connection.execute(statement)
    connection.close()


if __name__ == "__main__":
    main()
