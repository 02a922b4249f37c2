"""The emulator at the end of a line, in a process of its own.

    python benchmarks/_line_server.py '{"network": "wan", "level": "gold", "speed": 2.0}'

It prints its URL, key and time as JSON, and, once its standard input is closed, what happened.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from kling_async.emulator import Emulator, Timing

SECONDS = 5
"""Length of every video."""


def seconds_of(_: str, inputs: Mapping[str, object]) -> float:
    """Return the seconds of a prediction: those of its prompt, so that all clients have the same."""
    return sum(Timing().draw(random.Random(str(inputs["prompt"])), SECONDS))


async def main(settings: dict[str, Any]) -> None:
    settings = {"timing": seconds_of} | settings
    async with Emulator(
        profile="tiny", balance=10**6, storage_bytes=2**32, seed=1, downloads=False, **settings
    ) as emulator:
        print(json.dumps({"url": emulator.base_url, "key": emulator.api_key, "now": emulator.clock.now()}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        submits = [record.status for record in emulator.requests if record.route == "submit"]
        tickets = [record.at for record in emulator.requests if record.route == "upload_ticket"]
        found = {
            "spans": sorted((one.created_at, one.ends_at) for one in emulator.predictions()),
            "uploading_since": min(tickets, default=0.0),
            "looks": emulator.counts.get("result", 0) + emulator.counts.get("list", 0),
            "refused": submits.count(HTTPStatus.TOO_MANY_REQUESTS),
            "paid_twice": len(emulator.double_paid(by=lambda charge: charge.prompt)),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
