"""Make `states.db`, `gate.db` and `face.png` with the code of the first release (ledger tables of version 1).

Run once, with a clone of the first release on the path before everything else:

    PYTHONPATH=<clone of the first release>:tests python tests/resume/data/make.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

from PIL import Image

from kling_async import KlingSession
from kling_async._core.content import content_of
from kling_async.emulator import Emulator
from kling_async.ledger import Entry, SQLiteLedger, State
from support.first_release import BATCH, GATE, PICTURE, START, STATES, clock, gate_jobs, job

GIVEN_UP = "given up by hand; it may have been paid for, and is not sent again"
WHOSE = "it was paid for; which of the candidates is its own is not known; candidates: id-1, id-2"
WHETHER = "it is not known whether it was paid for; candidates: "
SENT = (State.INTENT, State.SUBMITTED)
DOUBT = (State.INTENT, State.UNCERTAIN)
ROWS: dict[str, tuple[tuple[State, ...], str | None]] = {
    "pending": ((), None),
    "claimed": ((State.CLAIMED,), None),
    "intent": ((State.INTENT,), None),
    "submitted": (SENT, None),
    "completed": ((*SENT, State.COMPLETED), None),
    "downloaded": ((*SENT, State.COMPLETED, State.DOWNLOADED), None),
    "failed": ((*SENT, State.FAILED), "the service is busy"),
    "moderated": ((*SENT, State.FAILED), "the content is not allowed"),
    "expired": ((*SENT, State.EXPIRED), None),
    "rejected": ((State.INTENT, State.REJECTED), "no such parameter"),
    "skipped": ((State.SKIPPED,), "the balance is used up"),
    "uncertain": (DOUBT, "the connection was lost"),
    "whose": ((*DOUBT, State.UNCERTAIN), WHOSE),
    "whether": ((*DOUBT, State.UNCERTAIN), WHETHER + "id-3"),
    "whether-none": ((*DOUBT, State.UNCERTAIN), WHETHER + "none"),
    "given-up": ((*DOUBT, State.REJECTED), GIVEN_UP),
    "given-up-intent": ((State.INTENT, State.REJECTED), GIVEN_UP),
    # Sent a second time, after a failure.
    "resent": ((*SENT, State.FAILED, *SENT, State.COMPLETED), None),
}
CODES = {"failed": 5000, "moderated": 1200, "resent": 5000}


async def states(path: Path) -> None:
    ledger = SQLiteLedger(path)
    await ledger.open()
    for key, (steps, error) in ROWS.items():
        content = content_of(job(key), lambda _: "")
        at = START
        await ledger.claim(BATCH, key, content=content, model=job(key).model, at=at)
        for number, state in enumerate(steps):
            at += 10.0
            attempt = steps[: number + 1].count(State.INTENT)
            last = number + 1 == len(steps)
            await ledger.record(
                Entry(
                    batch=BATCH,
                    key=key,
                    state=state,
                    at=at,
                    attempt=attempt,
                    fingerprint=f"{number:032x}:{0:032x}" if state is State.INTENT else None,
                    cost=Decimal("0.45") if state is State.INTENT else None,
                    prediction_id=f"id-{key}-{attempt}" if state is State.SUBMITTED else None,
                    output=f"https://outputs.example/{key}.mp4" if state is State.COMPLETED else None,
                    code=CODES[key] if state is State.FAILED else None,
                    error=error if last else None,
                    path=f"/videos/{key}.mp4" if state is State.DOWNLOADED else None,
                    bytes=1000 if state is State.DOWNLOADED else None,
                    sha256="ab" * 32 if state is State.DOWNLOADED else None,
                )
            )
    # Outside of batches.
    at = START
    await ledger.claim("", "single", content=content_of(job("single"), lambda _: ""), model=job("single").model, at=at)
    for state, error in (*((state, None) for state in DOUBT), (State.REJECTED, GIVEN_UP)):
        await ledger.record(Entry(batch="", key="single", state=state, at=at, attempt=1, error=error))
    await ledger.aclose()


async def gate(path: Path) -> None:
    async with Emulator(clock=clock(), profile="tiny", timing=1.0, downloads=False, level="gold") as emulator:
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            jobs = gate_jobs(Path(folder))
            async with (
                KlingSession(
                    emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, ledger=path, level="gold"
                ) as kling,
                kling.batch(jobs, name=BATCH) as batch,
            ):
                outcomes = [outcome async for outcome in batch]
        assert all(outcome.ok for outcome in outcomes), outcomes
        assert len(emulator.charges()) == len(jobs)


def shrink(path: Path) -> None:
    """Store a database in small pages."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("journal_mode = DELETE", "page_size = 512"):
        connection.execute(f"PRAGMA {statement}")
    connection.execute("VACUUM")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def main() -> None:
    if hasattr(State, "ABANDONED"):
        sys.exit("this is not the first release")
    Image.new("RGB", (400, 300), (200, 120, 40)).save(PICTURE, "PNG")
    for path, make in ((STATES, states), (GATE, gate)):
        path.unlink(missing_ok=True)
        asyncio.run(make(path))
        shrink(path)


if __name__ == "__main__":
    main()
