"""Run films over a ledger, to be killed.

`python tree_worker.py LEDGER BASE_URL KEY FILMS SEED SLOTS RETRIES CLOCK FOLDER`, where CLOCK is the text of a
`SharedClock`. With an empty FOLDER, frames are taken of videos that are downloaded for it.
"""

from __future__ import annotations

import asyncio
import base64
import sys

from kling_async import Job, KlingSession, LastFrame, Level
from support.pictures import png
from support.shared_clock import SharedClock
from support.trees import trees

PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()


async def main() -> None:
    ledger, base_url, key, films, seed, slots, retries, clock, folder = sys.argv[1:]
    clips = {
        name: Job(prompt=name, image=PICTURE if parent is None else LastFrame(parent))
        for name, parent in trees(int(films), int(seed)).items()
    }
    async with (
        KlingSession(
            key,
            base_url=base_url,
            ledger=ledger,
            clock=SharedClock.of(clock),
            level=Level("test", 1_000_000, int(slots)),
            retry_failed=int(retries),
            sole_user=True,
        ) as kling,
        kling.batch(clips, name="films", save_to=folder or None) as batch,
    ):
        async for outcome in batch:
            print(outcome.key, outcome.ok, outcome.error, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
