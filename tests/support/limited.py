"""A process that runs one batch over a ledger, under limits: `python limited.py LEDGER BASE_URL KEY JOBS`.

A line of JSON per outcome; 3 and the error when the session cannot be opened. `--file-size BYTES` limits the length of
files that it writes; `--unprivileged` holds it to the permissions of files, which root is not held to otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import ctypes
import json
import resource
import sys

from kling_async import Job, KlingSession, LedgerError, Level, NoLimit, WatchPolicy
from support.pictures import png

PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()


def give_up_privileges() -> None:
    """Be held to the permissions of files, as root too: `capset(2)` with nothing in it."""
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(version_3, nothing):
        raise OSError(ctypes.get_errno(), "capset")


async def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("ledger", "base_url", "key", "jobs"):
        parser.add_argument(name)
    parser.add_argument("--file-size", type=int)
    parser.add_argument("--unprivileged", action="store_true")
    given = parser.parse_args()
    kling = KlingSession(
        given.key,
        base_url=given.base_url,
        ledger=given.ledger,
        level=Level("test", 1_000_000, 4),
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(0.1),
        grace=0.3,
    )
    asked = ((f"job-{number}", Job(prompt=f"number {number}", image=PICTURE)) for number in range(int(given.jobs)))
    if given.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_size, given.file_size))
    if given.unprivileged:
        give_up_privileges()
    try:
        async with kling, kling.batch(asked, name="limited", window=8) as batch:
            async for outcome in batch:
                error = None if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}"
                print(json.dumps({"key": outcome.key, "error": error}), flush=True)
    except LedgerError as error:
        print(f"LedgerError: {error}", flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
