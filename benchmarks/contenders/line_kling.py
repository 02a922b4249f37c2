"""kling_async with default settings on the account's level: a batch of pictures, saved to a folder."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kling_async import Job, KlingSession
from kling_async.emulator import ScaledClock

if TYPE_CHECKING:
    from _line_client import LineLoad


class EmulatorClock(ScaledClock):
    """The clock of an emulator in another process."""

    def __init__(self, load: LineLoad) -> None:
        super().__init__(load.speed)
        self._offset = load.now - load.started * load.speed

    def now(self) -> float:
        return time.time() * self.speed + self._offset


async def work(load: LineLoad) -> None:
    jobs = (
        Job(
            model="kling-v2.1-pro",
            prompt=f"number {number}",
            image=picture if picture.startswith("https:") else Path(picture),
        )
        for number, picture in enumerate(load.pictures)
    )
    async with (
        KlingSession(load.key, base_url=load.url, level=load.level, clock=EmulatorClock(load)) as kling,
        kling.batch(jobs, save_to=load.outputs) as batch,
    ):
        async for outcome in batch:
            if outcome.error is not None:
                raise outcome.error


def run(load: LineLoad) -> None:
    asyncio.run(work(load))
