"""Content of a job as text: it identifies the job, and the job can be made of it again without the input.

Files, and images that are not URLs, are represented by their digests, so that the text does not depend on the names of
files; the paths of files are kept beside the text.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from kling_async.errors import ConfigurationError, LedgerError

from .catalogue import find_model
from .images import EncodedImage
from .input_files import replaced
from .job import IMAGES, TREES, Job, Shot, job_of_fields
from .job_validation import IMAGE_LISTS
from .model import Model
from .released_rows import released_row, row_as_sent
from .signed_urls import may_be_signed, without_parameters, without_signature
from .video_frames import VideoFrame, file_digest_of, frame_of_text, frame_text, is_frame_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import cattrs

    from .images import Image, Picture
    from .states import Row

IDENTITY_VERSION = 3
"""Version of the identity rule for new batches, in `RULES`."""
PREFIX = "sha256:"
"""Prefix of the digest of a file, or of an image that is not a URL."""
_FILES = "files"
"""Field of texts, and of no job: places of the files in JSON values, where any text may stand. Only with such files."""
_FORMERLY = "formerly"
"""Field of texts, and of no job: digests of images which were encoded otherwise under earlier rules, by rule."""
_FORMERLY_SIGN = f'"{_FORMERLY}":'
_SHORT = ("negative_prompt", "guidance_scale", "sound", "shot_type", "resolution", "aspect_ratio", "dynamic_range")
_LISTS = ("element_list", "voice_list", *IMAGE_LISTS)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@attrs.frozen
class Identity:
    """Rule and ignored parameters by which a batch makes digests and derived keys of its jobs. It keeps them forever.

    Attributes:
        rule: Version of the rule, in `RULES`. Default: that of new batches.
        ignored: Names of the query parameters that are no part of the identity of pictures given as URLs, sorted.
    """

    rule: int = attrs.Factory(lambda: IDENTITY_VERSION)
    ignored: tuple[str, ...] = ()

    def digest(self, text: str) -> str:
        """Return the SHA-256 in hex of what identifies a job.

        Args:
            text: Text of the job's content.
        """
        plain = RULES[self.rule](text)
        if self.ignored:
            plain = _with_urls(plain, partial(without_parameters, names=self.ignored))
        return _sha256(plain)


@attrs.frozen
class Content:
    """Content of a job.

    Attributes:
        text: Fields of the job as JSON, always in the same order; files as digests, and URLs as they are.
        files: Paths of its files, as a JSON object from their places (`Job.files`) to absolute paths; None without any.
        digest: SHA-256 in hex of what identifies the job: equal for equal jobs, by the identity rule of their batch.
            Default: that of the whole text.
        labels: The caller's own values as a JSON object, which identify nothing; None without any.
        caller: Name of who asked for it; empty for nobody in particular.
        priority: Its priority among the caller's jobs.
        frames: Keys of the jobs that its pictures are frames of, as a JSON object from the places of the pictures; None
            without any. The text has the digests of these jobs, so that equal chains are equal by any keys.
    """

    text: str
    files: str | None = None
    digest: str = attrs.Factory(lambda self: _sha256(self.text), takes_self=True)
    labels: str | None = None
    caller: str = ""
    priority: int = 0
    frames: str | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """Keys of the jobs with whose videos it begins or ends, each once."""
        return () if self.frames is None else tuple(dict.fromkeys(_loads(self.frames).values()))

    @property
    def renews(self) -> bool:
        """True if equal jobs may have other texts: the newest has the signature that is still valid."""
        return self.digest != _sha256(self.text)


def content_of(
    job: Job,
    image_digest: Callable[[Image], str],
    *,
    identity: Identity | None = None,
    parents: Mapping[str, str] | None = None,
    sources: Mapping[str, Picture] | None = None,
) -> Content:
    """Return the content of a job, identified as its batch does.

    Args:
        job: The job.
        image_digest: Returns the SHA-256 of a file's content in hex; not called for URLs.
        identity: The identity of the batch (`Ledger.identity`). Default: that of a new batch.
        parents: Digests of the contents of the jobs that its pictures are frames of, by their keys.
        sources: `job.sources`, if the caller has it already.

    Raises:
        LedgerError: A later version made the rule.
    """
    identity = checked_identity(identity or Identity())
    text, paths, frames = _text_of(job, job.sources if sources is None else sources, image_digest, parents)
    labels = json.dumps(dict(job.labels), ensure_ascii=False) if job.labels else None
    return Content(text, paths, identity.digest(text), labels, job.caller, job.priority, frames)


def content_in(row: Row) -> Content:
    """Return the content of a job as its row has it, which was read with its content."""
    return Content(
        row.job or "",
        row.files,
        labels=row.labels,
        caller=row.caller,
        priority=row.priority,
        frames=row.frames,
    )


def checked_identity(identity: Identity, batch: str = "", ignored: tuple[str, ...] | None = None) -> Identity:
    """Return the identity of a batch, which this version of the package can use, and which is as asked for.

    Args:
        identity: The identity, as recorded.
        batch: Name of the batch, for the errors.
        ignored: The parameters that its jobs are to ignore, sorted; None for those that they do.

    Raises:
        LedgerError: A later version made the rule.
        ConfigurationError: The batch ignores other parameters.
    """
    if identity.rule not in RULES:
        raise LedgerError(
            f"batch {batch!r} was begun by a later version of kling_async (identity rule {identity.rule})",
            advice="upgrade kling_async: this version would take its jobs for new ones, and pay for them again",
        )
    if ignored is not None and ignored != identity.ignored:
        own, other = (", ".join(names) or "none" for names in (identity.ignored, ignored))
        raise ConfigurationError(
            f"ignored_parameters: expected those that batch {batch!r} was begun with ({own}), got {other}: with "
            "others, its jobs would be new ones, and paid for again",
            advice="leave out ignored_parameters= (--ignore-parameter) to continue the batch with its own, or begin a "
            "batch of another name",
        )
    return identity


def _text_of(
    job: Job,
    given: Mapping[str, Picture],
    image_digest: Callable[[Image], str],
    parents: Mapping[str, str] | None,
) -> tuple[str, str | None, str | None]:
    """Return text, files and frames of a job's content: all fields as given; files and data URIs by their digests."""
    digested = job
    if given:
        of = parents or {}
        digested = job.with_files({place: _source_text(each, image_digest, of) for place, each in given.items()})
    fields: dict[str, object] = {"model": job.model, "prompt": job.prompt, "duration": job.duration}
    fields |= {name: value for name in (*IMAGES, *_SHORT) if (value := getattr(digested, name)) is not None}
    fields |= {name: list(value) for name in _LISTS if (value := getattr(digested, name))}
    images = {name: image for name in IMAGES if isinstance(image := getattr(job, name), EncodedImage)}
    if former := {name: image.former for name, image in images.items() if image.former}:
        fields[_FORMERLY] = {
            name: {str(rule): PREFIX + digest for rule, digest in by_rule.items()} for name, by_rule in former.items()
        }
    if job.multi_prompt:
        fields["multi_prompt"] = [attrs.asdict(shot) for shot in job.multi_prompt]
    if job.extra:
        fields["extra"] = dict(digested.extra)
    if job.own_row is not None:
        fields["own_row"] = _rows().unstructure(job.own_row)
    if not given:
        return _json(fields), None, None
    marked = sorted(place for place in given if place.startswith(TREES))
    if marked:
        fields[_FILES] = marked
    videos = {place: source.of if isinstance(source, VideoFrame) else source for place, source in given.items()}
    paths = {place: str(file.absolute()) for place, file in videos.items() if isinstance(file, Path)}
    frames = {place: frame.parent for place, frame in job.frames.items() if frame.parent is not None}
    # A path may hold bytes that are no text: JSON writes them in ASCII.
    return _json(fields), json.dumps(paths) if paths else None, json.dumps(frames) if frames else None


def _source_text(source: Picture, image_digest: Callable[[Image], str], parents: Mapping[str, str]) -> str:
    """Return a file or a frame as the text of a content has it."""
    if not isinstance(source, VideoFrame):
        return PREFIX + image_digest(source)
    return frame_text(
        source, image_digest(source.of) if isinstance(source.of, Path) else parents.get(source.parent or "", "")
    )


def _as_released(text: str, rule: int) -> str:
    """Return the text of a content as the versions wrote it that made a rule: its images, and a model of its own.

    What a later version knows of a model besides, above all its price, makes no other job.
    """
    text = _with_images(text, rule)
    if '"own_row":' not in text:
        return text
    fields: dict[str, Any] = json.loads(text)
    row = fields.get("own_row")
    return _json(fields | {"own_row": released_row(row, _catalogue_row)}) if isinstance(row, dict) else text


@cache
def _catalogue_row(model: str) -> Mapping[str, object]:
    """Return the catalogue's row of a model as in texts; empty if it has none."""
    row = find_model(model)
    return {} if row is None else _rows().unstructure(row)


def _unsigned(text: str, rule: int) -> str:
    """Return the text of a content as by an earlier rule, without the signatures of object stores in its URLs."""
    released = _as_released(text, rule)
    return _with_urls(released, without_signature) if may_be_signed(text) else released


def _as_sent(text: str) -> str:
    """Return the text of a content without signatures, with what is sent of its images and of a model of its own."""
    sent = _with_images(text, 3)
    if '"own_row":' in sent:
        fields: dict[str, Any] = json.loads(sent)
        row = fields.get("own_row")
        sent = _json(fields | {"own_row": row_as_sent(row)}) if isinstance(row, dict) else sent
    return _with_urls(sent, without_signature) if may_be_signed(sent) else sent


def _with_images(text: str, rule: int) -> str:
    """Return the text of a content with the digests that a rule made of its images, alone."""
    if _FORMERLY_SIGN not in text:
        return text
    fields: dict[str, Any] = json.loads(text)
    for name, former in fields.pop(_FORMERLY, {}).items():
        # Some texts have one digest for both of the first rules.
        by_rule = {"1": former, "2": former} if isinstance(former, str) else former
        fields[name] = by_rule.get(str(rule), fields[name])
    return _json(fields)


def _with_urls(text: str, change: Callable[[str], str]) -> str:
    """Return the text of a content with the queries of its URLs changed."""
    if "?" not in text:
        return text
    fields: dict[str, Any] = json.loads(text)
    changed = fields | {name: change(url) for name in IMAGES if isinstance(url := fields.get(name), str)}
    changed |= {name: [change(url) for url in fields[name]] for name in IMAGE_LISTS if name in fields}
    return text if changed == fields else _json(changed)


RULES: dict[int, Callable[[str], str]] = {1: partial(_as_released, rule=1), 2: partial(_unsigned, rule=2), 3: _as_sent}
"""Rules that make, of the text of a content, the text whose SHA-256 is the digest, hence the derived key; by version.

The first takes the text as its version wrote it, the second leaves out signatures. By the third, PIL images are known
by what they look like (before, those with transparency, more than 8 bits or other colours were encoded otherwise), and
of a model of a job's own counts what shapes the request, and no price. A batch keeps the rule it was begun with: under
another one its jobs would be new jobs, and paid for again. A rule that was released is never changed.
"""


def same_but_for_signatures(one: Content, other: Content, identity: Identity) -> bool:
    """Return whether two contents of a batch differ at most in the signatures of object stores, by its rule."""
    # Only the first rule tells jobs apart by them.
    plain = partial(_unsigned, rule=1) if identity.rule == 1 else RULES[identity.rule]
    return plain(one.text) == plain(other.text)


def possible_digests(content: Content, ignored: Iterable[tuple[str, ...]]) -> frozenset[str]:
    """Return the digests that a content has in batches of any identity.

    Args:
        content: The content.
        ignored: The sets of parameters that batches ignore (`Ledger.ignored_parameters`).
    """
    identities = (Identity(rule, names) for rule in RULES for names in ((), *ignored))
    return frozenset({content.digest, *(identity.digest(content.text) for identity in identities)})


def recalled(content: Content, uploads: Mapping[str, str]) -> Job:
    """Return the job of a content, not validated: it was when it was made, and the catalogue may have changed.

    Args:
        content: The content.
        uploads: URLs of files that were given as bytes, by digest; one without a URL is empty, and the job cannot be
            sent.
    """
    fields: dict[str, Any] = _loads(content.text)
    paths: dict[str, str] = _loads(content.files or "{}")
    parents: dict[str, str] = _loads(content.frames or "{}")
    found: dict[str, Picture] = {
        place: Path(paths[place]) if place in paths else uploads.get(digest, b"")
        for place, digest in _digests_in(fields).items()
    }
    found |= {
        place: frame_of_text(text, parent=parents.get(place), path=Path(paths[place]) if place in paths else None)
        for place, text in _pictures_in(fields).items()
        if is_frame_text(text)
    }
    fields |= {name: found.get(name, fields.get(name)) for name in IMAGES}
    fields.pop(_FORMERLY, None)
    fields["multi_prompt"] = tuple(Shot(**shot) for shot in fields.get("multi_prompt", ()))
    fields |= {name: tuple(fields.get(name, ())) for name in _LISTS}
    fields |= {name: fields.get(name) for name in _SHORT}
    fields["extra"] = fields.get("extra", {})
    fields.pop(_FILES, None)
    fields["labels"] = _loads(content.labels or "{}")
    fields |= {"caller": content.caller, "priority": content.priority}
    row = fields.get("own_row")
    fields["own_row"] = None if row is None else _rows().structure(row, Model)
    return job_of_fields(fields).with_files({place: file for place, file in found.items() if place not in IMAGES})


def files(content: Content) -> list[tuple[Path, str]]:
    """Return the paths of the files, each with the digest that the file had."""
    paths: dict[str, str] = _loads(content.files or "{}")
    found = file_digests(content)
    return [(Path(path), found[place]) for place, path in paths.items()]


def file_digests(content: Content) -> dict[str, str]:
    """Return the digests of the files, and of the images that are no URLs, by their places.

    At the place of a frame of a video file stands the digest of the video.
    """
    return _digests_in(_loads(content.text))


def digests(content: Content) -> frozenset[str]:
    """Return the digests of the files that were given as bytes."""
    paths: dict[str, str] = _loads(content.files or "{}")
    return frozenset(digest for place, digest in file_digests(content).items() if place not in paths)


def _digests_in(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests in the fields of a text, by their places in a job."""
    found: dict[str, str] = {}
    for place, image in _pictures_in(fields).items():
        if image.startswith(PREFIX):
            found[place] = image
        elif is_frame_text(image) and (digest := file_digest_of(image)) is not None:
            found[place] = digest
    marked = fields.get(_FILES, ())
    if marked:

        def keep(place: str, value: object) -> object:
            if place in marked:
                found[place] = str(value)
            return value

        for name in TREES:
            replaced(fields.get(name), name, keep)
    return {place: digest.removeprefix(PREFIX) for place, digest in found.items()}


def has_frames(content: Content) -> bool:
    """Return whether a picture of the job is a frame of a video."""
    return any(map(is_frame_text, _pictures_in(_loads(content.text)).values()))


def _pictures_in(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the pictures in the fields of a text, by their places in a job: URLs, digests and frames."""
    found = {name: fields[name] for name in IMAGES if fields.get(name)}
    for name in IMAGE_LISTS:
        found |= {f"{name}[{number}]": image for number, image in enumerate(fields.get(name, ()))}
    return found


def _json(value: object) -> str:
    return _ENCODER.encode(value)


def _loads(text: str) -> dict[str, Any]:
    """Decode the text of a content, or its files.

    Raises:
        LedgerError: It is no JSON object, or is nested too deeply.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LedgerError(
            "the content of a job in the ledger cannot be read: expected a JSON object",
            advice="continue with a copy of the ledger from before it was damaged",
        )
    return found


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
