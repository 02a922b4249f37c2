"""Example: a video of one picture.

`python -m kling_async.examples.script face.png "She turns and smiles"` pays for a video with every call.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from kling_async import KlingError, KlingSession


async def main(picture: Path, prompt: str, folder: Path) -> None:
    """Generate, and save."""
    async with KlingSession() as kling:  # the key is in WAVESPEED_API_KEY
        prediction = await kling.generate(image=picture, prompt=prompt)
        saved = await kling.save(prediction, folder)
    print(f"{saved.path}: {saved.bytes:,} bytes")  # noqa: T201 -- addressed to the user


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m kling_async.examples.script")
    parser.add_argument("picture", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    try:
        asyncio.run(main(given.picture, given.prompt, given.out))
    except KlingError as error:
        # In one line: what happened, whether money was spent, what to do next.
        raise SystemExit(str(error)) from None
