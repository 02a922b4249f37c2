"""Content of a job as text: it identifies the job, and the job can be made of it again without the input.

Images that are not URLs are represented by their digests, so that the text does not depend on the names of files; the
paths of files are kept beside the text.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from kling_async.errors import LedgerError

from .catalogue import Model
from .job import Job, Shot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import cattrs

    from .images import Image

IDENTITY_VERSION = 1
"""Version of the identity rule for new batches, in `RULES`."""
PREFIX = "sha256:"
"""Prefix of the digest of an image that is not a URL."""
IMAGES = ("image", "end_image")
_SHORT = ("negative_prompt", "guidance_scale", "sound", "shot_type")
_LISTS = ("element_list", "voice_list")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@attrs.frozen
class Content:
    """Content of a job.

    Attributes:
        text: Fields of the job as JSON, always in the same order; images as URLs or digests.
        files: Paths of its image files, as a JSON object from field to absolute path; None without image files.
    """

    text: str
    files: str | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text in hex: equal for equal content."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def content_of(job: Job, image_digest: Callable[[Image], str], *, identity: int = IDENTITY_VERSION) -> Content:
    """Return the content of a job, by the identity rule of its batch.

    Args:
        job: The job.
        image_digest: Returns the SHA-256 of an image's content in hex; not called for URLs.
        identity: Version of the rule that the batch's digests and keys are made by (`Ledger.identity`).

    Raises:
        LedgerError: A later version made the rule.
    """
    return RULES[checked_identity(identity)](job, image_digest)


def checked_identity(identity: int, batch: str = "") -> int:
    """Return the version of an identity rule that this version of the package has.

    Args:
        identity: Version of the rule.
        batch: Name of the batch that uses it, for the error.

    Raises:
        LedgerError: A later version made the rule.
    """
    if identity not in RULES:
        raise LedgerError(
            f"batch {batch!r} was begun by a later version of kling_async (identity rule {identity})",
            advice="upgrade kling_async: this version would take its jobs for new ones, and pay for them again",
        )
    return identity


def _content_by_rule_1(job: Job, image_digest: Callable[[Image], str]) -> Content:
    """Return the content with all fields as they were given, URLs in full, and other images by their digests."""
    fields: dict[str, object] = {"model": job.model, "prompt": job.prompt, "duration": job.duration}
    files: dict[str, str] = {}
    for name in IMAGES:
        image: Image | None = getattr(job, name)
        if image is None:
            continue
        plain = isinstance(image, str) and not image.startswith("data:")
        fields[name] = image if plain else PREFIX + image_digest(image)
        if isinstance(image, Path):
            files[name] = str(image.absolute())
    fields |= {name: value for name in _SHORT if (value := getattr(job, name)) is not None}
    fields |= {name: list(value) for name in _LISTS if (value := getattr(job, name))}
    if job.multi_prompt:
        fields["multi_prompt"] = [attrs.asdict(shot) for shot in job.multi_prompt]
    if job.extra:
        fields["extra"] = dict(job.extra)
    if job.own_row is not None:
        fields["own_row"] = _rows().unstructure(job.own_row)
    # A path may hold bytes that are no text: JSON writes them in ASCII.
    return Content(_json(fields), json.dumps(files) if files else None)


RULES: dict[int, Callable[[Job, Callable[[Image], str]], Content]] = {1: _content_by_rule_1}
"""Rules that make the content of a job, hence its digest and derived key, by version.

A batch keeps the rule it was begun with: under another one its jobs would be new jobs, and paid for again. A rule that
was released is never changed.
"""


def recalled(content: Content, uploads: Mapping[str, str]) -> Job:
    """Return the job of a content, not validated: it was when it was made, and the catalogue may have changed.

    Args:
        content: The content.
        uploads: URLs of images that were given as bytes, by digest; an image without a URL is empty, and the job cannot
            be sent.
    """
    fields: dict[str, Any] = json.loads(content.text)
    files: dict[str, str] = json.loads(content.files or "{}")
    for name in IMAGES:
        image: str | None = fields.get(name)
        if image is None:
            fields[name] = None
        elif name in files:
            fields[name] = Path(files[name])
        elif image.startswith(PREFIX):
            fields[name] = uploads.get(image.removeprefix(PREFIX), b"")
    fields["multi_prompt"] = tuple(Shot(**shot) for shot in fields.get("multi_prompt", ()))
    fields |= {name: tuple(fields.get(name, ())) for name in _LISTS}
    fields |= {name: fields.get(name) for name in _SHORT}
    fields["extra"] = fields.get("extra", {})
    row = fields.get("own_row")
    fields["own_row"] = None if row is None else _rows().structure(row, Model)
    job = object.__new__(Job)
    job.__attrs_init__(**fields)  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it
    return job


def files(content: Content) -> list[tuple[Path, str]]:
    """Return the paths of the image files, each with the digest that the file had."""
    fields: dict[str, str] = json.loads(content.text)
    found: dict[str, str] = json.loads(content.files or "{}")
    return [(Path(path), fields[name].removeprefix(PREFIX)) for name, path in found.items()]


def image_digests(content: Content) -> dict[str, str]:
    """Return the digests of the images that are no URLs, by field."""
    fields: dict[str, Any] = json.loads(content.text)
    found = {name: fields.get(name) or "" for name in IMAGES}
    return {name: image.removeprefix(PREFIX) for name, image in found.items() if image.startswith(PREFIX)}


def digests(content: Content) -> frozenset[str]:
    """Return the digests of the images that were given as bytes."""
    fields: dict[str, Any] = json.loads(content.text)
    files: dict[str, str] = json.loads(content.files or "{}")
    images = (fields.get(name) or "" for name in IMAGES if name not in files)
    return frozenset(image.removeprefix(PREFIX) for image in images if image.startswith(PREFIX))


def _json(value: object) -> str:
    return _ENCODER.encode(value)


@cache
def _rows() -> cattrs.Converter:
    """Return the converter of models outside of the catalogue; rarely used, so it is made on first use."""
    from cattrs.preconf.json import make_converter  # noqa: PLC0415 -- see above

    # Without defaults: a later version that knows more of a model gives the same text.
    converter = make_converter(omit_if_default=True)
    converter.register_unstructure_hook(Decimal, str)
    converter.register_structure_hook(Decimal, lambda value, _: Decimal(value))
    # Sets have another order in every process.
    converter.register_unstructure_hook_func(lambda kind: kind == frozenset[str], sorted)
    # The values of choices and defaults are JSON already.
    converter.register_structure_hook_func(lambda kind: kind in {object, str | int | float}, lambda value, _: value)
    return converter
