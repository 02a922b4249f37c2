"""Run one batch with a ledger under resource limits: `python limited.py LEDGER BASE_URL KEY JOBS`.

Prints a line of JSON per outcome. If the session cannot be opened, prints the error and exits with status 3.
`--file-size BYTES` limits the size of written files; `--unprivileged` enforces file permissions even for root.
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


def drop_capabilities() -> None:
    """Drop all capabilities with `capset(2)`, so that file permissions apply to root as well."""
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(version_3, no_capabilities):
        raise OSError(ctypes.get_errno(), "capset")


async def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("ledger", "base_url", "key", "jobs"):
        parser.add_argument(name)
    parser.add_argument("--file-size", type=int)
    parser.add_argument("--unprivileged", action="store_true")
    options = parser.parse_args()
    kling = KlingSession(
        options.key,
        base_url=options.base_url,
        ledger=options.ledger,
        level=Level("test", 1_000_000, 4),
        rate_limiter=NoLimit(),
        watch=WatchPolicy.fixed(0.1),
        grace=0.3,
    )
    jobs = ((f"job-{number}", Job(prompt=f"number {number}", image=PICTURE)) for number in range(int(options.jobs)))
    if options.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_size, options.file_size))
    if options.unprivileged:
        drop_capabilities()
    try:
        async with kling, kling.batch(jobs, name="limited", window=8) as batch:
            async for outcome in batch:
                error = None if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}"
                print(json.dumps({"key": outcome.key, "error": error}), flush=True)
    except LedgerError as error:
        print(f"LedgerError: {error}", flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
