"""Keys of jobs: the caller's own, or a hash of the content with a counter for duplicates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import attrs

from kling_async._core.content import Content, Identity, content_of, name_of, same_but_for_signatures
from kling_async._core.job_key import key_or_problem
from kling_async._core.picture_names import folded, picture_name
from kling_async._core.states import State
from kling_async._images.uploads import digest
from kling_async.errors import InvalidJobError, KeyReusedError, Problem
from kling_async.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from kling_async._core.job import Job
    from kling_async._core.states import Row

KEY_LENGTH = 16
"""Hex digits of the content hash that make a key."""
HASH_BESIDE_NAME = 8
"""Hex digits of the content hash that follow the name of a picture."""


async def read_content(job: Job, *, identity: Identity) -> Content:
    """Return a job's content; files are read for their digests.

    Args:
        job: The job.
        identity: Identity of its batch.

    Raises:
        InvalidJobError: A file cannot be read.
    """
    # By identity: hashing the bytes of a video takes time.
    digests: dict[int, str] = {}
    for place, file in job.files.items():
        digests[id(file)] = await digest(file, field=place)
    return content_of(job, lambda file: digests[id(file)], identity=identity)


def is_derived(key: str, content: Content) -> bool:
    """Return whether a key is what a job is called whose caller gave it none: it is no name of its own."""
    name = name_of(content)
    hashed = [content.digest[:KEY_LENGTH]] if name is None else [content.digest[:KEY_LENGTH], _with_hash(name, content)]
    return key == name or any(key == one or key.startswith(f"{one}-") for one in hashed)


def _with_hash(name: str, content: Content) -> str:
    """Return the key of a job whose picture has a name that other jobs have, too."""
    return f"{name}-{content.digest[:HASH_BESIDE_NAME]}"


class ContentReader:
    """Reads the contents of jobs, by the identity of their batch.

    Args:
        ledger: Records the identity of each batch.
        ignored: Parameters that the jobs of all batches ignore; None for those of each batch.
    """

    def __init__(self, ledger: Ledger, ignored: tuple[str, ...] | None = None) -> None:
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
        return await read_content(job, identity=await self.identity(batch))


async def content_of_row(ledger: Ledger, batch: str, key: str, content: Content) -> Content | None:
    """Return a content as the ledger's job with its key identifies it; None if that is another job.

    Batches that were begun under an earlier identity rule tell jobs apart by the signatures in their URLs. The stored
    job shows whether that is all they differ in.
    """
    found = await ledger.find(batch, key)
    if found is None or not same_but_for_signatures(found[1], content):
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


class RecordedKeys(Protocol):
    """Keys that a batch has in its ledger."""

    async def hashes(self) -> Collection[int]:
        """Return the hashes of all keys."""
        ...

    async def is_same(self, key: str, content: Content) -> bool:
        """Return whether the job of a key has a content."""
        ...


@attrs.frozen
class LedgerKeys:
    """Keys that a batch has in a ledger; other processes may add some while it runs.

    Attributes:
        ledger: The ledger, open.
        batch: Name of the batch.
    """

    ledger: Ledger
    batch: str

    async def hashes(self) -> Collection[int]:
        """Return the hashes of all keys: far less than the keys.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        # One that is not durable has the jobs of this process alone.
        return frozenset(map(hash, await self.ledger.keys(self.batch, State))) if self.ledger.durable else ()

    async def is_same(self, key: str, content: Content) -> bool:
        """Return whether the job of a key has a content.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        found = await self.ledger.find(self.batch, key)
        return found is not None and (found[0].digest == content.digest or same_but_for_signatures(found[1], content))


class KeyAssigner:
    """Assigns the keys of one batch, in the order of its input.

    A job without a key keeps the one that its content has in the ledger. A new one is called after its picture if no
    other job is, else after its picture and a hash of its content; without a name of a picture, and in batches that
    were begun by earlier versions, by the hash alone. A counter tells duplicates apart. So inserting, removing and
    reordering rows changes no key of a job that was recorded.

    Args:
        recorded: Keys that the batch has already; read before the first job without a key.
        identity: Identity of the batch.
        is_repeated: Returns whether several jobs of the input have pictures of a name, or a job has it as its key; by
            default that is not known, and the first of them is called after its picture.
        max_remembered: Keys that are remembered for finding duplicates. Beyond that many, duplicates of new content
            are told apart by their position, so that memory does not follow the length of the input.
    """

    def __init__(
        self,
        recorded: RecordedKeys,
        identity: Identity,
        *,
        is_repeated: Callable[[str], bool] | None = None,
        max_remembered: float = math.inf,
    ) -> None:
        self._recorded = recorded
        self._recorded_hashes: Collection[int] | None = None
        self._names_pictures = identity.names_pictures
        self._is_repeated = is_repeated
        self._max_remembered = max_remembered
        # By the hash of the key: 100 bytes less for each than the key itself.
        self._counts: dict[int, int] = {}

    async def assign(self, given: str | None, job: Job, content: Content, position: int) -> AssignedKey:
        """Return the key of the next job.

        Args:
            given: The caller's key, checked, or None.
            job: The job.
            content: The job's content.
            position: Position of the job in the input, from 0.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        key = given
        if key is None:
            name = picture_name(job.image)
            if self._recorded_hashes is None:
                self._recorded_hashes = await self._recorded.hashes()
            if self._recorded_hashes:
                known = await self._recorded_key(name, content)
                if known is not None:
                    return self._assigned(known)
            if name is None or not self._names_pictures:
                key = content.digest[:KEY_LENGTH]
            elif self._is_free(name):
                return self._assigned(name)
            else:
                key = _with_hash(name, content)
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

    async def _recorded_key(self, name: str | None, content: Content) -> str | None:
        """Return the key that a content has in the ledger, and no earlier job of the input; None if it has none."""
        hashed = content.digest[:KEY_LENGTH]
        names = [] if name is None else [name, _with_hash(name, content)]
        for key in (*names, hashed) if self._names_pictures else (hashed, *names):
            recorded = self._recorded_hashes is not None and hash(key) in self._recorded_hashes
            if recorded and hash(key) not in self._counts and await self._recorded.is_same(key, content):
                return key
        return None

    def _is_free(self, name: str) -> bool:
        """Return whether a job may be called after its picture: no other job is or will be."""
        if hash(name) in self._counts or hash(name) in (self._recorded_hashes or ()):
            return False
        return len(self._counts) < self._max_remembered if self._is_repeated is None else not self._is_repeated(name)

    def _assigned(self, key: str) -> AssignedKey:
        if len(self._counts) < self._max_remembered:
            self._counts[hash(key)] = 1
        return AssignedKey(key)


@runtime_checkable
class _Named(Protocol):
    """An input that knows the names of all its pictures, such as a manifest."""

    def is_repeated_name(self, name: str) -> bool:
        """Return whether several jobs without a key have pictures of a name, or a job has it as its key."""
        ...


def repeated_names(jobs: object) -> Callable[[str], bool] | None:
    """Return what tells whether several jobs of an input have a name; None for an input that cannot be looked through.

    Args:
        jobs: The input of a batch.
    """
    if isinstance(jobs, _Named):
        return jobs.is_repeated_name
    if isinstance(jobs, Mapping):
        # Every job has a key.
        return lambda _: False
    if not isinstance(jobs, (list, tuple)):
        return None
    counts: Counter[str] = Counter()
    for item in cast("Sequence[object]", jobs):
        key, job = item if isinstance(item, tuple) else (None, item)
        name = picture_name(getattr(job, "image", None)) if key is None else key_or_problem(key)
        counts.update([folded(name)] if isinstance(name, str) else [])
    return lambda name: counts[folded(name)] > 1
