"""Reads the service's own description of a model's inputs (docs: list-models).

The `request_schema` of `GET /models` lists the inputs with their types, bounds, choices and defaults. Inputs that `Job`
has a field for are recognised by their wire names; the rest become `Field`s, against which `Job.extra` is checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import attrs

from .formula import FormulaInput

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}

_SCALE_NAMES = ("guidance_scale", "cfg_scale")
_END_IMAGE_NAMES = ("end_image", "last_image", "tail_image")
_JOB_INPUTS = frozenset(
    {
        "prompt",
        "image",
        "negative_prompt",
        "duration",
        "sound",
        "multi_prompt",
        "shot_type",
        "element_list",
        "voice_list",
        *_SCALE_NAMES,
        *_END_IMAGE_NAMES,
    }
)
_MAX_DURATION_CHOICES = 600
"""Most values of a range of durations in seconds; a longer range is not listed."""
_MAX_NUMBER_LENGTH = 9
"""Most characters of a number given as text, as in jobs."""


@attrs.frozen(kw_only=True)
class Field:
    """An input that `Job` has no field for; it is passed in `Job.extra`.

    Attributes:
        name: Wire name.
        type: JSON type; None for any.
        required: Whether it is required.
        choices: Allowed values; empty for any.
        minimum: Lowest number; None without a bound.
        maximum: Highest number; None without a bound.
        max_length: Most characters of a text, or most items of a list; None without a bound.
        default: The service's default; None if it has none.
    """

    name: str
    type: str | None = None
    required: bool = False
    choices: tuple[str | int | float, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    default: object = attrs.field(default=None, hash=False)

    def problem(self, value: object) -> str:
        """Return the problem with a value, or an empty text."""
        wanted = _TYPES.get(self.type or "")
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            return f"expected {self.type}, got {type(value).__name__}"
        if self.choices and value not in self.choices:
            return f"expected {' or '.join(map(repr, self.choices))}, got {value!r:.40}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = self.minimum, self.maximum
            if (low is not None and value < low) or (high is not None and value > high):
                return f"expected {_range(low, high)}, got {value!r:.40}"
        if isinstance(value, (str, list)) and self.max_length is not None and len(value) > self.max_length:
            unit = "characters" if isinstance(value, str) else "items"
            return f"expected at most {self.max_length} {unit}, got {len(value)}"
        return ""


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low:g}" if low is not None else f"at most {high:g}"
    return f"{low:g} to {high:g}"


@attrs.frozen(kw_only=True)
class Facts:
    """The facts of a schema, by the names of `Model`.

    Attributes:
        unsupported: Why the model cannot be run; empty if it can.
        most_items: Most items of the lists whose number the schema states, by input.
        formula_inputs: All inputs, as a formula of the price sees them.
        all_required: Names of all required inputs.
    """

    unsupported: str = ""
    prompt: bool = True
    image: bool = True
    image_required: bool = True
    prompt_required: bool = True
    max_text: int | None = None
    durations: tuple[int, ...] = ()
    default_duration: int = 5
    duration_type: Literal["integer", "string"] = "integer"
    scale: str | None = None
    scale_range: tuple[float, float] = (0.0, 1.0)
    negative_prompt: bool = False
    end_image: str | None = None
    end_image_required: bool = False
    sound: bool = False
    shots: int = 0
    shot_types: tuple[str, ...] = ()
    elements: int = 0
    voices: bool = False
    required: frozenset[str] = frozenset()
    more: tuple[Field, ...] = ()
    most_items: Mapping[str, int] = attrs.field(factory=dict)
    formula_inputs: tuple[FormulaInput, ...] = ()
    all_required: frozenset[str] = frozenset()


def read_schema(schema: Mapping[str, object]) -> Facts:
    """Read the facts of a `request_schema`, ignoring anything in an unknown form."""
    properties = {
        name: cast("Mapping[str, object]", rule if isinstance(rule, Mapping) else {})
        for name, rule in _mapping(schema.get("properties")).items()
    }
    required = {name for name in _list(schema.get("required")) if isinstance(name, str)}
    if not properties:
        return Facts(unsupported="expected a description of its inputs, got none")
    last_frame = next((name for name in _END_IMAGE_NAMES if name in properties), None)
    scale = next((name for name in _SCALE_NAMES if name in properties), None)
    duration = properties.get("duration", {})
    default = _whole(duration.get("default"))
    return Facts(
        prompt="prompt" in properties,
        image="image" in properties,
        image_required="image" in required,
        prompt_required="prompt" in required or "multi_prompt" in properties,
        max_text=_whole(properties.get("prompt", {}).get("maxLength")),
        durations=_durations(duration) if "duration" in properties else (),
        default_duration=5 if default is None else default,
        duration_type="string" if duration.get("type") == "string" else "integer",
        scale=scale,
        scale_range=_bounds(properties.get(scale or "", {})),
        negative_prompt="negative_prompt" in properties,
        end_image=last_frame,
        end_image_required=last_frame in required,
        sound="sound" in properties,
        shots=_items(properties, "multi_prompt", 6),
        shot_types=tuple(str(each) for each in _list(properties.get("shot_type", {}).get("enum"))),
        elements=_items(properties, "element_list", 3),
        voices="voice_list" in properties,
        required=frozenset(required & {"negative_prompt", "sound", "shot_type", "element_list", "voice_list"})
        | frozenset({"guidance_scale"} if scale in required else ()),
        more=tuple(
            _field(name, rule, required=name in required)
            for name, rule in properties.items()
            # A second name for the last frame or the scale is treated as any other input.
            if name not in _JOB_INPUTS
            or (name in (*_END_IMAGE_NAMES, *_SCALE_NAMES) and name not in {last_frame, scale})
        ),
        most_items={
            name: most for name, rule in properties.items() if (most := _whole(rule.get("maxItems"))) is not None
        },
        formula_inputs=tuple(_formula_input(name, rule) for name, rule in properties.items()),
        all_required=frozenset(required),
    )


def _formula_input(name: str, rule: Mapping[str, object]) -> FormulaInput:
    """Return an input as a formula of the price sees it: texts, media and lists are absent if they are not given."""
    kind, default = rule.get("type"), rule.get("default")
    if name == "duration":
        # Formulas compute with it, also where its type is a text.
        default = _whole(default)
    return FormulaInput(name, default, absent=kind in ("string", "array", "object") and not rule.get("enum"))


def is_price_per_second(formula: str) -> bool | None:
    """Return whether a price formula is `base_price * duration / 5`; None for a formula that is not supported."""
    plain = "".join(formula.split()).lower()
    if not plain or plain in {"base_price", '{"total_price":base_price}'}:
        return False
    return True if plain.strip('{}"').replace('total_price":', "") == "base_price*duration/5" else None


def _durations(rule: Mapping[str, object]) -> tuple[int, ...]:
    enum = [seconds for each in _list(rule.get("enum")) if (seconds := _whole(each)) is not None]
    if enum:
        return tuple(sorted(set(enum)))
    low, high = _whole(rule.get("minimum")), _whole(rule.get("maximum"))
    if low is not None and high is not None and 0 <= high - low < _MAX_DURATION_CHOICES:
        return tuple(range(low, high + 1))
    default = _whole(rule.get("default"))
    # The allowed values are unknown, so only the service's own default is safe.
    return (5 if default is None else default,)


def _items(properties: Mapping[str, Mapping[str, object]], name: str, usual: int) -> int:
    """Return the most items of a list by the schema, else `usual` (pages of Kling 3.0); 0 without the input."""
    if name not in properties:
        return 0
    most = _whole(properties[name].get("maxItems"))
    return usual if most is None else most


def _field(name: str, rule: Mapping[str, object], *, required: bool) -> Field:
    kind = rule.get("type")
    longest = _whole(rule.get("maxLength" if kind == "string" else "maxItems"))
    return Field(
        name=name,
        type=kind if isinstance(kind, str) and kind in _TYPES else None,
        required=required,
        choices=tuple(each for each in _list(rule.get("enum")) if isinstance(each, (str, int, float))),
        minimum=_number(rule.get("minimum")),
        maximum=_number(rule.get("maximum")),
        max_length=longest,
        default=rule.get("default"),
    )


def _bounds(rule: Mapping[str, object]) -> tuple[float, float]:
    low, high = _number(rule.get("minimum")), _number(rule.get("maximum"))
    return (0.0 if low is None else low, 1.0 if high is None else high)


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    """Return a whole number given as such, as a float such as 5.0, or as a short text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_NUMBER_LENGTH else None
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def numbers(values: tuple[int, ...]) -> str:
    """Return numbers in ascending order as text: `3 to 15`, or `5 or 10`."""
    if len(values) > 2 and values == tuple(range(values[0], values[-1] + 1)):  # noqa: PLR2004 -- a range
        return f"{values[0]} to {values[-1]}"
    return " or ".join(map(str, values))
