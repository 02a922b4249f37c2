"""Example: a film of three clips, each from the last frame of the one before.

`python -m kling_async.examples.film face.png` needs the extra `film`. The same call again goes on after a crash.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from kling_async import Job, KlingSession, LastFrame, Outcome, join


async def main(picture: Path, out: Path) -> None:
    """Make the clips, and join them."""
    shots = {
        "dawn": Job(image=picture, prompt="Mist lifts over the bay"),
        "sail": Job(image=LastFrame("dawn"), prompt="A boat crosses, pan right"),
        "night": Job(image=LastFrame("sail"), prompt="Lights come on"),
    }
    clips: dict[str, Path] = {}
    failed: list[Outcome] = []
    async with (
        # The ledger has every paid id. Keep it: with it, the same call pays for nothing twice.
        KlingSession(ledger=out / "run.db") as kling,
        kling.batch(shots, name="bay", save_to=out) as batch,
    ):
        async for outcome in batch:  # a clip that fails skips those that continue it
            print(outcome.key, outcome.saved or outcome.error)  # noqa: T201 -- addressed to the user
            if outcome.saved:
                clips[outcome.key] = outcome.saved.path
            else:
                failed.append(outcome)
    if failed:
        raise SystemExit(f"no film without {failed[0].key}: {failed[0].error}")
    film = await join([clips[key] for key in shots], out / "bay.mp4")
    print(f"{film.path}: {film.seconds:.1f} s")  # noqa: T201 -- addressed to the user


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m kling_async.examples.film")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(given.picture, given.out))
