"""Keys of jobs: the caller's own, or a hash of the content with a counter for duplicates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio.to_thread
import attrs

from kling_async._core.content import Content, Identity, content_of, same_but_for_signatures
from kling_async._core.job_key import DERIVED_KEY_LENGTH
from kling_async._core.video_frames import VideoFrame
from kling_async._images.preflight import sha256
from kling_async._images.uploads import digest
from kling_async.errors import InvalidJobError, KeyReusedError, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from kling_async._core.images import Image
    from kling_async._core.job import Job
    from kling_async._core.states import Row
    from kling_async.ledger import Ledger

MAX_KNOWN_FILES = 50_000
"""Files whose digests are kept, in about 25 MB; any others are read each time."""

DigestOf: TypeAlias = "Callable[[str], Awaitable[str | None]]"
"""Returns the digest of the content of a job of the batch by its key; None for a key that is not known (yet)."""


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


MAX_DIGESTS = 100_000
"""Digests of jobs of one input that later ones may continue, where it is not known which of them do."""


class Digests:
    """Digests of the jobs of an input that is read in order, for those that continue them.

    Args:
        wanted: Keys of the jobs that others continue; None if they are not known.
    """

    def __init__(self, wanted: Container[str] | None = None) -> None:
        self._wanted = wanted
        self._digests: dict[str, str] = {}

    async def of(self, key: str) -> str | None:
        """Return the digest of a job by its key; None if none with this key was read."""
        return self._digests.get(key)

    def add(self, key: str, content: Content) -> None:
        """Add a job that was read."""
        if self._wanted is None or key in self._wanted:
            self._digests[key] = content.digest
            if self._wanted is None and len(self._digests) > MAX_DIGESTS:
                del self._digests[next(iter(self._digests))]


async def read_content(
    job: Job, *, identity: Identity, known: FileDigests | None = None, digest_of: DigestOf | None = None
) -> Content:
    """Return a job's content; files are read for their digests.

    Args:
        job: The job.
        identity: Identity of its batch.
        known: Digests of files that were read before; None to read all.
        digest_of: Returns the digests of the jobs that its pictures are frames of; None outside of batches.

    Raises:
        InvalidJobError: A file cannot be read, or it begins with a frame of an unknown job.
    """
    # By identity: hashing the bytes of a video takes time.
    digests: dict[int, str] = {}
    parents: dict[str, str] = {}
    sources = job.sources
    for place, source in sources.items():
        if not isinstance(source, VideoFrame):
            digests[id(source)] = await _digest_of_file(source, place, known)
        elif isinstance(source.of, Path):
            digests[id(source.of)] = await _digest_of_file(source.of, f"{place}.of", known)
        elif (parent := source.parent) is not None:
            found = None if digest_of is None else await digest_of(parent)
            if found is None:
                where = "in a batch" if digest_of is None else "before it in the same batch"
                raise InvalidJobError(
                    [Problem(f"{place}.of", f"expected the key of a job {where}, got {parent!r:.80}")]
                )
            parents[parent] = found
    return content_of(job, lambda file: digests[id(file)], identity=identity, parents=parents, sources=sources)


async def _digest_of_file(file: Image, place: str, known: FileDigests | None) -> str:
    """Return the digest of a file, or of an image that is no URL."""
    if known is not None and isinstance(file, Path):
        return await anyio.to_thread.run_sync(known.of, file, place)
    return await digest(file, field=place)


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

    async def read(self, job: Job, batch: str, digest_of: DigestOf | None = None) -> Content:
        """Return a job's content.

        Args:
            job: The job.
            batch: Name of its batch.
            digest_of: As in `read_content`.

        Raises:
            InvalidJobError: An image file cannot be read, or it begins with a frame of an unknown job.
            LedgerError: The identity of the batch cannot be read.
            ConfigurationError: The batch ignores other parameters.
        """
        return await read_content(job, identity=await self.identity(batch), known=self.known, digest_of=digest_of)


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

    def __contains__(self, key: str) -> bool:
        """Return whether a key was assigned, as far as keys are remembered."""
        return hash(key) in self._counts

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
