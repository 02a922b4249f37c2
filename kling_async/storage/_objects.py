"""Targets in object stores, through obstore.

The texts of obstore's errors quote requests and responses, so only their kind and codes are reported.
"""

from __future__ import annotations

import hashlib
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
from .naming import MEDIA_TYPES, SUFFIX

if TYPE_CHECKING:
    from typing import BinaryIO, Literal

_MAX_SINGLE_PUT_BYTES: Final = 8 * 2**20
"""Size up to which an output is put in one request, which supports create-only; larger ones are multipart uploads."""
_PART_BYTES: Final = 5 * 2**20
"""Size of a part of a multipart upload: the minimum of S3, since every upload holds some in memory."""
_CONCURRENT_PARTS: Final = 1
"""Parts of one upload sent at once; several uploads run in parallel anyway, and more would only take memory."""
_READ_BYTES: Final = 2**20

_LACKS_FEATURE = (
    NotImplementedError,  # caught, not raised here: obstore raises it where a store lacks attributes or a mode of put
    NotSupportedError,
)
"""Errors by which obstore says that a store has no attributes, or no conditional puts."""
_OBSTORE_ERRORS = (BaseError, OSError, ValueError, *_LACKS_FEATURE)
"""Errors that obstore raises."""


_UNCONDITIONAL_STATUSES: Final = frozenset({"400", "405", "415", "422", "501"})
"""HTTP statuses by which stores without conditional puts refuse one."""
_UNCONDITIONAL_CODES: Final = frozenset({"MethodNotAllowed", "NotImplemented"})
"""Error codes of such refusals, whatever the status."""


@attrs.define
class Bucket:
    """Object store, or a prefix in one.

    Attributes:
        url: Its URL, without a final slash.
        store: The obstore store.
        conditional: False once the store has refused a conditional put and taken a plain one.
        misled: True once it has said of an object that is not there that it exists, until a conditional put works.
    """

    url: str
    store: ObjectStore = attrs.field(repr=False)
    conditional: bool = attrs.field(default=True, init=False, eq=False, repr=False)
    misled: bool = attrs.field(default=False, init=False, eq=False, repr=False)

    @classmethod
    def at(cls, url: str, store: ObjectStore | None = None) -> Bucket:
        """Return the bucket or container of a URL, with the prefix in it.

        Args:
            url: The URL.
            store: The obstore store; by default obstore makes one, with the credentials that it finds.

        Raises:
            ConfigurationError: The URL has no bucket, or obstore cannot make a store from it.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ConfigurationError("the address of the object store is not a URL") from None
        if parts.query or parts.fragment or parts.password:
            raise ConfigurationError(
                f"{parts.scheme}://{parts.hostname}: expected only a bucket and a prefix",
                advice="set credentials in the environment, or give a store= with your own options",
            )
        if not parts.netloc and store is None:
            raise ConfigurationError(f"{url!r} has no bucket", advice=f"such as {parts.scheme}://bucket/prefix")
        if store is None:
            try:
                store = from_url(url)
            except _OBSTORE_ERRORS as error:
                reason = str(error).partition("\n")[0]
                raise ConfigurationError(
                    f"{url}: {reason}", advice="set what is missing in the environment, or give your own store="
                ) from None
        return cls(url.rstrip("/"), store)

    def target(self, name: str, *, replace: bool, renamed: bool = False) -> ObjectTarget:
        """Return the target of one output."""
        return ObjectTarget(self, name, replace, renamed)


@attrs.frozen
class ObjectTarget:
    """Object in a store.

    Attributes:
        bucket: The store.
        name: Name of the object, relative to the bucket's URL.
        replace: Whether to replace an object of that name with other content.
        renamed: Whether the output may have another name in this folder, because it is named after a picture.
    """

    bucket: Bucket
    name: str
    replace: bool = False
    renamed: bool = False

    @property
    def address(self) -> str:
        """URL of the object."""
        return self._url(self.name)

    def part(self) -> Part:
        """Return an anonymous file on the local disk, so that nothing incomplete reaches the store."""
        return Part(self.address)

    async def keep(self, part: Part) -> SavedFile:
        """Put the file.

        The object becomes visible when it is complete. An interrupted multipart upload may leave parts in S3: let the
        bucket's lifecycle abort incomplete multipart uploads.

        Raises:
            StorageError: It could not be put, or both names exist with other content.
        """
        file = await anyio.to_thread.run_sync(part.complete)
        if file is None:
            raise StorageError("saving was cancelled", target=self.address)
        try:
            for name in (self.name, self._beside(part.sha256)):
                if await self._put(name, file, part):
                    return SavedFile(self._url(name), part.size, part.sha256)
        except _OBSTORE_ERRORS as error:
            reason = _reason(error)
        else:
            reason = f"it and {self._beside(part.sha256)} already exist with other content"
        # Outside the except block: inside, Python would keep obstore's error, with its quotes, as __context__.
        raise StorageError(
            f"cannot put {self.address}: {reason}",
            target=self.address,
            advice="check the bucket, its region and the credentials; saving again does not pay again",
        )

    async def kept(self, address: str, size: int, sha256: str) -> SavedFile | None:
        """Return the object if it is still there."""
        names = [self.name, self._beside(sha256)]
        if self.renamed and address:
            names.append(str(PurePosixPath(self.name).with_name(address.rpartition("/")[2])))
        for name in names:
            if self._url(name) == address:
                try:
                    size_now = (await obstore.head_async(self.bucket.store, name))["size"]
                except _OBSTORE_ERRORS:
                    return None
                return SavedFile(address, size, sha256) if size_now == size else None
        return None

    def _url(self, name: str) -> str:
        return f"{self.bucket.url}/{name}"

    def _beside(self, sha256: str) -> str:
        return beside(PurePosixPath(self.name), sha256).as_posix()

    async def _put(self, name: str, file: BinaryIO, part: Part) -> bool:
        """Put the object; return False if one of that name has other content."""
        single = part.size <= _MAX_SINGLE_PUT_BYTES
        create = single and not self.replace and self.bucket.conditional
        if not self.replace:
            try:
                same = await self._has(name, part)
            except PermissionDeniedError:
                # The credentials may write and not read, so the store itself must check, by a create-only request.
                same, single, create = None, True, True
            if same is not None:
                return same
        try:
            await self._send(name, file, part, "create" if create else "overwrite", single=single)
        except _OBSTORE_ERRORS as error:
            if not create or not _refuses_condition(error):
                raise
            same = await self._has(name, part)
            if same is not None:
                return same
            await self._send(name, file, part, "overwrite", single=single)
            # Another writer may have had such an object, and removed it; twice in a row it is the store.
            self.bucket.conditional = isinstance(error, AlreadyExistsError) and not self.bucket.misled
            self.bucket.misled = True
        else:
            self.bucket.misled = self.bucket.misled and not create
        await self._check_size(name, part)
        return True

    async def _send(
        self, name: str, file: BinaryIO, part: Part, mode: Literal["create", "overwrite"], *, single: bool
    ) -> None:
        """Put the object with attributes, or without them where the store has none."""
        media_type = MEDIA_TYPES.get(PurePosixPath(name).suffix.lower(), MEDIA_TYPES[SUFFIX])
        wanted: dict[str, str] = {"Content-Type": media_type, "sha256": part.sha256}
        for attributes in (wanted, None):
            # Rewound each time: a refused attempt may have read a part of it.
            content = await anyio.to_thread.run_sync(_rewound, file, single)
            try:
                await obstore.put_async(
                    self.bucket.store,
                    name,
                    content,
                    attributes=attributes,
                    mode=mode,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_CONCURRENT_PARTS,
                )
            except _LACKS_FEATURE:
                if attributes is None:
                    raise
            else:
                return

    async def _check_size(self, name: str, part: Part) -> None:
        """Check that the object is complete.

        Raises:
            StorageError: It has another size than the part.
        """
        try:
            size = (await obstore.head_async(self.bucket.store, name))["size"]
        except PermissionDeniedError:
            return  # the credentials may write and not read
        if size != part.size:
            raise StorageError(f"{size} of {part.size} bytes arrived at {self._url(name)}", target=self.address)

    async def _has(self, name: str, part: Part) -> bool | None:
        """Return whether an object has the part's content; None if there is no such object."""
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
        async for piece in (await obstore.get_async(self.bucket.store, name)).stream(_READ_BYTES):
            await anyio.to_thread.run_sync(digest.update, piece)
        return digest.hexdigest() == part.sha256


def _rewound(file: BinaryIO, content: bool) -> bytes | BinaryIO:  # noqa: FBT001 -- called through run_sync
    """Return the rewound file, or its content."""
    file.seek(0)
    return file.read() if content else file


_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


def _refuses_condition(error: Exception) -> bool:
    """Return whether a store may have refused a put for its condition alone."""
    # Stores also say of an object that is not there that it exists, by 304, 409 or 412.
    if isinstance(error, (AlreadyExistsError, *_LACKS_FEATURE)):
        return True
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    return (status is not None and status[1][:3] in _UNCONDITIONAL_STATUSES) or (
        code is not None and code[1] in _UNCONDITIONAL_CODES
    )


def _reason(error: Exception) -> str:
    """Describe an error of obstore without the request and response that it quotes."""
    text = str(error)
    if "169.254.169.254" in text:
        return "no credentials were found"
    match error:
        case PermissionDeniedError():
            kind = "permission denied"
        case UnauthenticatedError():
            kind = "the credentials are not accepted"
        case FileNotFoundError():
            kind = "there is no such bucket"
        case _:
            kind = "the store cannot be reached" if "error sending request" in text else type(error).__name__
    codes = [found[1].strip() for pattern in (_STATUS, _CODE) if (found := pattern.search(text))]
    return f"{kind} ({', '.join(codes)})" if codes else kind
