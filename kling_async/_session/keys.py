"""Keys of jobs: the caller's own, or a hash of the content with a counter for duplicates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import attrs

from kling_async._core.content import Content, Identity, content_of, same_but_for_signatures
from kling_async._core.job_key import DERIVED_KEY_LENGTH
from kling_async._images.preflight import sha256
from kling_async._images.uploads import digest
from kling_async.errors import InvalidJobError, KeyReusedError, Problem

if TYPE_CHECKING:
    from kling_async._core.job import Job
    from kling_async._core.states import Row
    from kling_async.ledger import Ledger

MAX_KNOWN_FILES = 50_000
"""Files whose digests are kept, in about 25 MB; any others are read each time."""


class FileDigests:
    """Digests of files that are looked at several times, such as by a command before it asks, and by its batch.

    A file is read again if it was replaced or written meanwhile. What is sent of it is compared with the digest anyway.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str | int, ...], str] = {}

    def of(self, path: Path, field: str) -> str:
        """Return the SHA-256 of a file in hex.

        Args:
            path: The file.
            field: Its place in a job, for errors.

        Raises:
            InvalidJobError: It cannot be read.
        """
        try:
            found = path.stat()
        except (OSError, ValueError):
            # Reading it says why.
            return sha256(path, field)
        version = (str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._known.get(version)
        if known is None:
            known = sha256(path, field)
            if len(self._known) < MAX_KNOWN_FILES:
                self._known[version] = known
        return known


async def read_content(job: Job, *, identity: Identity, known: FileDigests | None = None) -> Content:
    """Return a job's content; files are read for their digests.

    Args:
        job: The job.
        identity: Identity of its batch.
        known: Digests of files that were read before; None to read all.

    Raises:
        InvalidJobError: A file cannot be read.
    """
    # By identity: hashing the bytes of a video takes time.
    digests: dict[int, str] = {}
    for place, file in job.files.items():
        if known is not None and isinstance(file, Path):
            digests[id(file)] = await anyio.to_thread.run_sync(known.of, file, place)
        else:
            digests[id(file)] = await digest(file, field=place)
    return content_of(job, lambda file: digests[id(file)], identity=identity)


class ContentReader:
    """Reads the contents of jobs, by the identity of their batch.

    Args:
        ledger: Records the identity of each batch.
        ignored: Parameters that the jobs of all batches ignore; None for those of each batch.

    Attributes:
        known: Digests of files that were read before; None to read all.
    """

    def __init__(self, ledger: Ledger, ignored: tuple[str, ...] | None = None) -> None:
        self.known: FileDigests | None = None
        self._ledger = ledger
        self._ignored = ignored
        self._identities: dict[str, Identity] = {}

    async def identity(self, batch: str) -> Identity:
        """Return the identity of a batch, recorded now if it is new.

        Raises:
            LedgerError: It cannot be read.
            ConfigurationError: The batch ignores other parameters.
        """
        identity = self._identities.get(batch)
        if identity is None:
            identity = self._identities[batch] = await self._ledger.identity(batch, ignored=self._ignored)
        return identity

    async def read(self, job: Job, batch: str) -> Content:
        """Return a job's content.

        Raises:
            InvalidJobError: An image file cannot be read.
            LedgerError: The identity of the batch cannot be read.
            ConfigurationError: The batch ignores other parameters.
        """
        return await read_content(job, identity=await self.identity(batch), known=self.known)


async def content_of_row(ledger: Ledger, batch: str, key: str, content: Content) -> Content | None:
    """Return a content as the ledger's job with its key identifies it; None if that is another job.

    Batches that were begun under an earlier identity rule tell jobs apart by the signatures in their URLs. The stored
    job shows whether that is all they differ in.
    """
    found = await ledger.find(batch, key)
    if found is None or not same_but_for_signatures(found[1], content, await ledger.identity(batch)):
        return None
    return attrs.evolve(content, digest=found[0].digest)


async def claim_job(ledger: Ledger, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
    """Claim a job in a ledger, and return its row; a new signature in a URL makes no other job of it.

    Raises:
        LedgerError: The ledger cannot be written.
        KeyReusedError: The key names a job with other content.
    """
    try:
        return await ledger.claim(batch, key, content=content, model=model, at=at)
    except KeyReusedError:
        same = await content_of_row(ledger, batch, key, content)
        if same is None:
            raise
    return await ledger.claim(batch, key, content=same, model=model, at=at)


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
            given: The caller's key, checked, or None.
            content: The job's content.
            position: Position of the job in the input, from 0.
        """
        key = content.digest[:DERIVED_KEY_LENGTH] if given is None else given
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
