"""Storage of outputs on the local disk or in an object store; a file is complete and checked, or absent."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from kling_async._core.http import MAX_OUTPUT_BYTES
from kling_async.errors import StorageError

from ._download import Download
from ._outputs import Outputs
from ._targets import FileTarget, Target
from .naming import Fields, suffix_of, target_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.clock import Clock
    from kling_async._core.prediction import SavedFile
    from kling_async._core.transport import Transport
    from kling_async._turns import Turns

__all__ = ["Fields", "Outputs", "Target", "save_output", "suffix_of", "target_path"]


async def save_output(
    transport: Transport,
    url: str,
    target: os.PathLike[str] | Target,
    clock: Clock,
    *,
    deadline: float = math.inf,
    turns: Turns | None = None,
    rng: Callable[[], float] = random.random,
    created_at: float | None = None,
    max_bytes: int = MAX_OUTPUT_BYTES,
) -> SavedFile:
    """Download an output to `target`.

    The bytes go to a temporary file, which is renamed when it is complete. An existing file with the same content is
    kept; next to one with other content, the output is saved under a name with its digest. A broken transfer resumes
    where it stopped. If anything ends the call early, cancellation included, the temporary file is removed.

    Every answer but a complete MP4 is followed by another attempt, after growing pauses: refusals and pages of captive
    portals pass as well. A transfer below 16 KiB/s on average over a minute goes on after others that wait for its
    slot. Two answers are final, each when it was given three times over a minute or more: that an output which is past
    its lifetime is not found, and the same incomplete MP4.

    Args:
        transport: Transport; the request carries no Authorization header.
        url: URL of the output.
        target: Path of the file, whose folder is created, or the result of `Outputs.target`. A `.mp4` must be an MP4.
        clock: Clock for the waits between attempts.
        deadline: Seconds without progress, from the first attempt or the last new byte, after which it is given up; in
            any case after what is left of the 7 days for which the service keeps an output.
        turns: Limits how many outputs are received and stored at once; a pause between two attempts occupies none.
        rng: Source of jitter, uniform in [0, 1).
        created_at: Creation time of the prediction in seconds since the epoch, or None if unknown: an output that is
            not found has expired after 7 days, before that it may be late.
        max_bytes: Greatest size of the output. Where the host announces less, that is the greatest.

    Returns:
        The saved file with its length and SHA-256.

    Raises:
        OutputGoneError: The output has expired.
        StorageError: It is larger than `max_bytes`, or could not be downloaded or written; the message counts every
            distinct answer.
    """
    destination: Target = FileTarget(Path(target)) if isinstance(target, os.PathLike) else target
    part = destination.part()
    download = Download(
        transport=transport,
        url=url,
        part=part,
        clock=clock,
        rng=rng,
        created_at=created_at,
        deadline=deadline,
        max_bytes=max_bytes,
    )
    try:
        while True:
            asked = clock.monotonic()
            async with contextlib.nullcontext() if turns is None else turns.take() as turn:
                download.postpone(clock.monotonic() - asked)
                before = part.size
                delay = await download.attempt()
                if turn is not None and delay is None:
                    turn.size = max(part.size - before, 1)
                elif turn is not None and download.crowded:
                    turn.record_refused()
                if delay is None:
                    return await destination.keep(part)
            await clock.sleep(delay)
    except OSError as error:
        raise StorageError(
            f"cannot write {part.label}: {error.strerror or error}",
            target=part.label,
            advice="make room or choose another folder; saving again downloads the output without paying again",
        ) from error
    finally:
        # Started before anything is awaited, and shielded twice: the scope against anyio's cancellation, asyncio.shield
        # against a second `task.cancel()`.
        removal = asyncio.get_running_loop().run_in_executor(None, part.discard)
        with anyio.CancelScope(shield=True):
            await asyncio.shield(removal)
