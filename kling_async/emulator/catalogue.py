"""Models of the emulator: inputs, limits and prices in USD.

Deliberately independent of the SDK's model table: both were written from the vendor's pages, so each checks the other.
A price marked `estimated` is not published on any page of the vendor.
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
"""Type of an input. `seconds` is an integer or a string of digits; `flag` is a boolean."""

_MAX_TEXT_CHARS: Final = 2500
_BASE_SECONDS: Final = 5
_IMAGE_URL: Final = "^(https?://|data:)"
_BASE64_IMAGE: Final = r"^[A-Za-z0-9+/ \r\n]{64,}={0,2}[ \r\n]*$"
_IMAGE_PATTERNS: Final = (re.compile(_IMAGE_URL), re.compile(_BASE64_IMAGE))


class InputError(ValueError):
    """Inputs are invalid; the text is sent with HTTP 400."""


@attrs.frozen
class Field:
    """One input of a model.

    Attributes:
        name: key on the wire.
        kind: type of the value.
        required: refuse inputs without it.
        default: value used when it is absent; None adds no key.
        low: lowest accepted `number`.
        high: highest accepted `number`, or maximum length of `text` (characters) and `items`.
        choices: accepted values; empty accepts all.
    """

    name: str
    kind: Kind
    required: bool = False
    default: object = None
    low: float | None = None
    high: float | None = None
    choices: tuple[object, ...] = ()

    def read(self, value: object) -> object:
        """Validate a value and return it as the service stores it.

        Raises:
            InputError: if the value is of the wrong type or out of range.
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
            raise InputError(f"Invalid parameter: {self.name} must be one of {_joined(self.choices)}")
        return value

    def _image(self, value: object) -> str:
        if self.required and value == "":
            raise InputError(f"Missing parameter: {self.name} is required")
        if isinstance(value, str) and any(pattern.match(value) for pattern in _IMAGE_PATTERNS):
            return value
        raise InputError(f"Invalid parameter: {self.name} must be a URL or a data URI of an image")

    def _number(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"Invalid parameter: {self.name} must be a number")
        if (self.low is not None and not value >= self.low) or (self.high is not None and not value <= self.high):
            raise InputError(f"Invalid parameter: {self.name} must be between {self.low} and {self.high}")
        return value

    def _seconds(self, value: object) -> int:
        # The vendor's pages disagree on integer or string, so both are accepted.
        if isinstance(value, str) and value in {str(choice) for choice in self.choices}:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in self.choices:
            raise InputError(f"Invalid parameter: {self.name} must be one of {_joined(self.choices)}")
        return value

    def listing_schema(self) -> dict[str, object]:
        """Return the JSON schema that `GET /models` lists for the field."""
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

    def request_schema(self) -> dict[str, object]:
        """Return the JSON schema of the values that a submit accepts; it is wider than the listing."""
        schema: dict[str, object]
        match self.kind:
            case "text" if self.choices:
                schema = {"enum": list(self.choices)}
            case "text":
                schema = {
                    "type": "string",
                    "minLength": int(self.required),
                    "maxLength": int(self.high or _MAX_TEXT_CHARS),
                }
            case "image":
                schema = {"type": "string", "anyOf": [{"pattern": _IMAGE_URL}, {"pattern": _BASE64_IMAGE}]}
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


def _joined(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values)


@attrs.frozen
class Model:
    """One row of the catalogue.

    Attributes:
        id: path under `/api/v3/`.
        fields: inputs, in the vendor's order.
        base_price: price of a five-second video, in USD.
        estimated: the price is not published on any page of the vendor.
        resolution: resolution of the video.
        sound_factor: price factor of `sound: true`.
        prompt_or_shots: require exactly one of `prompt` and `multi_prompt`.
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
        """Names of the image fields, start frame first."""
        return tuple(field.name for field in self.fields if field.kind == "image")

    def images_in(self, inputs: Mapping[str, object]) -> tuple[str, ...]:
        """Return the names of the image fields present in the inputs, start frame first."""
        return tuple(name for name in self.images if name in inputs)

    def clean(self, raw: Mapping[str, object]) -> dict[str, object]:
        """Return the inputs as the service runs them: defaults filled in, unknown keys silently dropped.

        Raises:
            InputError: if a required input is missing or an input is invalid.
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

    def request_schema(self) -> dict[str, object]:
        """Return the JSON schema of the bodies that a submit accepts; `clean` raises for all others."""
        schema: dict[str, object] = {
            "type": "object",
            "required": [field.name for field in self.fields if field.required],
            "properties": {field.name: field.request_schema() for field in self.fields},
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
        """Return the price of one run in USD: `base_price * duration / 5`, times `sound_factor` with sound.

        A missing or unreadable duration counts as five seconds.
        """
        seconds = inputs.get("duration")
        try:
            length = int(seconds) if isinstance(seconds, str | int) and not isinstance(seconds, bool) else _BASE_SECONDS
        except ValueError:
            length = _BASE_SECONDS
        factor = self.sound_factor if inputs.get("sound") is True else 1
        return self.base_price * length * factor / _BASE_SECONDS

    def listing(self, server: str) -> dict[str, object]:
        """Return the row as `GET /models` sends it."""
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
                            "properties": {field.name: field.listing_schema() for field in self.fields},
                        },
                    }
                ]
            },
        }


_PROMPT = Field("prompt", "text", required=True, high=_MAX_TEXT_CHARS)
_OPTIONAL_PROMPT = Field("prompt", "text", high=_MAX_TEXT_CHARS)
_NEGATIVE_PROMPT = Field("negative_prompt", "text", high=_MAX_TEXT_CHARS)
_IMAGE = Field("image", "image", required=True)
_END_IMAGE = Field("end_image", "image")
_LAST_IMAGE = Field("last_image", "image")
_GUIDANCE = Field("guidance_scale", "number", default=0.5, low=0.0, high=1.0)
_CFG = Field("cfg_scale", "number", default=0.5, low=0.0, high=1.0)
_DURATION = Field("duration", "seconds", default=5, choices=(5, 10))
_LONG_DURATION = Field("duration", "seconds", default=5, choices=tuple(range(3, 16)))
_SOUND = Field("sound", "flag", default=False)

_START_FRAME_FIELDS = (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _GUIDANCE, _DURATION)
_END_FRAME_FIELDS = (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _END_IMAGE, _GUIDANCE, _DURATION)
_MULTI_SHOT_FIELDS = (
    _OPTIONAL_PROMPT,
    Field("multi_prompt", "items", high=6),
    _NEGATIVE_PROMPT,
    _IMAGE,
    _END_IMAGE,
    _CFG,
    _LONG_DURATION,
    _SOUND,
    Field("shot_type", "text", default="customize", choices=("customize", "intelligence")),
    Field("element_list", "items", high=3),
)
_TURBO_FIELDS = (_OPTIONAL_PROMPT, Field("multi_prompt", "items", high=6), _IMAGE, _LONG_DURATION)
_V26_PRO_FIELDS = (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _END_IMAGE, _CFG, _DURATION, _SOUND, Field("voice_list", "items"))

_ROWS = (
    Model("kwaivgi/kling-v1.6-i2v-standard", _START_FRAME_FIELDS, Decimal("0.28"), estimated=True, resolution="720p"),
    Model("kwaivgi/kling-v1.6-i2v-pro", _END_FRAME_FIELDS, Decimal("0.45"), estimated=True),
    Model("kwaivgi/kling-v2.0-i2v-master", _END_FRAME_FIELDS, Decimal("1.30")),
    Model("kwaivgi/kling-v2.1-i2v-standard", _START_FRAME_FIELDS, Decimal("0.28"), estimated=True, resolution="720p"),
    Model("kwaivgi/kling-v2.1-i2v-pro", _START_FRAME_FIELDS, Decimal("0.45")),
    Model("kwaivgi/kling-v2.1-i2v-master", _START_FRAME_FIELDS, Decimal("1.30")),
    Model(
        "kwaivgi/kling-v2.1-i2v-pro/start-end-frame",
        (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, attrs.evolve(_END_IMAGE, required=True), _GUIDANCE, _DURATION),
        Decimal("0.45"),
    ),
    Model(
        "kwaivgi/kling-v2.5-turbo-pro/image-to-video",
        (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _LAST_IMAGE, _GUIDANCE, _DURATION),
        Decimal("0.35"),
    ),
    Model("kwaivgi/kling-v2.5-turbo-std/image-to-video", _START_FRAME_FIELDS, Decimal("0.21"), resolution="720p"),
    Model(
        "kwaivgi/kling-v2.6-std/image-to-video",
        (_OPTIONAL_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _DURATION),
        Decimal("0.21"),
        resolution="720p",
    ),
    Model("kwaivgi/kling-v2.6-pro/image-to-video", _V26_PRO_FIELDS, Decimal("0.35"), sound_factor=2),
    Model(
        "kwaivgi/kling-v3.0-std/image-to-video",
        _MULTI_SHOT_FIELDS,
        Decimal("0.42"),
        resolution="720p",
        prompt_or_shots=True,
    ),
    Model("kwaivgi/kling-v3.0-pro/image-to-video", _MULTI_SHOT_FIELDS, Decimal("0.56"), prompt_or_shots=True),
    Model(
        "kwaivgi/kling-v3.0-4k/image-to-video",
        _MULTI_SHOT_FIELDS,
        Decimal("1.68"),
        estimated=True,
        resolution="4k",
        prompt_or_shots=True,
    ),
    Model(
        "kwaivgi/kling-v3-turbo-std/image-to-video",
        _TURBO_FIELDS,
        Decimal("0.35"),
        estimated=True,
        resolution="720p",
        prompt_or_shots=True,
    ),
    Model(
        "kwaivgi/kling-v3-turbo-pro/image-to-video",
        _TURBO_FIELDS,
        Decimal("0.45"),
        estimated=True,
        prompt_or_shots=True,
    ),
)

WAVESPEED: Final[Mapping[str, Model]] = {row.id: row for row in _ROWS}
"""Models of the WaveSpeed persona, by id."""

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
        # GPTProto names this one field differently.
        fields=tuple(_LAST_IMAGE if field is _END_IMAGE else field for field in _V26_PRO_FIELDS),
    )
}
"""Models of the GPTProto persona, by id. Its prices are unknown, so WaveSpeed's are used."""
