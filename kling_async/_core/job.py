"""One video to make: plain data, checked before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import attrs

from kling_async.errors import Problem

from .catalogue import find_model
from .images import Image, Picture, image_repr, picture_cautions
from .input_files import MEDIA, files_in, inputs_repr, is_url, media_type, with_values
from .job_validation import FURTHER_INPUTS, IMAGE_LISTS, JobFields, Shot, checked_fields, text_repr
from .model import Model
from .prices import Kind, Price
from .video_frames import VideoFrame

if TYPE_CHECKING:
    from .formula import Formula

__all__ = ["Job", "JobFields", "Shot"]


def _images_repr(images: tuple[Picture, ...]) -> str:
    return f"({', '.join(map(image_repr, images))}{',' if len(images) == 1 else ''})"


@attrs.frozen(kw_only=True, init=False)
class Job:
    """One video to make: plain data, complete and checked.

    Attributes:
        model: Full model id, resolved from the full id, a short name (`"kling-v2.1-pro"`) or an alias. Pass a `Model`
            for a model that is not in the catalogue.
        prompt: 1 to 2,500 characters; empty only where the model allows it, and with `multi_prompt`.
        image: First frame: a URL, a `Path`, or the bytes of a JPEG or PNG of at most 10 MB and at least 300 x 300
            pixels; other formats and up to 100 MB for sessions with `fit`. A file object is read when the job is
            created. A PIL image is then encoded as a viewer shows it: upright, on white, in 8 bits and in sRGB. Or a
            frame of a video: `LastFrame("key")` continues another job of the batch. None for models without one.
        end_image: Last frame, for models that support it; None without.
        negative_prompt: Content to avoid, at most 2,500 characters; None leaves it to the service.
        guidance_scale: 0 to 1; None leaves the service's default of 0.5.
        duration: Seconds of video, as the model allows; by default 5, or the total of the shots. `"5"` is accepted.
            0 for models without a duration.
        sound: Whether to generate sound, for models that support it; None leaves it to the service.
        multi_prompt: Prompts of up to six shots, for models that support them, instead of `prompt` and without
            `end_image`: texts, `Shot`s, or mappings with `prompt` and `duration`.
        shot_type: Division into shots, "customize" or "intelligence", for models that support it. "intelligent" is the
            same as "intelligence": each provider is sent its own word.
        element_list: Up to three references to elements that look the same throughout, as JSON, for models that
            support them.
        voice_list: References to voices, as JSON, for models that support them.
        resolution: Resolution of the video, such as "1080p", for models that have several; it determines the price.
        aspect_ratio: Aspect ratio of the video, such as "16:9", for models that have several.
        dynamic_range: "hdr" for models that support it.
        keyframes: Frames between the first and the last one, in their order, as for `image`, for models that support
            them.
        images: Several images, as for `image`, for models that take them instead of it.
        extra: Further inputs, sent unchecked unless the model lists its inputs (`Model.from_service`). The service
            ignores unknown names and charges all the same: use it for inputs newer than the catalogue. Any value in it,
            at any depth, may be a `Path`, bytes or an open file: a picture as for `image`, a video (MP4, MOV, WebM) or
            a sound (MP3, WAV) of at most 300 MB. It is uploaded and sent as its URL.
        labels: Your own values, as JSON: a product's number, a price. They are recorded in the ledger, are in the
            results and the gallery, are not sent, and are no part of what identifies the job: equal jobs may have
            others.
        caller: Name of who asked for it, up to 200 characters (a whole number becomes its digits), where several share
            an account: free slots go round the callers by their weights (`KlingSession(callers=...)`). Recorded, not
            sent, and no part of the identity.
        priority: Among a caller's own jobs, higher ones start first; 0 without one. Not sent, and no part of the
            identity.
        own_row: The `Model` that was passed as `model`, unless the catalogue has the same one; None otherwise.

    Raises:
        InvalidJobError: A field is wrong; `problems` lists every one with its path.
    """

    model: str
    prompt: str = attrs.field(repr=text_repr)
    image: Picture | None = attrs.field(repr=image_repr)
    end_image: Picture | None = attrs.field(repr=image_repr)
    negative_prompt: str | None = attrs.field(repr=text_repr)
    guidance_scale: float | None
    duration: int
    sound: bool | None
    multi_prompt: tuple[Shot, ...]
    shot_type: str | None
    element_list: tuple[object, ...] = attrs.field(hash=False, repr=inputs_repr)
    voice_list: tuple[object, ...] = attrs.field(hash=False, repr=inputs_repr)
    resolution: str | None
    aspect_ratio: str | None
    dynamic_range: str | None
    keyframes: tuple[Picture, ...] = attrs.field(repr=_images_repr)
    images: tuple[Picture, ...] = attrs.field(repr=_images_repr)
    extra: Mapping[str, object] = attrs.field(hash=False, repr=inputs_repr)
    labels: Mapping[str, object] = attrs.field(eq=False)
    caller: str = attrs.field(eq=False)
    priority: int = attrs.field(eq=False)
    own_row: Model | None = attrs.field(repr=False)

    def __init__(self, /, **fields: Unpack[JobFields]) -> None:
        self.__attrs_init__(**checked_fields(dict(fields)))  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it

    @property
    def row(self) -> Model:
        """The model: the job's own row, or the row of the catalogue."""
        row = self.own_row or find_model(self.model)
        if row is None:  # pragma: no cover -- a job's model exists when it is created
            raise LookupError(self.model)
        return row

    @property
    def kind(self) -> Kind:
        """Properties that determine the price."""
        row, text = self.row, ""
        if row.formula is not None:
            text = self._priced_inputs(row.formula)
        elif self.own_row is not None and self.extra:
            # Any of them may determine the price.
            text = json.dumps(dict(self._with_sample_urls().extra), sort_keys=True, default=str)
        return Kind(self.model, self.duration, self.sound, self.resolution or "", text)

    def _priced_inputs(self, formula: Formula) -> str:
        """Return the inputs that a formula names, without the duration, as JSON; empty without any."""
        sample = self._with_sample_urls()
        inputs = sample.inputs(
            _ANY_URL if self.image is not None else "", _ANY_URL if self.end_image is not None else None
        )
        inputs |= {name: [_ANY_URL] * len(urls) for name in IMAGE_LISTS if isinstance(urls := inputs.get(name), list)}
        priced = {name: inputs[name] for name in sorted(formula.names & inputs.keys()) if name != "duration"}
        return json.dumps(priced) if priced else ""

    @property
    def files(self) -> Mapping[str, Image]:
        """Inputs that are no URLs and no frames of videos: files, bytes, and images as data URIs.

        The keys are their places: `image`, `keyframes[0]`, `extra.videos[1]`.
        """
        return {place: file for place, file in self.sources.items() if not isinstance(file, VideoFrame)}

    @property
    def frames(self) -> Mapping[str, VideoFrame]:
        """Inputs that are frames of videos, by their places."""
        return {place: frame for place, frame in self.sources.items() if isinstance(frame, VideoFrame)}

    @property
    def parents(self) -> tuple[str, ...]:
        """Keys of the jobs of its batch with whose videos it begins or ends, each once."""
        return tuple(dict.fromkeys(key for frame in self.frames.values() if (key := frame.parent) is not None))

    @property
    def sources(self) -> Mapping[str, Picture]:
        """Inputs that are no URLs, in the order in which they are uploaded: those of `files` and of `frames`."""
        found: dict[str, Picture] = {}
        # Most jobs have none, and all of them are asked.
        if (
            not (self.extra or self.keyframes or self.images or self.element_list or self.voice_list)
            and is_url(self.image)
            and (self.end_image is None or is_url(self.end_image))
        ):
            return found
        for name in IMAGES:
            image: Picture | None = getattr(self, name)
            if image is not None and not is_url(image):
                found[name] = image
        for name in IMAGE_LISTS:
            images: tuple[Picture, ...] = getattr(self, name)
            found |= {f"{name}[{place}]": image for place, image in enumerate(images) if not is_url(image)}
        for name in TREES:
            if value := getattr(self, name):
                found |= files_in(value, name)
        return found

    def with_files(self, values: Mapping[str, Picture]) -> Job:
        """Return the job with other values in place of its files and frames, such as the URLs of their uploads.

        Args:
            values: Values by the keys of `sources`; others stay.
        """
        if not values:
            return self
        fields: dict[str, Any] = with_values(
            {field.name: getattr(self, field.name) for field in attrs.fields(Job)}, values
        )
        # Copied lists are lists.
        fields |= {name: tuple(fields[name]) for name in _TUPLES}
        return job_of_fields(fields)

    def _with_sample_urls(self) -> Job:
        """Return the job as it is priced: with a URL in place of every file and frame."""
        return self.with_files({place: _sample_url(file) for place, file in self.sources.items()})

    def priced_inputs(self, provider: str = "wavespeed") -> dict[str, object]:
        """Return a request body with which the price can be asked for; files are not uploaded for it."""
        sample = self._with_sample_urls()
        image, end_image = sample.image, sample.end_image
        return sample.inputs(
            image if isinstance(image, str) else "",
            end_image if isinstance(end_image, str) else None,
            provider=provider,
        )

    def price(self, provider: str = "wavespeed") -> Price:
        """Return the price by the price list, in USD."""
        return self.row.price_of(self.kind, provider)

    def cautions(self, provider: str = "wavespeed", *, fit: bool = False, local: bool = False) -> tuple[Problem, ...]:
        """Return what may not be as expected at a provider, and is not refused; each names a field.

        Files are not opened for it: `Manifest.cautions` has what was found in them.

        Args:
            provider: Name of the provider.
            fit: Whether images are converted, which settles what the service might show otherwise than a viewer.
            local: The service is an emulator on this machine, which reaches pictures that the real one does not.
        """
        row = self.row
        found = [
            Problem((*caution.given, *caution.missing)[0], caution.message)
            for caution in row.cautions
            if caution.provider in {"", provider}
            and all(getattr(self, name) for name in caution.given)
            and not any(getattr(self, name) for name in caution.missing)
        ]
        if self.sound is None and row.at_provider(provider).sound_by_default:
            said = f"{row.name} makes sound by default at {provider}, which may cost more"
            found.append(Problem("sound", f"{said}: say sound=False for none, or sound=True"))
        return tuple(found + self.picture_cautions(fit=fit, local=local))

    def picture_cautions(self, *, fit: bool = False, local: bool = False) -> list[Problem]:
        """Return those of `cautions` that are about images, and the same at every provider."""
        found = [Problem("image", said) for said in picture_cautions(self.image, fit=fit, local=local)]
        if self.end_image is not None:
            found += [Problem("end_image", said) for said in picture_cautions(self.end_image, fit=fit, local=local)]
        for name in IMAGE_LISTS if self.keyframes or self.images else ():
            found += [
                Problem(name, said)
                for url in getattr(self, name)
                for said in picture_cautions(url, fit=fit, local=local)
            ]
        return found

    def inputs(self, image: str, end_image: str | None, *, provider: str = "wavespeed") -> dict[str, object]:
        """Return the request body; fields that were not given are left to the service's defaults.

        Args:
            image: URL or data URI of the first frame; empty for none.
            end_image: URL or data URI of the last frame, or None.
            provider: Name of the provider, whose field names are used.
        """
        row, here = self.row, self.row.at_provider(provider)
        body: dict[str, object] = {}
        if self.prompt:
            body["prompt"] = self.prompt
        if self.multi_prompt:
            body["multi_prompt"] = [
                attrs.asdict(shot, filter=lambda _, value: value is not None) for shot in self.multi_prompt
            ]
        if image:
            body["image"] = image
        if row.end_image is not None and end_image is not None:
            body |= dict.fromkeys(row.end_image.names_at(provider), end_image)
        if self.negative_prompt is not None:
            body["negative_prompt"] = self.negative_prompt
        if row.scale is not None and self.guidance_scale is not None:
            body[here.scale or row.scale] = self.guidance_scale
        if row.durations:
            # Sent even when it is the default, because it determines the price.
            body["duration"] = str(self.duration) if row.duration_type == "string" else self.duration
        if self.sound is not None:
            body["sound"] = self.sound
        if self.shot_type is not None:
            body["shot_type"] = row.shot_word(self.shot_type, provider)
        if self.element_list:
            body["element_list"] = list(self.element_list)
        if self.voice_list:
            body["voice_list"] = list(self.voice_list)
        return body | self._further_inputs() | dict(self.extra)

    def _further_inputs(self) -> dict[str, object]:
        given: dict[str, object] = {}
        for name in FURTHER_INPUTS:
            value: str | tuple[Picture, ...] | None = getattr(self, name)
            if value:
                given[name] = list(value) if isinstance(value, tuple) else value
        return given


IMAGES = ("image", "end_image")
"""Fields with one image."""
TREES = ("element_list", "voice_list", "extra")
"""Fields with JSON values, in which files may stand anywhere."""
_TUPLES = ("element_list", "voice_list", *IMAGE_LISTS)
_ANY_URL = "https://example.com/image.png"
"""Stands for an image in prices: formulas ask at most whether there is one, or how many."""


def _sample_url(file: Picture) -> str:
    """Return a URL that stands for a file or a frame in prices: that of a picture, a video or a sound."""
    suffix = ""
    if isinstance(file, Path):
        suffix = file.suffix.lower()
    elif isinstance(file, bytes):
        suffix = MEDIA.get(media_type(file) or "", ("", "", ""))[2]
    is_picture = suffix not in {each for kind, _, each in MEDIA.values() if kind != "picture"}
    return _ANY_URL if is_picture else f"https://example.com/file{suffix}"


def job_of_fields(fields: Mapping[str, Any]) -> Job:
    """Return a job of checked fields, without checking them again."""
    job = object.__new__(Job)
    job.__attrs_init__(**fields)  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it
    return job
