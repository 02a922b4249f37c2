"""What the caller asks for: checked before a byte is sent."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

import attrs

from kling_async.errors import InvalidJobError, Problem

from .catalogue import DEFAULT_MODEL, MAX_TEXT, Model, Price, find_model, near_names
from .images import Image, ImageSource, at_rest, image_repr

if TYPE_CHECKING:
    from .schema import Field


def _text(text: str | None) -> str:
    return "None" if text is None else repr(textwrap.shorten(text, 60, placeholder="..."))


@attrs.frozen
class Shot:
    """One shot of a `multi_prompt`.

    Attributes:
        prompt: What happens in it, 1 to 2,500 characters.
        duration: Seconds, or None to leave it to the service; then no shot of the job names any.
    """

    prompt: str = attrs.field(repr=_text)
    duration: int | None = None


class JobFields(TypedDict, total=False):
    """The fields of a job, by the names that `Job`, `generate` and `submit` take."""

    model: str | Model
    prompt: str
    image: ImageSource
    end_image: ImageSource
    negative_prompt: str
    guidance_scale: float
    duration: int | str
    sound: bool
    multi_prompt: Sequence[Shot | str | Mapping[str, object]]
    shot_type: str
    element_list: Sequence[object]
    voice_list: Sequence[object]
    extra: Mapping[str, object]


def _shown(value: object) -> str:
    """The beginning of `repr(value)`, which is the caller's: an integer of 5,000 digits has none."""
    try:
        return repr(value)[:40]
    except Exception:  # noqa: BLE001 -- whatever a foreign `__repr__` raises, the field is what is wrong
        return f"a value of type {type(value).__name__}"


@attrs.frozen(kw_only=True, init=False)
class Job:
    """One video to make: plain data, complete and checked.

    Attributes:
        model: Full id of the model, resolved from the full id, a short name (`"kling-v2.1-pro"`) or an alias. A model
            that is in no catalogue is given as its row, a `Model`.
        prompt: 1 to 2,500 characters; empty only where the model's row allows it, and where `multi_prompt` is given.
        image: The first frame: a URL, a `Path`, or the bytes of a JPEG or PNG of at most 10 MB and at least 300 x 300
            pixels. A file object or a PIL image is read when the job is made.
        end_image: The last frame, for the models that take one.
        negative_prompt: What to avoid, at most 2,500 characters.
        guidance_scale: 0 to 1; None leaves the service's 0.5.
        duration: Seconds of video, as the model's row allows; 5 by default, or what the shots take together. `"5"` is
            accepted. 0 where the model takes none.
        sound: Whether to make sound too, for the models that can.
        multi_prompt: Prompts of up to six shots, instead of `prompt` and without `end_image`, for the models that take
            them: texts, `Shot`s, or mappings with `prompt` and `duration`.
        shot_type: How the shots are told apart: "customize" or "intelligence", for the models that take it.
        element_list: Up to three references to elements that shall look the same throughout, as JSON, for the models
            that take them.
        voice_list: References to voices, as JSON, for the models that take them.
        extra: Fields that are sent as they are and not checked. The service drops names that it does not know,
            silently, and charges: this is the door for what the catalogue does not know yet. Only where the row names
            its further inputs (`Model.from_service`), they are checked against those.
        own_row: The row that was given as `model`, when the catalogue has not the same one; it travels with the job.

    Raises:
        InvalidJobError: With the path of every field that is wrong.
    """

    model: str
    prompt: str = attrs.field(repr=_text)
    image: Image = attrs.field(repr=image_repr)
    end_image: Image | None = attrs.field(repr=image_repr)
    negative_prompt: str | None = attrs.field(repr=_text)
    guidance_scale: float | None
    duration: int
    sound: bool | None
    multi_prompt: tuple[Shot, ...]
    shot_type: str | None
    element_list: tuple[object, ...] = attrs.field(hash=False)
    voice_list: tuple[object, ...] = attrs.field(hash=False)
    extra: Mapping[str, object] = attrs.field(hash=False)
    own_row: Model | None = attrs.field(repr=False)

    def __init__(self, /, **fields: Unpack[JobFields]) -> None:
        self.__attrs_init__(**_checked(dict(fields)))  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it

    @property
    def row(self) -> Model:
        """The model's row: the job's own, or that of the catalogue."""
        row = self.own_row or find_model(self.model)
        if row is None:  # pragma: no cover -- a job is made only with a model that exists
            raise LookupError(self.model)
        return row

    def price(self, provider: str = "wavespeed") -> Price:
        """What it costs by the price list, in USD."""
        return self.row.price(self.duration, provider=provider, sound=bool(self.sound))

    def inputs(self, image: str, end_image: str | None, *, provider: str = "wavespeed") -> dict[str, object]:
        """The request body, with the images as URLs. Fields that were not given are left to the service's defaults.

        Args:
            image: URL or data URI of the first frame.
            end_image: The same of the last frame.
            provider: Whose names of the fields to use.
        """
        row = self.row
        body: dict[str, object] = {}
        if self.prompt:
            body["prompt"] = self.prompt
        if self.multi_prompt:
            body["multi_prompt"] = [
                attrs.asdict(shot, filter=lambda _, value: value is not None) for shot in self.multi_prompt
            ]
        body["image"] = image
        if row.end_image is not None and end_image is not None:
            body[row.end_image.name_at(provider)] = end_image
        if self.negative_prompt is not None:
            body["negative_prompt"] = self.negative_prompt
        if row.scale is not None and self.guidance_scale is not None:
            body[row.scale] = self.guidance_scale
        if row.durations:
            # Sent even when it is the default: it decides the price.
            body["duration"] = str(self.duration) if row.duration_type == "string" else self.duration
        if self.sound is not None:
            body["sound"] = self.sound
        if self.shot_type is not None:
            body["shot_type"] = self.shot_type
        if self.element_list:
            body["element_list"] = list(self.element_list)
        if self.voice_list:
            body["voice_list"] = list(self.voice_list)
        return body | dict(self.extra)


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """All fields of a job, normalised; or InvalidJobError with all that is wrong."""
    problems: list[Problem] = []
    # How a job is copied (`attrs.evolve`); what callers give is `model`.
    own_row = fields.pop("own_row", None)
    given = {name: value for name, value in fields.items() if value is not None and not _empty(name, value)}
    for name in () if fields.keys() <= _FIELDS else [name for name in fields if name not in _FIELDS]:
        near = difflib.get_close_matches(name, [*JobFields.__annotations__, *_SYNONYMS], n=1, cutoff=0.6)
        meant = _SYNONYMS.get(near[0], near[0]) if near else None
        hint = f"; did you mean {meant}?" if meant else "; the fields are " + ", ".join(JobFields.__annotations__)
        problems.append(Problem(name, "unknown field, the service would drop it and charge" + hint))

    row = _model(given.get("model", DEFAULT_MODEL), own_row, problems)
    prompt = _prompt(given, row, problems)
    shots = _shots(given, row, problems)
    checked: dict[str, Any] = {
        "model": row.id if row else "",
        "prompt": prompt,
        "image": b"",
        "end_image": None,
        "negative_prompt": None,
        "guidance_scale": None,
        "duration": _seconds(given, row, shots, problems),
        "sound": None,
        "multi_prompt": shots,
        "shot_type": None,
        "element_list": (),
        "voice_list": (),
        "extra": {},
        "own_row": None if row is None or _is_known(row) else row,
    }
    if "image" in given:
        checked["image"] = at_rest("image", given["image"], problems)
    else:
        problems.append(Problem("image", "required: a URL, a Path, or the bytes of a JPEG or PNG"))
    _end_image(given, row, checked, problems)
    if "negative_prompt" in given:
        if row is not None and not row.negative_prompt:
            problems.append(Problem("negative_prompt", f"{row.name} takes none"))
        checked["negative_prompt"] = _short("negative_prompt", given["negative_prompt"], row, problems)
    if "guidance_scale" in given:
        checked["guidance_scale"] = _scale(given["guidance_scale"], row, problems)
    if "sound" in given:
        if not isinstance(given["sound"], bool):
            problems.append(Problem("sound", f"expected True or False, got {_shown(given['sound'])}"))
        elif row is not None and not row.sound:
            problems.append(Problem("sound", f"{row.name} makes no sound"))
        checked["sound"] = given["sound"]
    if not _RARE.isdisjoint(given):
        _rarely(given, row, checked, problems)
    _extra(given.get("extra", {}), row, checked, problems)
    if row is not None and not row.required <= given.keys():
        problems.extend(Problem(name, f"required by {row.name}") for name in sorted(row.required - given.keys()))
    if problems:
        raise InvalidJobError(problems)
    return checked


_FIELDS = frozenset(JobFields.__annotations__)
_RARE = frozenset({"shot_type", "element_list", "voice_list"})
_LISTS = frozenset({"multi_prompt", "element_list", "voice_list"})


def _empty(name: str, value: object) -> bool:
    """Whether a list has nothing in it, which is how a job without one is copied."""
    return name in _LISTS and isinstance(value, (list, tuple)) and not value


_SYNONYMS = {
    "cfg_scale": "guidance_scale",
    "last_image": "end_image",
    "tail_image": "end_image",
    "start_image": "image",
    "image_url": "image",
    "seconds": "duration",
    "text": "prompt",
}


def _is_known(row: Model) -> bool:
    """Whether the catalogue has the same row."""
    there = find_model(row.id)
    # Almost always it is the catalogue's own, and comparing all of its fields takes a while.
    return there is row or there == row


def _model(name: object, own_row: Model | None, problems: list[Problem]) -> Model | None:
    if isinstance(name, Model):
        return name
    if own_row is not None and own_row.id == name:
        return own_row
    if not isinstance(name, str):
        problems.append(Problem("model", f"expected a name, got {type(name).__name__}"))
        return None
    row = find_model(name)
    if row is None:
        problems.append(Problem("model", f"unknown model {name[:80]!r}; did you mean {' or '.join(near_names(name))}?"))
    return row


def _short(path: str, text: object, row: Model | None, problems: list[Problem]) -> str:
    if not isinstance(text, str):
        problems.append(Problem(path, f"expected text, got {type(text).__name__}"))
        return ""
    most = MAX_TEXT if row is None else row.max_text
    if len(text) > most:
        problems.append(Problem(path, f"expected at most {most} characters, got {len(text)}"))
    try:
        text.encode()
    except UnicodeEncodeError:
        problems.append(Problem(path, "has a lone surrogate, which is no text"))
    return text


def _prompt(given: dict[str, Any], row: Model | None, problems: list[Problem]) -> str:
    text = given.get("prompt", "")
    prompt = _short("prompt", text, row, problems)
    if not isinstance(text, str):
        return prompt
    if "multi_prompt" in given:
        if prompt.strip():
            problems.append(Problem("prompt", "not together with multi_prompt: give one of the two"))
        return ""
    if not prompt.strip() and (row is None or row.prompt_required):
        more = ", or multi_prompt" if row is not None and row.shots else ""
        problems.append(
            Problem("prompt", f"required: 1 to {MAX_TEXT if row is None else row.max_text} characters{more}")
        )
    return prompt


def _shots(given: dict[str, Any], row: Model | None, problems: list[Problem]) -> tuple[Shot, ...]:
    if "multi_prompt" not in given:
        return ()
    value = given["multi_prompt"]
    if row is not None and not row.shots:
        problems.append(Problem("multi_prompt", f"{row.name} takes one prompt"))
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        problems.append(Problem("multi_prompt", f"expected a list of shots, got {type(value).__name__}"))
        return ()
    if row is not None and len(value) > row.shots:
        problems.append(Problem("multi_prompt", f"expected 1 to {row.shots} shots, got {len(value)}"))
        return ()
    shots = tuple(_shot(f"multi_prompt.{place}", shot, row, problems) for place, shot in enumerate(value))
    if len({shot.duration is None for shot in shots}) > 1:
        problems.append(Problem("multi_prompt", "expected a duration for every shot or for none"))
    return shots


def _shot(path: str, value: object, row: Model | None, problems: list[Problem]) -> Shot:
    prompt: object
    duration: object
    match value:
        case Shot(prompt, duration):
            pass
        case str():
            prompt, duration = value, None
        case Mapping():
            problems.extend(
                Problem(f"{path}.{name}", "unknown field: a shot has prompt and duration")
                for name in value
                if name not in {"prompt", "duration"}
            )
            prompt, duration = value.get("prompt", ""), value.get("duration")
        case _:
            problems.append(Problem(path, f"expected a text or a Shot, got {type(value).__name__}"))
            return Shot("")
    text = _short(f"{path}.prompt", prompt, row, problems)
    if isinstance(prompt, str) and not text.strip():
        problems.append(Problem(f"{path}.prompt", "is empty"))
    seconds = _whole(duration)
    if seconds is None and duration is not None:
        problems.append(Problem(f"{path}.duration", f"expected whole seconds, got {_shown(duration)}"))
    return Shot(text, seconds)


def _whole(value: object) -> int | None:
    """Whole seconds from 1, as a number or a short text."""
    # The length is bounded because `int` refuses texts of thousands of digits with an error of its own.
    numeric = isinstance(value, str) and len(value) < 10 and value.strip().isdecimal()  # noqa: PLR2004 -- see above
    seconds: object = int(cast("str", value)) if numeric else value
    return seconds if isinstance(seconds, int) and not isinstance(seconds, bool) and seconds > 0 else None


def _seconds(given: dict[str, Any], row: Model | None, shots: tuple[Shot, ...], problems: list[Problem]) -> int:
    """The seconds that are sent and charged: as given, or as the shots have them, or the model's default."""
    if row is not None and not row.durations:
        # 0 is how a job without a duration is copied.
        if given.get("duration", 0) != 0:
            problems.append(Problem("duration", f"{row.name} takes no duration"))
        return 0
    durations = row.durations if row is not None else (5, 10)
    together = sum(shot.duration or 0 for shot in shots) if all(shot.duration for shot in shots) else 0
    if together and together not in durations:
        problems.append(
            Problem("multi_prompt", f"expected shots of {_allowed(durations)} s together, got {together} s")
        )
        return 0
    usual = 5 if row is None else row.default_duration
    seconds = _duration(
        given.get("duration", together or (usual if usual in durations else durations[0])), row, problems
    )
    if together and seconds not in {0, together}:
        # The pages do not say which of the two is charged.
        problems.append(Problem("duration", f"the shots take {together} s together, got {seconds}"))
    return seconds


def _allowed(durations: tuple[int, ...]) -> str:
    if len(durations) > 2 and durations == tuple(range(durations[0], durations[-1] + 1)):  # noqa: PLR2004 -- a range
        return f"{durations[0]} to {durations[-1]}"
    return " or ".join(map(str, durations))


def _duration(value: object, row: Model | None, problems: list[Problem]) -> int:
    durations = row.durations if row else (5, 10)
    seconds = _whole(value)
    if seconds is None or seconds not in durations:
        problems.append(Problem("duration", f"expected {_allowed(durations)}, got {_shown(value)}"))
        return 0
    return seconds


def _scale(value: object, row: Model | None, problems: list[Problem]) -> float | None:
    if row is not None and row.scale is None:
        problems.append(Problem("guidance_scale", f"{row.name} has no guidance scale"))
    low, high = (0.0, 1.0) if row is None else row.scale_range
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        problems.append(Problem("guidance_scale", f"expected a number from {low:g} to {high:g}, got {_shown(value)}"))
        return None
    return float(value)


def _rarely(given: dict[str, Any], row: Model | None, checked: dict[str, Any], problems: list[Problem]) -> None:
    """The fields that few models take."""
    kind = given.get("shot_type")
    if kind is not None:
        if row is not None and not row.shot_types:
            problems.append(Problem("shot_type", f"{row.name} takes no shot_type"))
        elif not isinstance(kind, str) or (row is not None and kind not in row.shot_types):
            expected = " or ".join(map(repr, row.shot_types)) if row is not None else "text"
            problems.append(Problem("shot_type", f"expected {expected}, got {_shown(kind)}"))
        checked["shot_type"] = kind
    for name, most in (
        ("element_list", row.elements if row is not None else None),
        ("voice_list", (None if row.voices else 0) if row is not None else None),
    ):
        value = given.get(name, ())
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
            problems.append(Problem(name, f"expected a list, got {type(value).__name__}"))
        elif value and row is not None and most == 0:
            problems.append(Problem(name, f"{row.name} takes no {name}"))
        elif most is not None and len(value) > most:
            problems.append(Problem(name, f"expected at most {most} items, got {len(value)}"))
        else:
            checked[name] = tuple(_json(name, list(value), problems) or ()) if value else ()


def _json(path: str, value: Any, problems: list[Problem]) -> Any:
    """A private copy of plain JSON, so that a job stays what it was when it was checked; None when it is none."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(Problem(path, f"is not JSON: {error}"))
        return None


def _end_image(given: dict[str, Any], row: Model | None, checked: dict[str, Any], problems: list[Problem]) -> None:
    if "end_image" not in given:
        if row is not None and row.end_image is not None and row.end_image.required:
            problems.append(Problem("end_image", f"required by {row.name}: a URL, a Path, or bytes"))
        return
    if row is not None and row.end_image is None:
        problems.append(Problem("end_image", f"{row.name} takes no last frame"))
    elif given.get("multi_prompt"):
        problems.append(Problem("end_image", "not together with multi_prompt"))
    checked["end_image"] = at_rest("end_image", given["end_image"], problems)


def _extra(extra: object, row: Model | None, checked: dict[str, Any], problems: list[Problem]) -> None:
    if not isinstance(extra, Mapping):
        problems.append(Problem("extra", f"expected a mapping, got {type(extra).__name__}"))
        return
    problems.extend(
        Problem(f"extra.{name}", "is a field of the job: give it by its name")
        for name in extra
        if name in JobFields.__annotations__
    )
    if row is not None and row.more is not None:
        _more(extra, row, row.more, problems)
    checked["extra"] = (_json("extra", dict(extra), problems) or {}) if extra else {}


def _more(extra: Mapping[str, object], row: Model, fields: tuple[Field, ...], problems: list[Problem]) -> None:
    """Check `extra` where the model's further inputs are known."""
    known = {field.name: field for field in fields}
    for name, value in extra.items():
        if name in known:
            problem = known[name].problem(value)
        elif name in JobFields.__annotations__:
            continue
        else:
            takes = f"; it takes {', '.join(known)}" if known else ""
            problem = f"{row.name} takes no such input, the service would drop it and charge{takes}"
        if problem:
            problems.append(Problem(f"extra.{name}", problem))
    problems.extend(
        Problem(f"extra.{field.name}", f"required by {row.name}")
        for field in fields
        if field.required and field.name not in extra
    )
