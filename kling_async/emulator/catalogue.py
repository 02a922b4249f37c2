"""Models of the emulator: inputs, limits and prices in USD.

Deliberately independent of the SDK's model table: both were written from the vendor's pages, so each checks the other.
Prices of 1.6 and of O3 at 4k are on no page of the vendor.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from .inputs import BASE_SECONDS, MAX_TEXT_CHARS, Field, InputError, joined

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DISAGREEING", "GPTPROTO", "WAVESPEED", "Field", "InputError", "Model"]

Resolution = Literal["720p", "1080p", "4k"]


@attrs.frozen(kw_only=True)
class Model:
    """One row of the catalogue.

    Attributes:
        id: path under `/api/v3/`.
        fields: inputs, in the vendor's order.
        base_price: price as `GET /models` lists it, in USD.
        seconds: length of the video that it is for; 0 for any.
        resolution: resolution of the video by default.
        rates: USD per second at other resolutions.
        sound_factor: price factor of `sound: true`.
        prompts: which of `prompt` and `multi_prompt` are required: exactly `one`, `optional` for at most one, or `any`
            for what their fields say.
        hdr: resolutions that `dynamic_range` needs.
        type: kind of model in `GET /models`.
        price_type: unit of the price in GPTProto's list.
        suffix: suffix of the output.
    """

    id: str
    fields: tuple[Field, ...]
    base_price: Decimal
    seconds: int = 5
    resolution: Resolution = "1080p"
    rates: tuple[tuple[str, Decimal], ...] = ()
    sound_factor: Decimal = Decimal(1)
    prompts: Literal["one", "optional", "any"] = "any"
    hdr: tuple[str, ...] = ()
    type: str = "image-to-video"
    price_type: Literal["per second", "per time"] = "per second"
    suffix: str = ".mp4"

    def pictures_in(self, inputs: Mapping[str, object]) -> dict[str, str]:
        """Return the pictures of the inputs by field, start frame first and end frame last; `keyframes.0` in a list."""
        found: dict[str, str] = {}
        for field in sorted(self.fields, key=lambda field: _PICTURE_ORDER.get(field.name, 1)):
            value = inputs.get(field.name)
            if field.kind == "image" and isinstance(value, str):
                found[field.name] = value
            elif field.kind == "images" and isinstance(value, list):
                found |= {f"{field.name}.{place}": str(item) for place, item in enumerate(value)}
        return found

    def media_in(self, inputs: Mapping[str, object]) -> list[tuple[str, str]]:
        """Return kind (`video` or `audio`) and URL of the videos and sounds of the inputs."""
        found: list[tuple[str, str]] = []
        for field in self.fields:
            value = inputs.get(field.name)
            if field.kind in {"video", "videos", "audios"}:
                urls = value if isinstance(value, list) else [value] if isinstance(value, str) else []
                found += [(field.kind.removesuffix("s"), url) for url in urls]
        return found

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
        prompt, shots = bool(inputs.get("prompt")), bool(inputs.get("multi_prompt"))
        if self.prompts == "one" and prompt == shots:
            raise InputError("Invalid parameter: exactly one of prompt and multi_prompt is required")
        if self.prompts == "optional" and prompt and shots:
            raise InputError("Invalid parameter: prompt does not go together with multi_prompt")
        if shots and "end_image" in inputs:
            raise InputError("Invalid parameter: end_image does not go together with multi_prompt")
        if "dynamic_range" in inputs and inputs.get("resolution") not in self.hdr:
            raise InputError(f"Invalid parameter: dynamic_range needs a resolution of {joined(self.hdr)}")
        return inputs

    def request_schema(self) -> dict[str, object]:
        """Return the JSON schema of the bodies that a submit accepts; `clean` raises for all others."""
        names = {field.name for field in self.fields}
        rules: list[dict[str, object]] = []
        shots = {"required": ["multi_prompt"], "properties": {"multi_prompt": {"type": "array", "minItems": 1}}}
        no_shots: dict[str, object] = {"properties": {"multi_prompt": {"enum": [None, []]}}}
        no_prompt = {"properties": {"prompt": {"enum": [None, ""]}}}
        if self.prompts == "one":
            prompt = {"required": ["prompt"], "properties": {"prompt": {"type": "string", "minLength": 1}}}
            rules.append({"anyOf": [{"allOf": [prompt, no_shots]}, {"allOf": [shots, no_prompt]}]})
        if self.prompts == "optional":
            rules.append({"anyOf": [no_shots, no_prompt]})
        if names >= {"multi_prompt", "end_image"}:
            rules.append({"anyOf": [no_shots, {"properties": {"end_image": {"type": "null"}}}]})
        if self.hdr:
            wide = {"required": ["resolution"], "properties": {"resolution": {"enum": list(self.hdr)}}}
            rules.append({"anyOf": [{"properties": {"dynamic_range": {"type": "null"}}}, wide]})
        return {
            "type": "object",
            "required": [field.name for field in self.fields if field.required],
            "properties": {field.name: field.request_schema() for field in self.fields},
            **({"allOf": rules} if rules else {}),
        }

    def price(self, inputs: Mapping[str, object]) -> Decimal:
        """Return the price of one run in USD: seconds, times a rate by resolution, times `sound_factor` with sound.

        A missing or unreadable duration counts as five seconds.
        """
        seconds = inputs.get("duration")
        try:
            length = int(seconds) if isinstance(seconds, str | int) and not isinstance(seconds, bool) else BASE_SECONDS
        except ValueError:
            length = BASE_SECONDS
        rate = dict(self.rates).get(str(inputs.get("resolution")))
        usd = self.base_price * length / self.seconds if self.seconds else self.base_price
        if self.price_type == "per time":
            usd = self.base_price
        elif rate is not None:
            usd = rate * length
        return usd * self.sound_factor if inputs.get("sound") is True else usd

    @property
    def formula(self) -> str:
        """The JSONata expression of the price."""
        factors = ["base_price"]
        if self.seconds:
            factors.append("duration" if self.seconds == 1 else f"duration / {self.seconds}")
        if self.rates:
            base, factor = self.base_price / self.seconds, "1"
            for resolution, rate in reversed(self.rates):
                factor = f'(resolution = "{resolution}" ? {rate} / {base} : {factor})'
            factors.append(factor)
        if self.sound_factor != 1:
            factors.append(f"(sound ? {self.sound_factor} : 1)")
        return f'{{"total_price": {" * ".join(factors)}}}'

    def listing(self, server: str) -> dict[str, object]:
        """Return the row as `GET /models` sends it."""
        return {
            "model_id": self.id,
            "name": self.id,
            "description": f"{self.type}.",
            "type": self.type,
            "base_price": float(self.base_price),
            "sort_order": 0,
            "formula": self.formula,
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

    def price_item(self, number: int) -> dict[str, object]:
        """Return the row as GPTProto's public price list has it."""
        vendor, _, path = self.id.partition("/")
        usd = self.base_price if self.price_type == "per time" else self.base_price / self.seconds
        return {
            "id": number,
            "modelManufacturerName": vendor,
            "modelName": path if "/" in path else f"{path}/{self.type}",
            "alias": path,
            "platformInputPrice": "",
            "platformOutPrice": "",
            "platformLockPrice": str(usd),
            "priceType": -1,
            "priceTypeStr": self.price_type,
            "modelTag": self.type,
        }


_PICTURE_ORDER: Final = {"image": 0, "end_image": 2, "last_image": 2}
_PROMPT = Field("prompt", "text", required=True, high=MAX_TEXT_CHARS)
_OPTIONAL_PROMPT = Field("prompt", "text", high=MAX_TEXT_CHARS)
_NEGATIVE_PROMPT = Field("negative_prompt", "text", high=MAX_TEXT_CHARS)
_IMAGE = Field("image", "image", required=True)
_END_IMAGE = Field("end_image", "image")
_LAST_IMAGE = Field("last_image", "image")
_GUIDANCE = Field("guidance_scale", "number", default=0.5, low=0.0, high=1.0)
_CFG = Field("cfg_scale", "number", default=0.5, low=0.0, high=1.0)
_SOUND = Field("sound", "flag", default=False)
_MULTI_PROMPT = Field("multi_prompt", "items", high=6)
_SHOT_TYPE = Field("shot_type", "text", default="customize", choices=("customize", "intelligent"))
_ELEMENTS = Field("element_list", "items", high=3)
_RESOLUTION = Field("resolution", "text", default="720p", choices=("720p", "1080p", "4k"))


def _seconds(low: int, high: int) -> Field:
    return Field("duration", "seconds", default=BASE_SECONDS, choices=tuple(range(low, high + 1)))


_DURATION = Field("duration", "seconds", default=BASE_SECONDS, choices=(5, 10))
_START_FRAME = (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _GUIDANCE, _DURATION)
_END_FRAME = (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _END_IMAGE, _GUIDANCE, _DURATION)
_START_END_FRAME = (
    _PROMPT,
    _NEGATIVE_PROMPT,
    _IMAGE,
    attrs.evolve(_END_IMAGE, required=True),
    _GUIDANCE,
    _DURATION,
)
_MULTI_IMAGE = (
    _PROMPT,
    _NEGATIVE_PROMPT,
    Field("images", "images", required=True, high=4),
    Field("aspect_ratio", "text", default="1:1", choices=("1:1", "16:9", "9:16")),
    _DURATION,
)
_V30 = (
    _OPTIONAL_PROMPT,
    _MULTI_PROMPT,
    _NEGATIVE_PROMPT,
    _IMAGE,
    _END_IMAGE,
    _CFG,
    _seconds(3, 15),
    _SOUND,
    _SHOT_TYPE,
    _ELEMENTS,
)
_TURBO = (_OPTIONAL_PROMPT, _MULTI_PROMPT, _IMAGE, _seconds(3, 15))
# The newest page has last_image; end_image, in an older page, is dropped.
_V26_PRO = (
    _PROMPT,
    _NEGATIVE_PROMPT,
    _IMAGE,
    _LAST_IMAGE,
    _CFG,
    _DURATION,
    _SOUND,
    Field("voice_list", "items"),
)
_O3 = (_PROMPT, _MULTI_PROMPT, _IMAGE, _END_IMAGE, _seconds(3, 15), _SOUND, _SHOT_TYPE, _ELEMENTS)
_O1 = (_PROMPT, _IMAGE, _LAST_IMAGE, _seconds(3, 10))
_ASPECT_RATIO = Field("aspect_ratio", "text", choices=("16:9", "9:16", "1:1", "21:9"))
_HDR = Field("dynamic_range", "text", choices=("hdr",))
_V40 = (
    _OPTIONAL_PROMPT,
    _IMAGE,
    Field("keyframes", "images", high=8),
    _LAST_IMAGE,
    _ASPECT_RATIO,
    _seconds(3, 30),
    _RESOLUTION,
    _HDR,
)


def _row(id_: str, fields: tuple[Field, ...], usd: str, **more: Any) -> Model:
    return Model(id=f"kwaivgi/{id_}", fields=fields, base_price=Decimal(usd), **more)


_V40_PRICE: Final[Mapping[str, Any]] = {
    "seconds": 1,
    "resolution": "720p",
    # No price at 4k was found.
    "rates": (("1080p", Decimal("0.235")), ("4k", Decimal("0.47"))),
}

_ROWS = (
    _row("kling-v1.6-i2v-standard", _START_FRAME, "0.28", resolution="720p"),
    _row("kling-v1.6-i2v-pro", _END_FRAME, "0.45"),
    _row("kling-v1.6-multi-i2v-standard", _MULTI_IMAGE, "0.28", resolution="720p"),
    _row("kling-v1.6-multi-i2v-pro", _MULTI_IMAGE, "0.45"),
    _row("kling-v2.0-i2v-master", _END_FRAME, "1.30"),
    _row("kling-v2.1-i2v-standard", _START_FRAME, "0.25", resolution="720p"),
    _row("kling-v2.1-i2v-pro", _START_FRAME, "0.45"),
    _row("kling-v2.1-i2v-master", _START_FRAME, "1.30"),
    _row("kling-v2.1-i2v-pro/start-end-frame", _START_END_FRAME, "0.45"),
    _row(
        "kling-v2.5-turbo-pro/image-to-video",
        (_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _LAST_IMAGE, _GUIDANCE, _DURATION),
        "0.35",
    ),
    _row("kling-v2.5-turbo-std/image-to-video", _START_FRAME, "0.21", resolution="720p"),
    _row(
        "kling-v2.6-std/image-to-video",
        (_OPTIONAL_PROMPT, _NEGATIVE_PROMPT, _IMAGE, _DURATION),
        "0.21",
        resolution="720p",
    ),
    _row("kling-v2.6-pro/image-to-video", _V26_PRO, "0.35", sound_factor=Decimal(2)),
    _row("kling-v3.0-std/image-to-video", _V30, "0.42", resolution="720p", prompts="one", sound_factor=Decimal("1.5")),
    _row("kling-v3.0-pro/image-to-video", _V30, "0.56", prompts="one", sound_factor=Decimal("1.5")),
    _row("kling-v3.0-4k/image-to-video", _V30, "0.42", seconds=1, resolution="4k", prompts="optional"),
    _row("kling-v3-turbo-std/image-to-video", _TURBO, "0.112", seconds=1, resolution="720p", prompts="one"),
    _row("kling-v3-turbo-pro/image-to-video", _TURBO, "0.14", seconds=1, prompts="one"),
    # No price of O3 with sound was found.
    _row("kling-video-o3-std/image-to-video", _O3, "0.42", resolution="720p", sound_factor=Decimal("1.5")),
    _row("kling-video-o3-pro/image-to-video", _O3, "0.56", sound_factor=Decimal("1.5")),
    _row("kling-video-o3-4k/image-to-video", _O3, "2.10", resolution="4k"),
    _row("kling-video-o1-std/image-to-video", _O1, "0.42", resolution="720p"),
    _row("kling-video-o1/image-to-video", _O1, "0.56"),
    _row("kling-v4.0/image-to-video", _V40, "0.157", hdr=("1080p", "4k"), **_V40_PRICE),
)
_OTHER_ROWS = (
    _row(
        "kling-v4.0/text-to-video",
        (_PROMPT, attrs.evolve(_ASPECT_RATIO, default="16:9"), _seconds(3, 30), _RESOLUTION),
        "0.157",
        type="text-to-video",
        **_V40_PRICE,
    ),
    # It answers the joined clip, and bills the new seconds.
    _row(
        "kling-v4.0/video-extend",
        (Field("video", "video", required=True), _PROMPT, _LAST_IMAGE, _seconds(3, 30), _RESOLUTION),
        "0.157",
        type="video-to-video",
        **_V40_PRICE,
    ),
    # What it costs is on no page that was found.
    _row(
        "kling-v4.0/reference-to-video",
        (
            _PROMPT,
            Field("images", "images", high=10),
            Field("videos", "videos", high=5),
            Field("audios", "audios", high=3),
            _seconds(3, 30),
            _RESOLUTION,
        ),
        "0.157",
        type="reference-to-video",
        **_V40_PRICE,
    ),
    Model(
        id="wavespeed-ai/flux-dev",
        fields=(_PROMPT, Field("num_images", "number", default=1, low=1, high=4)),
        base_price=Decimal("0.012"),
        seconds=0,
        type="text-to-image",
        suffix=".png",
    ),
)
"""Models of other kinds, for clients that run any model by its schema."""

WAVESPEED: Final[Mapping[str, Model]] = {row.id: row for row in (*_ROWS, *_OTHER_ROWS)}
"""Models of the WaveSpeed persona, by id."""

_GPTPROTO_IDS = (
    "kling-v2.1-i2v-standard",
    "kling-v2.1-i2v-pro",
    "kling-v2.1-i2v-master",
    "kling-v2.1-i2v-pro/start-end-frame",
    "kling-v2.5-turbo-pro/image-to-video",
    "kling-v2.5-turbo-std/image-to-video",
    "kling-v2.6-std/image-to-video",
    "kling-v2.6-pro/image-to-video",
    "kling-v3.0-std/image-to-video",
    "kling-v3.0-pro/image-to-video",
    "kling-video-o3-std/image-to-video",
    "kling-video-o3-pro/image-to-video",
    "kling-video-o1-std/image-to-video",
    "kling-video-o1/image-to-video",
)
_INTELLIGENCE = attrs.evolve(_SHOT_TYPE, choices=("customize", "intelligence"))
_GPTPROTO_FIELDS: Final[Mapping[str, Mapping[Field, Field]]] = {
    "kling-v3.0-std/image-to-video": {
        _IMAGE: attrs.evolve(_IMAGE, required=False),
        _CFG: _GUIDANCE,
        _SOUND: attrs.evolve(_SOUND, default=True),
    },
}
"""Inputs that differ at GPTProto: those of the two services, by model."""


def _at_gptproto(id_: str) -> Model:
    row = WAVESPEED[f"kwaivgi/{id_}"]
    other = {_SHOT_TYPE: _INTELLIGENCE, **_GPTPROTO_FIELDS.get(id_, {})}
    fields = tuple(other.get(field, field) for field in row.fields)
    return attrs.evolve(row, fields=fields, price_type="per time" if id_ in _PER_RUN else "per second")


_PER_RUN: Final = frozenset({"kling-v2.1-i2v-standard", "kling-v2.1-i2v-master"})
"""Models that GPTProto charges by the run, whatever the length; its list does not say for which models that is so."""

GPTPROTO: Final[Mapping[str, Model]] = {row.id: row for row in map(_at_gptproto, _GPTPROTO_IDS)}
"""Models of the GPTProto persona, by id. What it charges is unknown, so the amounts are WaveSpeed's."""


def _changed(rows: Mapping[str, Model]) -> dict[str, Model]:
    """Return rows as a service may list them that has changed since."""
    standard, pro = rows["kwaivgi/kling-v2.1-i2v-standard"], rows["kwaivgi/kling-v2.1-i2v-pro"]
    turbo, v40 = rows["kwaivgi/kling-v2.5-turbo-std/image-to-video"], rows["kwaivgi/kling-v4.0/image-to-video"]
    seed = Field("seed", "number", low=0, high=9)
    changed = (
        attrs.evolve(standard, fields=(*standard.fields, attrs.evolve(seed, required=True))),
        attrs.evolve(pro, fields=tuple(_seconds(5, 12) if field is _DURATION else field for field in pro.fields)),
        attrs.evolve(
            turbo, base_price=Decimal("0.24"), fields=tuple(field for field in turbo.fields if field is not _GUIDANCE)
        ),
        attrs.evolve(v40, rates=(("1080p", Decimal("0.30")), ("4k", Decimal("0.47")))),
        attrs.evolve(pro, id="kwaivgi/kling-v5.0/image-to-video"),
    )
    return {id_: row for id_, row in rows.items() if "v1.6" not in id_} | {row.id: row for row in changed}


DISAGREEING: Final[Mapping[str, Model]] = _changed(WAVESPEED)
"""Models that `GET /models` lists where the catalogue is to disagree with what is served."""
