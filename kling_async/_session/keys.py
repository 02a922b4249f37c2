"""Keys of jobs: the caller's own, or a hash of the content with a counter for duplicates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from kling_async._core.content import IDENTITY_VERSION, Content, content_of
from kling_async._images.uploads import digest
from kling_async.errors import InvalidJobError, Problem

if TYPE_CHECKING:
    from kling_async._core.job import Job
    from kling_async.ledger import Ledger

KEY_LENGTH = 16
"""Hex digits of the content hash that make a key."""


async def read_content(job: Job, *, identity: int = IDENTITY_VERSION) -> Content:
    """Return a job's content; image files are read for their digests.

    Args:
        job: The job.
        identity: Version of the rule by which its batch makes keys and digests.

    Raises:
        InvalidJobError: An image file cannot be read.
    """
    digests = {image: await digest(image) for image in (job.image, job.end_image) if image is not None}
    return content_of(job, digests.__getitem__, identity=identity)


class ContentReader:
    """Reads the contents of jobs, by the identity rule of their batch.

    Args:
        ledger: Records the rule of each batch.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._identities: dict[str, int] = {}

    async def read(self, job: Job, batch: str) -> Content:
        """Return a job's content.

        Raises:
            InvalidJobError: An image file cannot be read.
            LedgerError: The rule of the batch cannot be read.
        """
        identity = self._identities.get(batch)
        if identity is None:
            identity = self._identities[batch] = await self._ledger.identity(batch)
        return await read_content(job, identity=identity)


@attrs.frozen
class AssignedKey:
    """The key of one job.

    Attributes:
        key: The key, unique within the batch.
        duplicate: The error of a job whose caller gave it the key of an earlier job; None otherwise.
    """

    key: str
    duplicate: InvalidJobError | None = None


class KeyAssigner:
    """Assigns the keys of one batch, in the order of its input.

    Without a key, a job gets a hash of its content, and a counter for duplicates, so that inserting rows changes no
    other key.

    Args:
        max_remembered: Keys that are remembered for finding duplicates. Beyond that many, duplicates of new content
            are told apart by their position, so that memory does not follow the length of the input.
    """

    def __init__(self, max_remembered: float = math.inf) -> None:
        self._max_remembered = max_remembered
        # By the hash of the key: 100 bytes less for each than the key itself.
        self._counts: dict[int, int] = {}

    def assign(self, given: str | None, content: Content, position: int) -> AssignedKey:
        """Return the key of the next job.

        Args:
            given: The caller's key, or None.
            content: The job's content.
            position: Position of the job in the input, from 0.
        """
        key = given or content.digest[:KEY_LENGTH]
        count = self._counts.get(hash(key), 0) + 1
        if count > 1 or len(self._counts) < self._max_remembered:
            self._counts[hash(key)] = count
        elif given is None:
            return AssignedKey(f"{key}-at-{position}")
        if count == 1:
            return AssignedKey(key)
        if given is None:
            return AssignedKey(f"{key}-{count}")
        problem = Problem("key", f"expected a key of its own, got {given!r}, which an earlier job of the batch has")
        return AssignedKey(f"{given}-{count}", InvalidJobError([problem]))
