"""Outputs on the local disk or in an object store: complete and checked, or not there at all."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from kling_async.errors import StorageError

from ._download import Download
from ._outputs import Outputs
from ._targets import FileTarget, Target
from .naming import Fields, target_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.clock import Clock
    from kling_async._core.prediction import SavedFile
    from kling_async._core.transport import Transport

__all__ = ["Fields", "Outputs", "Target", "save_output", "target_path"]


async def save_output(
    transport: Transport,
    url: str,
    target: os.PathLike[str] | Target,
    clock: Clock,
    *,
    attempts: int = 5,
    rng: Callable[[], float] = random.random,
    created_at: float | None = None,
) -> SavedFile:
    """Download an output to `target`.

    The bytes go to a temporary file, which takes its name only when they are all there. A name is taken once: a file
    that is there already with the same content stays, and beside one with other content the output is saved under a
    name with its digest. A transfer that was cut goes on where it stopped. Whatever ends it early, cancellation
    included, the temporary file is removed.

    Args:
        transport: Sends; no Authorization goes with the request.
        url: Where the output is.
        target: The file, whose folder is made, or what `Outputs.target` says. What is saved as `.mp4` must be an MP4.
        clock: Waits between attempts.
        attempts: Requests at most, all in all.
        rng: Draws the jitter of the pauses from [0, 1).
        created_at: When the prediction was made, seconds since the epoch, as far as it is known: what is not there
            after 7 days has expired, before that it may be late.

    Returns:
        Where it is now, with its length and SHA-256.

    Raises:
        OutputGoneError: It has expired.
        StorageError: It could not be downloaded, checked or written; `advice` says what to do.
    """
    goal: Target = FileTarget(Path(target)) if isinstance(target, os.PathLike) else target
    part = goal.part()
    try:
        await anyio.to_thread.run_sync(part.open)
        await Download(
            transport=transport,
            url=url,
            part=part,
            clock=clock,
            attempts=attempts,
            rng=rng,
            created_at=created_at,
        ).run()
        return await goal.keep(part)
    except OSError as error:
        raise StorageError(
            f"cannot write {part.label}: {error.strerror or error}",
            target=part.label,
            advice="make room or choose another folder; saving again downloads the output without paying again",
        ) from error
    finally:
        # On its way before anything is awaited, and shielded twice: anyio's scope keeps out anyio's cancellation,
        # asyncio's shield a second `task.cancel()`.
        removal = asyncio.get_running_loop().run_in_executor(None, part.discard)
        with anyio.CancelScope(shield=True):
            await asyncio.shield(removal)
