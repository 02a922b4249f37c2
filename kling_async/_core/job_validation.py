"""Checks the fields of a job against its model and normalises them. Collects all problems, each with its field path."""

from __future__ import annotations

import json
import secrets
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, cast

import attrs

from kling_async.errors import InvalidJobError, Problem

from .catalogue import DEFAULT_MODEL, find_model, near_names
from .images import ImageSource, Picture, check_image
from .input_files import check_file, is_file_source, replaced
from .model import Model
from .schema import numbers

if TYPE_CHECKING:
    from .schema import Field


def text_repr(text: str | None) -> str:
    """Return `repr(text)`, shortened to 60 characters."""
    return "None" if text is None else repr(textwrap.shorten(text, 60, placeholder="..."))


@attrs.frozen
class Shot:
    """One shot of a `multi_prompt`.

    Attributes:
        prompt: The shot's prompt, 1 to 2,500 characters.
        duration: Seconds, or None to let the service choose; give it for every shot of a job or for none.
    """

    prompt: str = attrs.field(repr=text_repr)
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
    resolution: str
    aspect_ratio: str
    dynamic_range: str
    keyframes: Sequence[ImageSource]
    images: Sequence[ImageSource]
    extra: Mapping[str, object]
    labels: Mapping[str, object]
    caller: str | int
    priority: int


_FIELDS = frozenset(JobFields.__annotations__)
_RARE_FIELDS = frozenset({"shot_type", "element_list", "voice_list"})
FURTHER_INPUTS = ("resolution", "aspect_ratio", "dynamic_range", "keyframes", "images")
"""Fields that have the names of their inputs; `Model.input` describes them."""
IMAGE_LISTS = ("keyframes", "images")
UNSENT_FIELDS = frozenset({"labels", "caller", "priority"})
"""Fields that are about the job alone: they are not sent, so inputs in `extra` may have their names."""
MAX_CALLER_LENGTH = 200
"""Characters of a caller's name."""
MAX_PRIORITY = 1_000_000
"""Highest priority; the lowest is its negative."""
_LIST_FIELDS = frozenset({"multi_prompt", "element_list", "voice_list", *IMAGE_LISTS})
_SYNONYMS = {
    "cfg_scale": "guidance_scale",
    "last_image": "end_image",
    "tail_image": "end_image",
    "start_image": "image",
    "image_url": "image",
    "seconds": "duration",
    "text": "prompt",
}
_MARK = f"{secrets.token_hex(16)}:"
"""Beginning of what stands for a file while a JSON value is copied; no text of a caller begins so."""
_MAX_NUMBER_LENGTH = 9
"""Most characters of a number given as text; `int` raises an error of its own for thousands of digits."""


def checked_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return all fields of a job, normalised.

    Raises:
        InvalidJobError: A field is wrong; it lists all problems.
    """
    problems: list[Problem] = []
    # Set only by copying a job (`attrs.evolve`); callers pass a row as `model`.
    own_row = fields.pop("own_row", None)
    given = {name: value for name, value in fields.items() if value is not None and not _is_empty_list(name, value)}
    for name in () if fields.keys() <= _FIELDS else [name for name in fields if name not in _FIELDS]:
        import difflib  # noqa: PLC0415 -- for wrong names only

        near = difflib.get_close_matches(name, [*JobFields.__annotations__, *_SYNONYMS], n=1, cutoff=0.6)
        meant = _SYNONYMS.get(near[0], near[0]) if near else None
        hint = f"did you mean {meant}?" if meant else "the fields are " + ", ".join(JobFields.__annotations__)
        problems.append(Problem(name, f"unknown field: the service would ignore it and charge; {hint}"))

    row = _model(given.get("model", DEFAULT_MODEL), own_row, problems)
    if row is None:
        # All other checks depend on the model.
        raise InvalidJobError(problems)
    prompt = _prompt(given, row, problems)
    shots = _shots(given, row, problems)
    checked: dict[str, Any] = {
        "model": row.id,
        "prompt": prompt,
        "image": None,
        "end_image": None,
        "negative_prompt": None,
        "guidance_scale": None,
        "duration": _total_duration(given, row, shots, problems),
        "sound": None,
        "multi_prompt": shots,
        "shot_type": None,
        "element_list": (),
        "voice_list": (),
        **{name: () if name in IMAGE_LISTS else None for name in FURTHER_INPUTS},
        "extra": {},
        "labels": _labels(given["labels"], problems) if "labels" in given else {},
        "caller": _caller(given["caller"], problems) if "caller" in given else "",
        "priority": _priority(given["priority"], problems) if "priority" in given else 0,
        "own_row": None if _is_in_catalogue(row) else row,
    }
    _image(given, row, checked, problems)
    _end_image(given, row, checked, problems)
    if "negative_prompt" in given:
        if not row.negative_prompt:
            problems.append(_unsupported("negative_prompt", row))
        checked["negative_prompt"] = _text("negative_prompt", given["negative_prompt"], row, problems)
    if "guidance_scale" in given:
        checked["guidance_scale"] = _guidance_scale(given["guidance_scale"], row, problems)
    if "sound" in given:
        checked["sound"] = _sound(given["sound"], row, problems)
    if not _RARE_FIELDS.isdisjoint(given):
        _rare_fields(given, row, checked, problems)
    _further_inputs(given, row, checked, problems)
    _extra(given.get("extra", {}), row, checked, problems)
    if not row.required <= given.keys():
        problems.extend(Problem(name, f"required by {row.name}") for name in sorted(row.required - given.keys()))
    if problems:
        raise InvalidJobError(problems)
    return checked


def _unsupported(field: str, row: Model) -> Problem:
    return Problem(field, f"not supported by {row.name}")


def _short_repr(value: object) -> str:
    """Return the first 40 characters of `repr(value)`, which may raise: an integer of 5,000 digits has no repr."""
    try:
        return repr(value)[:40]
    except Exception:  # noqa: BLE001 -- a foreign `__repr__` may raise anything; the error is about the field
        return f"a value of type {type(value).__name__}"


def _is_empty_list(name: str, value: object) -> bool:
    """Return whether a list field is empty: copying a job passes the lists that it does not have as empty ones."""
    return name in _LIST_FIELDS and isinstance(value, (list, tuple)) and not value


def _is_in_catalogue(row: Model) -> bool:
    """Return whether the catalogue has the same row."""
    there = find_model(row.id)
    # The row is nearly always the catalogue's own object, and comparing all fields takes longer.
    return there is row or there == row


def _model(name: object, own_row: Model | None, problems: list[Problem]) -> Model | None:
    if isinstance(name, Model):
        return name
    if own_row is not None and own_row.id == name:
        return own_row
    if not isinstance(name, str):
        problems.append(Problem("model", f"expected a model name or a Model, got {type(name).__name__}"))
        return None
    row = find_model(name)
    if row is None:
        # Whoever writes a path may mean a model that the service alone lists.
        other = "; others of the service: Model.from_service, or --from-service" if "/" in name else ""
        near = " or ".join(near_names(name))
        problems.append(Problem("model", f"unknown model {name[:80]!r}; did you mean {near}?{other}"))
    return row


def _text(path: str, text: object, row: Model, problems: list[Problem]) -> str:
    if not isinstance(text, str):
        problems.append(Problem(path, f"expected text, got {type(text).__name__}"))
        return ""
    most = row.max_text
    if len(text) > most:
        problems.append(Problem(path, f"expected at most {most} characters, got {len(text)}"))
    try:
        text.encode()
    except UnicodeEncodeError:
        problems.append(Problem(path, "expected Unicode text, got a lone surrogate"))
    return text


def _prompt(given: dict[str, Any], row: Model, problems: list[Problem]) -> str:
    text = given.get("prompt", "")
    prompt = _text("prompt", text, row, problems)
    if not row.prompt and prompt:
        problems.append(_unsupported("prompt", row))
    if not isinstance(text, str):
        return prompt
    if "multi_prompt" in given and not row.prompt_beside_shots:
        if prompt.strip():
            problems.append(Problem("prompt", "expected either prompt or multi_prompt, got both"))
        return ""
    if not prompt.strip() and row.prompt_required:
        most = row.max_text
        alternative = ", or multi_prompt" if row.shots and not row.prompt_beside_shots else ""
        problems.append(Problem("prompt", f"required: 1 to {most} characters{alternative}"))
    return prompt


def _shots(given: dict[str, Any], row: Model, problems: list[Problem]) -> tuple[Shot, ...]:
    if "multi_prompt" not in given:
        return ()
    value = given["multi_prompt"]
    if not row.shots:
        problems.append(_unsupported("multi_prompt", row))
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        problems.append(Problem("multi_prompt", f"expected a list of shots, got {type(value).__name__}"))
        return ()
    if len(value) > row.shots:
        problems.append(Problem("multi_prompt", f"expected 1 to {row.shots} shots, got {len(value)}"))
        return ()
    shots = tuple(_shot(f"multi_prompt[{place}]", shot, row, problems) for place, shot in enumerate(value))
    if len({shot.duration is None for shot in shots}) > 1:
        problems.append(Problem("multi_prompt", "expected a duration for every shot or for none, got some"))
    return shots


def _shot(path: str, value: object, row: Model, problems: list[Problem]) -> Shot:
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
            problems.append(Problem(path, f"expected text, a mapping or a Shot, got {type(value).__name__}"))
            return Shot("")
    text = _text(f"{path}.prompt", prompt, row, problems)
    if isinstance(prompt, str) and not text.strip():
        problems.append(Problem(f"{path}.prompt", "is empty"))
    seconds = _positive_int(duration)
    if seconds is None and duration is not None:
        problems.append(Problem(f"{path}.duration", f"expected whole seconds, got {_short_repr(duration)}"))
    return Shot(text, seconds)


def _positive_int(value: object) -> int | None:
    """Return a positive integer, given as such or as a short text; None for anything else."""
    numeric = isinstance(value, str) and len(value) <= _MAX_NUMBER_LENGTH and value.strip().isdecimal()
    number: object = int(cast("str", value)) if numeric else value
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else None


def _total_duration(given: dict[str, Any], row: Model, shots: tuple[Shot, ...], problems: list[Problem]) -> int:
    """Return the seconds to send and be charged for: as given, else the sum of the shots, else the model's default."""
    if not row.durations:
        # Copying a job without a duration passes 0.
        if given.get("duration", 0) != 0:
            problems.append(_unsupported("duration", row))
        return 0
    durations = row.durations
    total = sum(shot.duration or 0 for shot in shots) if all(shot.duration for shot in shots) else 0
    if total and total not in durations:
        problems.append(Problem("multi_prompt", f"expected shots of {numbers(durations)} s in total, got {total} s"))
        return 0
    usual = row.default_duration
    default = total or (usual if usual in durations else durations[0])
    seconds = _duration(given.get("duration", default), durations, problems)
    if total and seconds not in {0, total}:
        # No page of the vendor says which of the two is charged.
        problems.append(Problem("duration", f"expected {total}, the total of the shots, got {seconds}"))
    return seconds


def _duration(value: object, durations: tuple[int, ...], problems: list[Problem]) -> int:
    seconds = _positive_int(value)
    if seconds is None or seconds not in durations:
        problems.append(Problem("duration", f"expected {numbers(durations)}, got {_short_repr(value)}"))
        return 0
    return seconds


def _guidance_scale(value: object, row: Model, problems: list[Problem]) -> float | None:
    if row.scale is None:
        problems.append(_unsupported("guidance_scale", row))
    low, high = row.scale_range
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        problems.append(
            Problem("guidance_scale", f"expected a number from {low:g} to {high:g}, got {_short_repr(value)}")
        )
        return None
    return float(value)


def _rare_fields(given: dict[str, Any], row: Model, checked: dict[str, Any], problems: list[Problem]) -> None:
    """Check the fields that few models take."""
    kind = given.get("shot_type")
    if kind is not None:
        if not row.shot_types:
            problems.append(_unsupported("shot_type", row))
        elif not isinstance(kind, str) or kind not in {*row.shot_types, *row.shot_synonyms}:
            expected = " or ".join(map(repr, row.shot_types))
            problems.append(Problem("shot_type", f"expected {expected}, got {_short_repr(kind)}"))
        checked["shot_type"] = kind
    for name, most in (
        ("element_list", row.elements),
        ("voice_list", None if row.voices else 0),
    ):
        value = given.get(name, ())
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
            problems.append(Problem(name, f"expected a list, got {type(value).__name__}"))
        elif value and most == 0:
            problems.append(_unsupported(name, row))
        elif most is not None and len(value) > most:
            problems.append(Problem(name, f"expected at most {most} items, got {len(value)}"))
        else:
            checked[name] = tuple(_json_copy(name, list(value), problems) or ()) if value else ()


def _json_copy(path: str, value: Any, problems: list[Problem], *, may_have_files: bool = True) -> Any:
    """Return a deep copy of a JSON value, by default with files, so that the caller cannot change a checked job.

    None when it is not JSON.
    """
    files: list[object] = []

    def hold(file: object) -> str:
        if not (may_have_files and is_file_source(file)):
            raise TypeError(f"Object of type {type(file).__name__} is not JSON serializable")
        files.append(file)
        return f"{_MARK}{len(files) - 1}"

    # By identity: an open file can be read only once.
    kept: dict[int, object] = {}

    def take(place: str, item: object) -> object:
        if not isinstance(item, str) or not item.startswith(_MARK):
            return item
        source = files[int(item.removeprefix(_MARK))]
        if id(source) not in kept:
            kept[id(source)] = check_file(place, source, problems)
        return kept[id(source)]

    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=hold)
        text.encode()
        copied = json.loads(text)
        return replaced(copied, path, take) if files else copied
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(Problem(path, f"is not JSON: {error}"))
        return None


def _sound(value: object, row: Model, problems: list[Problem]) -> bool | None:
    if not isinstance(value, bool):
        problems.append(Problem("sound", f"expected True or False, got {_short_repr(value)}"))
        return None
    if not row.sound:
        problems.append(_unsupported("sound", row))
    return value


def _image(given: dict[str, Any], row: Model, checked: dict[str, Any], problems: list[Problem]) -> None:
    if "image" in given:
        if not row.image:
            problems.append(_unsupported("image", row))
        checked["image"] = check_image("image", given["image"], problems)
    elif row.image and row.image_required:
        problems.append(Problem("image", "required: a URL, a Path, or the bytes of a JPEG or PNG"))


def _end_image(given: dict[str, Any], row: Model, checked: dict[str, Any], problems: list[Problem]) -> None:
    if "end_image" not in given:
        if row.end_image is not None and row.end_image.required:
            problems.append(Problem("end_image", f"required by {row.name}: a URL, a Path, or bytes"))
        return
    if row.end_image is None:
        problems.append(_unsupported("end_image", row))
    elif given.get("multi_prompt"):
        problems.append(Problem("end_image", "expected either end_image or multi_prompt, got both"))
    checked["end_image"] = check_image("end_image", given["end_image"], problems)


def _further_inputs(given: dict[str, Any], row: Model, checked: dict[str, Any], problems: list[Problem]) -> None:
    """Check the fields that are described by `Model.input`, and the rules between them."""
    extra = given.get("extra")
    for name in FURTHER_INPUTS:
        field, value = row.input(name), given.get(name)
        if value is None:
            elsewhere = isinstance(extra, Mapping) and name in extra
            if field is not None and field.required and not elsewhere:
                problems.append(Problem(name, f"required by {row.name}"))
        elif field is None:
            problems.append(_unsupported(name, row))
        elif name in IMAGE_LISTS:
            checked[name] = _images(name, value, field, problems)
        elif problem := field.problem(value) or ("" if isinstance(value, str) else "expected text"):
            problems.append(Problem(name, problem))
        else:
            checked[name] = value
    for rule in row.requirements:
        if given.get(rule.field) is not None and given.get(rule.other) not in rule.values:
            values = " or ".join(map(repr, rule.values))
            problems.append(Problem(rule.field, f"{row.name} has it only with {rule.other} {values}"))


def _images(name: str, value: object, field: Field, problems: list[Problem]) -> tuple[Picture, ...]:
    """Return the images of a list."""
    if not isinstance(value, (list, tuple)):
        problems.append(Problem(name, f"expected a list of images, got {type(value).__name__}"))
        return ()
    problem = field.problem(list(value))
    if problem:
        problems.append(Problem(name, problem))
        # Reading files that are not sent takes time.
        return ()
    return tuple(check_image(f"{name}[{place}]", image, problems) for place, image in enumerate(value))


def _extra(extra: object, row: Model, checked: dict[str, Any], problems: list[Problem]) -> None:
    if not isinstance(extra, Mapping):
        problems.append(Problem("extra", f"expected a mapping, got {type(extra).__name__}"))
        return
    problems.extend(
        Problem(f"extra.{name}", "is a field of Job: pass it by name")
        for name in extra
        if _belongs_to_a_field(name, row, checked)
    )
    if row.more is not None:
        _extra_inputs(extra, row, checked, problems)
    checked["extra"] = (_json_copy("extra", dict(extra), problems) or {}) if extra else {}


def _labels(labels: object, problems: list[Problem]) -> Mapping[str, object]:
    if not isinstance(labels, Mapping):
        problems.append(Problem("labels", f"expected a mapping, got {type(labels).__name__}"))
        return {}
    return (_json_copy("labels", dict(labels), problems, may_have_files=False) or {}) if labels else {}


def _caller(caller: object, problems: list[Problem]) -> str:
    if isinstance(caller, int) and not isinstance(caller, bool):
        caller = str(caller)
    if not isinstance(caller, str):
        problems.append(Problem("caller", f"expected text, got {type(caller).__name__}"))
    elif len(caller) > MAX_CALLER_LENGTH or not caller.isprintable():
        expected = f"at most {MAX_CALLER_LENGTH} printable characters"
        problems.append(Problem("caller", f"expected {expected}, got {caller!r:.60}"))
    else:
        return caller
    return ""


def _priority(priority: object, problems: list[Problem]) -> int:
    if isinstance(priority, int) and not isinstance(priority, bool) and abs(priority) <= MAX_PRIORITY:
        return priority
    expected = f"a whole number from -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}"
    problems.append(Problem("priority", f"expected {expected}, got {priority!r:.60}"))
    return 0


def _belongs_to_a_field(name: object, row: Model, checked: dict[str, Any]) -> bool:
    """Return whether a name in `extra` has to be passed as a field.

    Jobs with a row of their own may have `FURTHER_INPUTS` in `extra`, as in earlier versions: in another place they
    would be another job, which would be paid for again.
    """
    if name in FURTHER_INPUTS and not _is_in_catalogue(row):
        return bool(checked[str(name)]) or any(field.name == name for field in row.inputs)
    return name in _FIELDS and name not in UNSENT_FIELDS


def _input_problem(field: Field, value: object) -> str:
    """Return the problem with the value of an input in `extra`, or an empty text. A file is sent as its URL."""
    if not is_file_source(value):
        return field.problem(value)
    if field.choices:
        return f"expected {' or '.join(map(repr, field.choices))}, got a file"
    return "" if field.type in {None, "string"} else f"expected {field.type}, got a file"


def _extra_inputs(extra: Mapping[str, object], row: Model, checked: dict[str, Any], problems: list[Problem]) -> None:
    """Check `extra` against the model's further inputs."""
    fields = row.more or ()
    known = {field.name: field for field in fields}
    for name, value in extra.items():
        if name in known:
            problem = _input_problem(known[name], value)
        elif _belongs_to_a_field(name, row, checked):
            continue
        else:
            inputs = f"; its inputs are {', '.join(known)}" if known else ""
            problem = f"not supported by {row.name}: the service would ignore it and charge{inputs}"
        if problem:
            problems.append(Problem(f"extra.{name}", problem))
    problems.extend(
        Problem(f"extra.{field.name}", f"required by {row.name}")
        for field in fields
        if field.required and field.name not in extra and field.name not in FURTHER_INPUTS
    )
