"""Storage of outputs on the local disk or in an object store; a file is complete and checked, or absent."""

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

    The bytes go to a temporary file, which is renamed when it is complete. An existing file with the same content is
    kept; next to one with other content, the output is saved under a name with its digest. A broken transfer resumes
    where it stopped. If anything ends the call early, cancellation included, the temporary file is removed.

    Args:
        transport: Transport; the request carries no Authorization header.
        url: URL of the output.
        target: Path of the file, whose folder is created, or the result of `Outputs.target`. A `.mp4` must be an MP4.
        clock: Clock for the waits between attempts.
        attempts: Maximum number of requests in total.
        rng: Source of jitter, uniform in [0, 1).
        created_at: Creation time of the prediction in seconds since the epoch, or None if unknown: a missing output
            has expired after 7 days, before that it may be late.

    Returns:
        The saved file with its length and SHA-256.

    Raises:
        OutputGoneError: The output has expired.
        StorageError: It could not be downloaded, checked or written; `advice` says what to do.
    """
    destination: Target = FileTarget(Path(target)) if isinstance(target, os.PathLike) else target
    part = destination.part()
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
        return await destination.keep(part)
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
