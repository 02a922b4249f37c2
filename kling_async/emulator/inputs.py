"""Inputs of the emulator's models: how each is checked, listed and described."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BASE_SECONDS", "MAX_TEXT_CHARS", "Field", "InputError", "joined"]

Kind = Literal["text", "image", "images", "video", "videos", "audios", "number", "seconds", "flag", "items"]
"""Type of an input. `seconds` is an integer or a string of digits; `flag` is a boolean."""

MAX_TEXT_CHARS: Final = 2500
BASE_SECONDS: Final = 5
_IMAGE_URL: Final = "^(https?://|data:)"
_MEDIA_URL: Final = "^https?://"
_MEDIA_NAMES: Final = {"video": "a video", "videos": "a video", "audios": "a sound"}
_BASE64_IMAGE: Final = r"^[A-Za-z0-9+/ \r\n]{64,}={0,2}[ \r\n]*$"
_IMAGE_SCHEMA: Final[Mapping[str, object]] = {
    "type": "string",
    "anyOf": [{"pattern": _IMAGE_URL}, {"pattern": _BASE64_IMAGE}],
}
_IMAGE_PATTERNS: Final = (re.compile(_IMAGE_URL), re.compile(_BASE64_IMAGE))


_LISTS: Final = frozenset({"items", "images", "videos", "audios"})


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
        high: highest accepted `number`, or maximum length of `text` (characters) and of lists.
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
            case "images":
                return self._images(value)
            case "video" | "videos" | "audios":
                return self._media(value)
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
            raise InputError(f"Invalid parameter: {self.name} must be one of {joined(self.choices)}")
        return value

    def _image(self, value: object) -> str:
        if self.required and value == "":
            raise InputError(f"Missing parameter: {self.name} is required")
        if isinstance(value, str) and any(pattern.match(value) for pattern in _IMAGE_PATTERNS):
            return value
        raise InputError(f"Invalid parameter: {self.name} must be a URL or a data URI of an image")

    def _images(self, value: object) -> list[str]:
        if not isinstance(value, list) or (self.high is not None and len(value) > self.high):
            raise InputError(f"Invalid parameter: {self.name} must be an array of at most {self.high} images")
        if self.required and not value:
            raise InputError(f"Missing parameter: {self.name} is required")
        return [self._image(item) for item in value]

    def _media(self, value: object) -> object:
        if self.kind == "video":
            return self._url(value)
        if not isinstance(value, list) or (self.high is not None and len(value) > self.high):
            raise InputError(f"Invalid parameter: {self.name} must be an array of at most {self.high} URLs")
        return [self._url(item) for item in value]

    def _url(self, value: object) -> str:
        if isinstance(value, str) and re.match(_MEDIA_URL, value):
            return value
        raise InputError(f"Invalid parameter: {self.name} must be a URL of {_MEDIA_NAMES[self.kind]}")

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
            raise InputError(f"Invalid parameter: {self.name} must be one of {joined(self.choices)}")
        return value

    def listing_schema(self) -> dict[str, object]:
        """Return the JSON schema that `GET /models` lists for the field."""
        types = {"number": "number", "seconds": "integer", "flag": "boolean"} | dict.fromkeys(_LISTS, "array")
        schema: dict[str, object] = {"type": types.get(self.kind, "string")}
        if self.default is not None:
            schema["default"] = self.default
        if self.kind == "number":
            schema |= {"minimum": self.low, "maximum": self.high}
        elif self.kind == "text" and self.high is not None:
            schema["maxLength"] = int(self.high)
        elif self.kind in _LISTS and self.high is not None:
            schema["maxItems"] = int(self.high)
        if self.choices:
            schema["enum"] = list(self.choices)
        return schema

    def request_schema(self) -> dict[str, object]:
        """Return the JSON schema of the values that a submit accepts; it is wider than the listing."""
        schema: Mapping[str, object]
        match self.kind:
            case "text" if self.choices:
                schema = {"enum": list(self.choices)}
            case "text":
                schema = {
                    "type": "string",
                    "minLength": int(self.required),
                    "maxLength": int(self.high or MAX_TEXT_CHARS),
                }
            case "image":
                schema = _IMAGE_SCHEMA
            case "images":
                limits = {"minItems": int(self.required)} | ({} if self.high is None else {"maxItems": int(self.high)})
                schema = {"type": "array", "items": _IMAGE_SCHEMA, **limits}
            case "video":
                schema = {"type": "string", "pattern": _MEDIA_URL}
            case "videos" | "audios":
                limit = {} if self.high is None else {"maxItems": int(self.high)}
                schema = {"type": "array", "items": {"type": "string", "pattern": _MEDIA_URL}, **limit}
            case "number":
                schema = {"type": "number", "minimum": self.low, "maximum": self.high}
            case "seconds":
                schema = {"enum": [*self.choices, *(str(choice) for choice in self.choices)]}
            case "flag":
                schema = {"type": "boolean"}
            case _:
                schema = {"type": "array"} | ({} if self.high is None else {"maxItems": int(self.high)})
        if not self.required:
            schema = {"anyOf": [schema, {"type": "null"}]}
        return dict(schema) if self.default is None else {**schema, "default": self.default}


def joined(values: tuple[object, ...]) -> str:
    """Return values for an error text."""
    return ", ".join(str(value) for value in values)
