"""Run films over a ledger, to be killed: `python film_worker.py LEDGER BASE_URL KEY FILMS LENGTH`.

With KLING_DIES=take it kills itself when the first clip has ended and a frame of it is to be taken, with
KLING_DIES=send right before the first paid request of a clip that continues another.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from typing import Any

from kling_async import Job, KlingSession, LastFrame, Level, NoLimit, WatchPolicy
from kling_async._session.videos import Frames
from kling_async._submission.pending import PendingSubmission
from kling_async._submission.submitter import Submitter
from support.pictures import png

PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()


def clips(films: int, length: int) -> dict[str, Job]:
    """Return films of clips, each of which continues the one before it."""
    return {
        f"f{film}-{number}": Job(
            prompt=f"f{film}-{number}", image=LastFrame(f"f{film}-{number - 1}") if number else PICTURE
        )
        for film in range(films)
        for number in range(length)
    }


def dies(when: str) -> None:
    """Let this process kill itself at a moment between the end of a clip and the beginning of the next."""
    send = Submitter.attempt

    async def take(self: Frames, *_: object) -> bytes:
        del self
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    async def attempt(self: Submitter, pending: PendingSubmission, number: int) -> Any:
        if pending.job.parents:
            os.kill(os.getpid(), signal.SIGKILL)
        return await send(self, pending, number)

    if when == "take":
        Frames.take = take  # type: ignore[method-assign,assignment]  # of this process alone
    elif when == "send":
        Submitter.attempt = attempt  # type: ignore[method-assign,assignment]  # as above


async def main() -> None:
    dies(os.environ.get("KLING_DIES", ""))
    ledger, base_url, key, films, length = sys.argv[1:]
    async with (
        KlingSession(
            key,
            base_url=base_url,
            ledger=ledger,
            level=Level("test", 1_000_000, 6),
            rate_limiter=NoLimit(),
            watch=WatchPolicy.fixed(0.2),
            grace=0.5,
            sole_user=True,
        ) as kling,
        kling.batch(clips(int(films), int(length)), name="films") as batch,
    ):
        async for outcome in batch:
            print(outcome.key, outcome.ok, outcome.error, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
