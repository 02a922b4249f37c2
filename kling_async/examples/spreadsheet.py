"""Example: a spreadsheet of products in, videos named after their articles and a table of results out.

`python -m kling_async.examples.spreadsheet products.csv` takes columns `Article`, `Photo` and `Prompt`; `.xlsx` needs
the extra `xlsx`. All rows are checked before the first is sent; those with problems are left out, and listed.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from kling_async import KlingSession
from kling_async.manifest import read_manifest
from kling_async.results import Format, export

COLUMNS = {"key": "Article", "image": "Photo", "prompt": "Prompt"}


async def main(sheet: Path, out: Path) -> None:
    """Make the videos, and write `results.jsonl` beside them."""
    jobs = read_manifest(sheet, columns=COLUMNS, model="kling-v2.1-pro", skip_invalid=True)
    for problem in jobs.invalid:
        print("left out:", problem)  # noqa: T201 -- addressed to the user
    ledger = out / "run.db"
    async with (
        KlingSession(level="silver", ledger=ledger, fit=True) as kling,  # fit: WebP, HEIC, large pictures
        kling.batch(jobs, name=sheet.stem, save_to=out) as batch,
    ):
        async for outcome in batch:
            print(outcome.key, outcome.saved or outcome.error)  # noqa: T201 -- addressed to the user
    # Other columns of the sheet are in the results as `labels`.
    for written in export(ledger, out, [Format.RESULTS, Format.ERRORS]):
        print(f"{written.path}: {written.rows} rows")  # noqa: T201 -- addressed to the user


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m kling_async.examples.spreadsheet")
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(given.sheet, given.out))
