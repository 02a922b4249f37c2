"""The models the emulator offers: fields, limits and prices, one row each.

Independent of the SDK's own table on purpose: two descriptions written from the same contract check each other.
Prices are in USD. A price marked `estimated` stands on no page of the vendor.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GPTPROTO", "WAVESPEED", "Field", "InputError", "Model"]

Kind = Literal["text", "image", "number", "seconds", "flag", "items"]

_MAX_TEXT: Final = 2500
_BASE_SECONDS: Final = 5
_IMAGE_URL: Final = "^(https?://|data:)"
_INLINE_IMAGE: Final = r"^[A-Za-z0-9+/ \r\n]{64,}={0,2}[ \r\n]*$"
_IMAGE_FORMS: Final = (re.compile(_IMAGE_URL), re.compile(_INLINE_IMAGE))


class InputError(ValueError):
    """The inputs do not fit the model; the text is what the service answers with HTTP 400."""


@attrs.frozen
class Field:
    """One input of a model.

    Attributes:
        name: the key on the wire.
        kind: how the value is read.
        required: whether leaving it out is refused.
        default: the value used when it is left out; None means the key stays away.
        low: the smallest accepted value (of `number`).
        high: the greatest accepted value (of `number`), or the greatest length (of `text` and `items`).
        choices: accepted values, when they are a closed set.
    """

    name: str
    kind: Kind
    required: bool = False
    default: object = None
    low: float | None = None
    high: float | None = None
    choices: tuple[object, ...] = ()

    def read(self, value: object) -> object:
        """The value as the service keeps it.

        Raises:
            InputError: when the value is of the wrong type or out of range.
        """
        match self.kind:
            case "text":
                return self._text(value)
            case "image":
                return self._image(value)
            case "number":
                return self._number(value)
            case "seconds":
                return self._seconds(value)
            case "flag":
                if not isinstance(value, bool):
                    raise InputError(f"Invalid parameter: {self.name} must be a boolean")
                return value
            case "items":
                if not isinstance(value, list) or (self.high is not None and len(value) > self.high):
                    raise InputError(f"Invalid parameter: {self.name} must be an array of at most {self.high} items")
                return value

    def _text(self, value: object) -> str:
        if not isinstance(value, str):
            raise InputError(f"Invalid parameter: {self.name} must be a string")
        if self.required and not value:
            raise InputError(f"Missing parameter: {self.name} is required")
        if self.high is not None and len(value) > self.high:
            raise InputError(f"Invalid parameter: {self.name} must be at most {int(self.high)} characters")
        if self.choices and value not in self.choices:
            raise InputError(f"Invalid parameter: {self.name} must be one of {_listed(self.choices)}")
        return value

    def _image(self, value: object) -> str:
        if self.required and value == "":
            raise InputError(f"Missing parameter: {self.name} is required")
        if isinstance(value, str) and any(form.match(value) for form in _IMAGE_FORMS):
            return value
        raise InputError(f"Invalid parameter: {self.name} must be a URL or a data URI of an image")

    def _number(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"Invalid parameter: {self.name} must be a number")
        if (self.low is not None and not value >= self.low) or (self.high is not None and not value <= self.high):
            raise InputError(f"Invalid parameter: {self.name} must be between {self.low} and {self.high}")
        return value

    def _seconds(self, value: object) -> int:
        # The vendor's pages disagree on integer or string, so both forms are taken.
        if isinstance(value, str) and value in {str(choice) for choice in self.choices}:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in self.choices:
            raise InputError(f"Invalid parameter: {self.name} must be one of {_listed(self.choices)}")
        return value

    def schema(self) -> dict[str, object]:
        """The field as JSON schema, the way `GET /models` lists it."""
        types = {"number": "number", "seconds": "integer", "flag": "boolean", "items": "array"}
        schema: dict[str, object] = {"type": types.get(self.kind, "string")}
        if self.default is not None:
            schema["default"] = self.default
        if self.kind == "number":
            schema |= {"minimum": self.low, "maximum": self.high}
        elif self.kind == "text" and self.high is not None:
            schema["maxLength"] = int(self.high)
        if self.choices:
            schema["enum"] = list(self.choices)
        return schema

    def accepted(self) -> dict[str, object]:
        """JSON schema of what a submit may really carry: more than the listing shows."""
        schema: dict[str, object]
        match self.kind:
            case "text" if self.choices:
                schema = {"enum": list(self.choices)}
            case "text":
                schema = {"type": "string", "minLength": int(self.required), "maxLength": int(self.high or _MAX_TEXT)}
            case "image":
                schema = {"type": "string", "anyOf": [{"pattern": _IMAGE_URL}, {"pattern": _INLINE_IMAGE}]}
            case "number":
                schema = {"type": "number", "minimum": self.low, "maximum": self.high}
            case "seconds":
                schema = {"enum": [*self.choices, *(str(choice) for choice in self.choices)]}
            case "flag":
                schema = {"type": "boolean"}
            case _:
                schema = {"type": "array"}
                if self.high is not None:
                    schema["maxItems"] = int(self.high)
        if not self.required:
            schema = {"anyOf": [schema, {"type": "null"}]}
        return schema if self.default is None else schema | {"default": self.default}


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values)


@attrs.frozen
class Model:
    """One row of the catalogue.

    Attributes:
        id: the path under `/api/v3/`.
        fields: the inputs, in the order the vendor lists them.
        base_price: USD for five seconds.
        estimated: whether the price stands on no page of the vendor.
        resolution: what the service renders at.
        sound_factor: what `sound: true` multiplies the price by.
        prompt_or_shots: whether exactly one of `prompt` and `multi_prompt` is wanted.
    """

    id: str
    fields: tuple[Field, ...]
    base_price: Decimal
    estimated: bool = False
    resolution: Literal["720p", "1080p", "4k"] = "1080p"
    sound_factor: int = 1
    prompt_or_shots: bool = False

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the image fields: the start frame first."""
        return tuple(field.name for field in self.fields if field.kind == "image")

    def images_in(self, inputs: Mapping[str, object]) -> tuple[str, ...]:
        """The names of the image fields that these inputs fill: the start frame first."""
        return tuple(name for name in self.images if name in inputs)

    def clean(self, raw: Mapping[str, object]) -> dict[str, object]:
        """The inputs the service runs with: defaults filled in, unknown keys dropped without a word.

        Raises:
            InputError: when a required input is missing or one does not fit.
        """
        inputs: dict[str, object] = {}
        for field in self.fields:
            value = raw.get(field.name)
            if value is not None:
                inputs[field.name] = field.read(value)
            elif field.required:
                raise InputError(f"Missing parameter: {field.name} is required")
            elif field.default is not None:
                inputs[field.name] = field.default
        if self.prompt_or_shots and bool(inputs.get("prompt")) == bool(inputs.get("multi_prompt")):
            raise InputError("Invalid parameter: exactly one of prompt and multi_prompt is required")
        if inputs.get("multi_prompt") and "end_image" in inputs:
            raise InputError("Invalid parameter: end_image does not go together with multi_prompt")
        return inputs

    def accepted(self) -> dict[str, object]:
        """JSON schema of the bodies that a submit takes: `clean` raises for all others."""
        schema: dict[str, object] = {
            "type": "object",
            "required": [field.name for field in self.fields if field.required],
            "properties": {field.name: field.accepted() for field in self.fields},
        }
        if self.prompt_or_shots:
            none = {"type": "null"}
            prompt = {"prompt": {"type": "string", "minLength": 1}, "multi_prompt": {"enum": [None, []]}}
            shots = {
                "multi_prompt": {"type": "array", "minItems": 1},
                "prompt": {"enum": [None, ""]},
                "end_image": none,
            }
            schema["anyOf"] = [
                {"required": ["prompt"], "properties": prompt},
                {"required": ["multi_prompt"], "properties": shots},
            ]
        return schema

    def price(self, inputs: Mapping[str, object]) -> Decimal:
        """USD for one run: `base_price * duration / 5`; the price of five seconds where no duration can be read."""
        seconds = inputs.get("duration")
        try:
            length = int(seconds) if isinstance(seconds, str | int) and not isinstance(seconds, bool) else _BASE_SECONDS
        except ValueError:
            length = _BASE_SECONDS
        factor = self.sound_factor if inputs.get("sound") is True else 1
        return self.base_price * length * factor / _BASE_SECONDS

    def listing(self, server: str) -> dict[str, object]:
        """The row as `GET /models` shows it."""
        return {
            "model_id": self.id,
            "name": self.id,
            "description": "Kling image-to-video.",
            "type": "image-to-video",
            "base_price": float(self.base_price),
            "sort_order": 0,
            "formula": '{"total_price": base_price * duration / 5}',
            "api_schema": {
                "api_schemas": [
                    {
                        "type": "model_run",
                        "method": "POST",
                        "server": server,
                        "api_path": f"/api/v3/{self.id}",
                        "request_schema": {
                            "type": "object",
                            "required": [field.name for field in self.fields if field.required],
                            "x-order-properties": [field.name for field in self.fields],
                            "properties": {field.name: field.schema() for field in self.fields},
                        },
                    }
                ]
            },
        }


_PROMPT = Field("prompt", "text", required=True, high=_MAX_TEXT)
_FREE_PROMPT = Field("prompt", "text", high=_MAX_TEXT)
_NEGATIVE = Field("negative_prompt", "text", high=_MAX_TEXT)
_IMAGE = Field("image", "image", required=True)
_END_IMAGE = Field("end_image", "image")
_LAST_IMAGE = Field("last_image", "image")
_GUIDANCE = Field("guidance_scale", "number", default=0.5, low=0.0, high=1.0)
_CFG = Field("cfg_scale", "number", default=0.5, low=0.0, high=1.0)
_DURATION = Field("duration", "seconds", default=5, choices=(5, 10))
_FREE_DURATION = Field("duration", "seconds", default=5, choices=tuple(range(3, 16)))
_SOUND = Field("sound", "flag", default=False)

_PLAIN = (_PROMPT, _NEGATIVE, _IMAGE, _GUIDANCE, _DURATION)
_ENDED = (_PROMPT, _NEGATIVE, _IMAGE, _END_IMAGE, _GUIDANCE, _DURATION)
_SHOTS = (
    _FREE_PROMPT,
    Field("multi_prompt", "items", high=6),
    _NEGATIVE,
    _IMAGE,
    _END_IMAGE,
    _CFG,
    _FREE_DURATION,
    _SOUND,
    Field("shot_type", "text", default="customize", choices=("customize", "intelligence")),
    Field("element_list", "items", high=3),
)
_TURBO_SHOTS = (_FREE_PROMPT, Field("multi_prompt", "items", high=6), _IMAGE, _FREE_DURATION)
_V26_PRO = (_PROMPT, _NEGATIVE, _IMAGE, _END_IMAGE, _CFG, _DURATION, _SOUND, Field("voice_list", "items"))

_ROWS = (
    Model("kwaivgi/kling-v1.6-i2v-standard", _PLAIN, Decimal("0.28"), estimated=True, resolution="720p"),
    Model("kwaivgi/kling-v1.6-i2v-pro", _ENDED, Decimal("0.45"), estimated=True),
    Model("kwaivgi/kling-v2.0-i2v-master", _ENDED, Decimal("1.30")),
    Model("kwaivgi/kling-v2.1-i2v-standard", _PLAIN, Decimal("0.28"), estimated=True, resolution="720p"),
    Model("kwaivgi/kling-v2.1-i2v-pro", _PLAIN, Decimal("0.45")),
    Model("kwaivgi/kling-v2.1-i2v-master", _PLAIN, Decimal("1.30")),
    Model(
        "kwaivgi/kling-v2.1-i2v-pro/start-end-frame",
        (_PROMPT, _NEGATIVE, _IMAGE, attrs.evolve(_END_IMAGE, required=True), _GUIDANCE, _DURATION),
        Decimal("0.45"),
    ),
    Model(
        "kwaivgi/kling-v2.5-turbo-pro/image-to-video",
        (_PROMPT, _NEGATIVE, _IMAGE, _LAST_IMAGE, _GUIDANCE, _DURATION),
        Decimal("0.35"),
    ),
    Model("kwaivgi/kling-v2.5-turbo-std/image-to-video", _PLAIN, Decimal("0.21"), resolution="720p"),
    Model(
        "kwaivgi/kling-v2.6-std/image-to-video",
        (_FREE_PROMPT, _NEGATIVE, _IMAGE, _DURATION),
        Decimal("0.21"),
        resolution="720p",
    ),
    Model("kwaivgi/kling-v2.6-pro/image-to-video", _V26_PRO, Decimal("0.35"), sound_factor=2),
    Model("kwaivgi/kling-v3.0-std/image-to-video", _SHOTS, Decimal("0.42"), resolution="720p", prompt_or_shots=True),
    Model("kwaivgi/kling-v3.0-pro/image-to-video", _SHOTS, Decimal("0.56"), prompt_or_shots=True),
    Model(
        "kwaivgi/kling-v3.0-4k/image-to-video",
        _SHOTS,
        Decimal("1.68"),
        estimated=True,
        resolution="4k",
        prompt_or_shots=True,
    ),
    Model(
        "kwaivgi/kling-v3-turbo-std/image-to-video",
        _TURBO_SHOTS,
        Decimal("0.35"),
        estimated=True,
        resolution="720p",
        prompt_or_shots=True,
    ),
    Model(
        "kwaivgi/kling-v3-turbo-pro/image-to-video",
        _TURBO_SHOTS,
        Decimal("0.45"),
        estimated=True,
        prompt_or_shots=True,
    ),
)

WAVESPEED: Final[Mapping[str, Model]] = {row.id: row for row in _ROWS}
"""The models of the WaveSpeed persona, by id."""

_GPTPROTO_IDS = (
    "kwaivgi/kling-v2.1-i2v-standard",
    "kwaivgi/kling-v2.1-i2v-pro",
    "kwaivgi/kling-v2.1-i2v-master",
    "kwaivgi/kling-v2.5-turbo-pro/image-to-video",
    "kwaivgi/kling-v2.5-turbo-std/image-to-video",
)

GPTPROTO: Final[Mapping[str, Model]] = {model_id: WAVESPEED[model_id] for model_id in _GPTPROTO_IDS} | {
    "kwaivgi/kling-v2.6-pro/image-to-video": attrs.evolve(
        WAVESPEED["kwaivgi/kling-v2.6-pro/image-to-video"],
        # The one field that GPTProto names otherwise.
        fields=tuple(_LAST_IMAGE if field is _END_IMAGE else field for field in _V26_PRO),
    )
}
"""The models of the GPTProto persona, by id. Its prices are unknown; WaveSpeed's are used."""
