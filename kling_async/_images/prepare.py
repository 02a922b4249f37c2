"""Prepare images for sending: read, check, decode, and convert where that is asked for. Nothing is sent here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import attrs

from kling_async._core.media import WHITE, FileFacts, ImageFacts
from kling_async._threads import run_short

from .inspection import inspect
from .preflight import VERIFIED_PIXELS, changed, has_pillow, preflight, read, sha256
from .streams import PIECE_BYTES, ImageStream

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_CONCURRENT_CONVERSIONS = 2
"""Images decoded at once: each takes up to 1 GB of memory, and most far less."""
SMALL_PIXELS = 1_000_000
"""Pixels up to which images are decoded where they are read: four megabytes, and a few milliseconds."""
LARGE_PIXELS = 80_000_000
"""Pixels beyond which images are decoded one after another: a HEIC of 200 million takes 1.4 GB."""


@attrs.frozen
class PreparedImage:
    """A file to send.

    Attributes:
        content: The bytes to send, or the file that has them.
        facts: Type and size of the content, and dimensions of a picture.
        digest: SHA-256 of the original file in hex, before conversion.
        unfit: Whether it is still to be converted.
    """

    content: bytes | ImageStream = attrs.field(repr=False)
    facts: FileFacts | ImageFacts
    digest: str
    unfit: bool = False


class Preparation:
    """Reads, checks and converts images in worker threads.

    Args:
        fit: Convert images that the service would refuse, or show otherwise than a viewer does. Needs Pillow.
        background: Colour that `fit` lays transparent images on.
        verify: Decode images to their end. None for those that are not too large, where Pillow is installed.

    Attributes:
        fit: Whether images are converted.
        background: The colour.
    """

    def __init__(self, *, fit: bool = False, background: str = WHITE, verify: bool | None = None) -> None:
        self.fit = fit
        self.background = background
        self._verify = verify
        self._decoding = anyio.CapacityLimiter(MAX_CONCURRENT_CONVERSIONS)
        self._decoding_large = anyio.CapacityLimiter(1)

    async def read(self, image: Path | bytes, field: str, expected: str | None) -> PreparedImage:
        """Check an image or another file, and read it unless it is a large file.

        Args:
            image: The image.
            field: Field of the job.
            expected: SHA-256 from which the job's key was made, in hex; None if the image was not read before.

        Raises:
            InvalidJobError: It has changed, cannot be decoded to its end, or the service would refuse it.
        """
        prepared, look = await run_short(partial(self._read, image, field, expected))
        if look is not None and isinstance(prepared.facts, ImageFacts):
            return attrs.evolve(prepared, unfit=prepared.unfit or await self._decode(look, prepared.facts))
        return prepared

    def _read(
        self, image: Path | bytes, field: str, expected: str | None
    ) -> tuple[PreparedImage, Callable[[], bool] | None]:
        """Read and check an image, and return what remains to be looked at in it by a decoder."""
        prepared = _prepare(image, field, expected, self.fit)
        facts = prepared.facts
        if not isinstance(facts, ImageFacts):
            return prepared, None
        verified = not prepared.unfit and self._is_verified(facts)
        if not verified and (prepared.unfit or not self.fit):
            return prepared, None
        # From memory if it is there: a file is read as seldom as can be.
        source = prepared.content if isinstance(prepared.content, bytes) else image
        look = partial(_look, source, field, fit=self.fit, verified=verified)
        if facts.width * facts.height > SMALL_PIXELS:
            return prepared, look
        return attrs.evolve(prepared, unfit=look() or prepared.unfit), None

    async def converted(self, prepared: PreparedImage, image: Path | bytes, field: str) -> PreparedImage:
        """Return an image converted if it is unfit.

        Raises:
            InvalidJobError: It has changed, or cannot be converted.
        """
        if not prepared.unfit or not isinstance(prepared.facts, ImageFacts):
            return prepared
        work = partial(_convert, image, field, prepared.digest, self.background)
        return await self._decode(work, prepared.facts)

    async def _decode(self, work: Callable[[], T], facts: ImageFacts) -> T:
        large = facts.width * facts.height > LARGE_PIXELS
        return await anyio.to_thread.run_sync(work, limiter=self._decoding_large if large else self._decoding)

    def _is_verified(self, facts: ImageFacts) -> bool:
        if self._verify is not None:
            return self._verify
        return facts.width * facts.height <= VERIFIED_PIXELS and has_pillow()


def bytes_of(content: bytes | ImageStream) -> bytes:
    """Return the content of a file.

    Raises:
        InvalidJobError: It has changed, or cannot be read.
    """
    if isinstance(content, bytes):
        return content
    found = read(content.path, content.field, most=content.size)
    _verified(content.path, found, content.field, content.sha256)
    return found


def _prepare(image: Path | bytes, field: str, expected: str | None, fit: bool) -> PreparedImage:  # noqa: FBT001 -- option
    content = read(image, field, most=PIECE_BYTES)
    if isinstance(image, bytes) or len(content) <= PIECE_BYTES:
        facts = inspect(content, field=field, fit=fit)
        found = _verified(image, content, field, expected)
        return PreparedImage(content, facts, found, unfit=fit and facts.unfit)
    facts = inspect(image, field=field, fit=fit)
    found = expected or sha256(image, field)
    return PreparedImage(ImageStream(image, field, facts.bytes, found), facts, found, unfit=fit and facts.unfit)


def _look(image: Path | bytes, field: str, *, fit: bool, verified: bool) -> bool:
    """Return whether an image needs conversion by what only a decoder sees, and decode it to its end if asked for."""
    # Imported here: Pillow is an extra.
    from .convert import needs_conversion, verify  # noqa: PLC0415 -- see above

    if fit and needs_conversion(image, field=field):
        # That decodes it.
        return True
    if verified:
        verify(image, field=field)
    return False


def _convert(image: Path | bytes, field: str, expected: str, background: str) -> PreparedImage:
    from .convert import convert  # noqa: PLC0415 -- Pillow is an extra

    content = read(image, field)
    found = _verified(image, content, field, expected)
    fit = convert(content, field=field, background=background)
    return PreparedImage(fit, preflight(fit, field=field), found)


def _verified(image: Path | bytes, content: bytes, field: str, expected: str | None) -> str:
    """Return the digest of an image's content, the same as when its job was keyed.

    Raises:
        InvalidJobError: The file has changed since.
    """
    if expected is not None and isinstance(image, bytes):
        # Bytes cannot change.
        return expected
    found = sha256(content, field)
    if expected is not None and found != expected and isinstance(image, Path):
        raise changed(image, field, expected=expected, found=found)
    return found
