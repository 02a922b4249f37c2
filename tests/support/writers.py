"""A process that writes a ledger until it is ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import asyncio, sys
from kling_async.ledger import Content, Entry, SQLiteLedger, State

async def main():
    ledger = SQLiteLedger(sys.argv[1])
    await ledger.open()
    print("open", flush=True)
    number = 0
    while True:
        await ledger.claim("b", str(number), content=Content("d"), model="m", at=0.0)
        await ledger.record(Entry(batch="b", key=str(number), state=State.INTENT, at=1.0))
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    """Start a process that prints the key of each intent once it is recorded; return when its ledger is open."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process
