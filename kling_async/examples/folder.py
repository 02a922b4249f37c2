"""Example: a video of every picture in a folder, within a budget; the same call again goes on after a crash.

`python -m kling_async.examples.folder photos/ --budget 25`
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from kling_async import Job, KlingSession


def jobs_of(pictures: Path) -> dict[str, Job]:
    """Return a job for every picture, by the name of its file."""
    return {
        picture.stem: Job(model="kling-v2.1-pro", image=picture, prompt="Slow push-in, soft light")
        for picture in sorted(pictures.iterdir())
        if picture.suffix.lower() in {".jpg", ".jpeg", ".png"}
    }


async def main(jobs: dict[str, Job], out: Path, budget: float) -> int:
    """Make the videos, and return how many jobs have none."""
    failed = 0
    # The ledger has every paid id. Keep it: with it, the same call pays for nothing twice.
    async with KlingSession(level="silver", ledger=out / "run.db") as kling:
        async with kling.batch(jobs, name="folder", save_to=out, budget=budget) as batch:
            async for outcome in batch:  # as they complete
                failed += not outcome.ok
                print(outcome.key, outcome.saved or outcome.error)  # noqa: T201 -- addressed to the user
        print(batch.statistics())  # noqa: T201 -- addressed to the user
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m kling_async.examples.folder")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--budget", type=float, default=25, help="USD")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    raise SystemExit(1 if asyncio.run(main(jobs_of(given.pictures), given.out, given.budget)) else 0)
