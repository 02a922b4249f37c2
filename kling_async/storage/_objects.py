"""Object stores, through obstore.

Only what is safe to show of its errors is told: their texts quote requests, and replies to them.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import anyio.to_thread
import attrs
import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from kling_async._core.prediction import SavedFile
from kling_async.errors import ConfigurationError, StorageError

from ._part import Part, beside

if TYPE_CHECKING:
    from typing import BinaryIO, Literal

_WHOLE: Final = 8 * 2**20
"""Bytes up to which an output is put in one request, which can be told to write once; more goes up in parts."""
_PART: Final = 5 * 2**20
"""Bytes of such a part: the least that S3 takes, since some of them are in memory for every upload."""
_AT_ONCE: Final = 1
"""Parts of one upload that are on their way: several uploads run at once, and more only takes memory."""
_READ: Final = 2**20

_FAILURES = (BaseError, OSError, NotImplementedError, ValueError)  # the third: what a store cannot do
"""What obstore raises."""


@attrs.frozen
class Bucket:
    """An object store, or a prefix in one.

    Attributes:
        url: Its address, without a final slash.
        store: The obstore store that stands for it.
    """

    url: str
    store: ObjectStore = attrs.field(repr=False)

    @classmethod
    def at(cls, url: str, store: ObjectStore | None = None) -> Bucket:
        """The bucket or container, and the prefix in it, that a URL names.

        Args:
            url: Its address.
            store: What stands for it; by default obstore makes one, with the credentials that it finds.

        Raises:
            ConfigurationError: The URL names none, or obstore cannot make a store of it.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ConfigurationError("the address of the object store is no URL") from None
        if parts.query or parts.fragment or parts.password:
            raise ConfigurationError(
                f"the address of {parts.scheme}://{parts.hostname} holds more than a bucket and a prefix",
                advice="give credentials by the environment, or a store= with options of its own",
            )
        if not parts.netloc and store is None:
            raise ConfigurationError(f"{url!r} names no bucket", advice=f"such as {parts.scheme}://bucket/prefix")
        if store is None:
            try:
                store = from_url(url)
            except _FAILURES as error:
                said = str(error).partition("\n")[0]
                raise ConfigurationError(
                    f"{url}: {said}", advice="set what is missing in the environment, or give a store= of your own"
                ) from None
        return cls(url.rstrip("/"), store)

    def target(self, name: str, *, replace: bool) -> ObjectTarget:
        """Where one output goes."""
        return ObjectTarget(self, name, replace)


@attrs.frozen
class ObjectTarget:
    """A name in an object store.

    Attributes:
        bucket: The store.
        name: The name, relative to the bucket's address.
        replace: Whether an object of that name with other content gives way.
    """

    bucket: Bucket
    name: str
    replace: bool = False

    @property
    def address(self) -> str:
        """The URL."""
        return self._url(self.name)

    def part(self) -> Part:
        """A nameless file of the local disk: what is not whole never reaches the store."""
        return Part(self.address)

    async def keep(self, part: Part) -> SavedFile:
        """Put the checked file.

        Nothing is visible before it is whole. An upload in parts that is broken off may leave those in S3: let the
        bucket's lifecycle abort incomplete multipart uploads.

        Raises:
            StorageError: It is no whole MP4, could not be put, or both names are taken.
        """
        file = await anyio.to_thread.run_sync(part.complete)
        if file is None:
            raise StorageError("the saving was cancelled", target=self.address)
        try:
            for name in (self.name, self._beside(part.sha256)):
                if await self._put(name, file, part):
                    return SavedFile(self._url(name), part.size, part.sha256)
        except _FAILURES as error:
            said = _reason(error)
        else:
            said = f"it and {self._beside(part.sha256)} are there already with other content"
        # Outside of the except block: there, Python would keep obstore's error, and what it quotes, as __context__.
        raise StorageError(
            f"cannot put {self.address}: {said}",
            target=self.address,
            advice="check the bucket, its region and the credentials; saving again does not pay again",
        )

    async def kept(self, address: str, size: int, sha256: str) -> SavedFile | None:
        """The object of an earlier saving."""
        for name in (self.name, self._beside(sha256)):
            if self._url(name) == address:
                try:
                    there = (await obstore.head_async(self.bucket.store, name))["size"]
                except _FAILURES:
                    return None
                return SavedFile(address, size, sha256) if there == size else None
        return None

    def _url(self, name: str) -> str:
        return f"{self.bucket.url}/{name}"

    def _beside(self, sha256: str) -> str:
        return beside(PurePosixPath(self.name), sha256).as_posix()

    async def _put(self, name: str, file: BinaryIO, part: Part) -> bool:
        """Whether the object of that name has this content now; False when it has other content."""
        whole = part.size <= _WHOLE
        if not self.replace:
            try:
                there = await self._has(name, part)
            except PermissionDeniedError:
                # Credentials that may write and not read. The store itself must look then.
                there, whole = None, True
            if there is not None:
                return there
        try:
            await self._send(name, file, part, "create" if whole and not self.replace else "overwrite", whole=whole)
        except AlreadyExistsError:
            return await self._has(name, part) is True
        await self._arrived(name, part)
        return True

    async def _send(
        self, name: str, file: BinaryIO, part: Part, mode: Literal["create", "overwrite"], *, whole: bool
    ) -> None:
        """Put it, with as much of what we ask for as the store can do."""
        attributes: dict[str, str] = {"Content-Type": "video/mp4", "sha256": part.sha256}
        ways = list(itertools.product((attributes, None), dict.fromkeys((mode, "overwrite"))))
        for about, how in ways:
            # From the beginning: an attempt that was refused may have read some of it.
            content = await anyio.to_thread.run_sync(_from_start, file, whole)
            try:
                await obstore.put_async(
                    self.bucket.store,
                    name,
                    content,
                    attributes=about,
                    mode=how,
                    chunk_size=_PART,
                    max_concurrency=_AT_ONCE,
                )
            except (NotImplementedError, NotSupportedError):  # obstore: this store has no such condition
                if (about, how) == ways[-1]:
                    raise
            else:
                return

    async def _arrived(self, name: str, part: Part) -> None:
        """Make sure that all of it is there.

        Raises:
            StorageError: It is not.
        """
        try:
            there = (await obstore.head_async(self.bucket.store, name))["size"]
        except PermissionDeniedError:
            return  # credentials that may write and not read
        if there != part.size:
            raise StorageError(f"{there} of {part.size} bytes arrived at {self._url(name)}", target=self.address)

    async def _has(self, name: str, part: Part) -> bool | None:
        """Whether an object has the part's content; None when there is no such object."""
        try:
            found = await obstore.get_async(self.bucket.store, name, options={"head": True})
        except FileNotFoundError:
            return None
        if found.meta["size"] != part.size:
            return False
        sha256 = found.attributes.get("sha256")
        if sha256 is not None:
            return sha256 == part.sha256
        digest = hashlib.sha256()
        async for piece in (await obstore.get_async(self.bucket.store, name)).stream(_READ):
            await anyio.to_thread.run_sync(digest.update, piece)
        return digest.hexdigest() == part.sha256


def _from_start(file: BinaryIO, whole: bool) -> bytes | BinaryIO:  # noqa: FBT001 -- it is called by a thread
    """The file, ready to be read; or its content."""
    file.seek(0)
    return file.read() if whole else file


_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


def _reason(error: Exception) -> str:
    """What went wrong, without the request and the reply that the error quotes."""
    text = str(error)
    if "169.254.169.254" in text:
        return "no credentials were found"
    match error:
        case PermissionDeniedError():
            said = "permission denied"
        case UnauthenticatedError():
            said = "the credentials are not accepted"
        case FileNotFoundError():
            said = "there is no such bucket"
        case _:
            said = "the store cannot be reached" if "error sending request" in text else type(error).__name__
    found = [found[1].strip() for pattern in (_STATUS, _CODE) if (found := pattern.search(text))]
    return f"{said} ({', '.join(found)})" if found else said
