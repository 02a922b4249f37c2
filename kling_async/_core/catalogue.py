"""The models, prices and account levels, as data: a new model is one row of `MODELS`.

Sources are the vendors' pages (wavespeed.ai/docs/docs-api/kwaivgi/..., the models' llms.txt, docs.gptproto.com).
Where they disagree, the row has the values that are safe to send:

* `duration` is an integer (the standard page says string): both are accepted, an integer is sent.
* 15 s and 20 s are in two price tables and in no schema: they are refused.
* `image` is required (two pages call it optional and fall back to a sample image, which would be charged).
* The last frame is `end_image` up to 2.1 and `last_image` in 2.5 turbo; GPTProto has another name for that of 2.6 pro.
* 3.0 and 3 turbo take one prompt or the prompts of several shots. `shot_type` is `intelligence` in the schema and
  `intelligent` in the pages' prose: the schema's word is sent.
* Fields that no page names are refused: the service would ignore them and charge.
* The path of the start/end-frame model has a slash; the dashed form is from its documentation page, here an alias.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping  # noqa: TC003 -- attrs resolves field types at run time
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Literal

import attrs

from kling_async.errors import UnsupportedError

from . import schema
from .schema import Field

if TYPE_CHECKING:
    from .account import ServiceModel


MAX_TEXT_LENGTH = 2500
"""Most characters of a prompt or negative prompt (pages of standard and pro; ComfyUI node)."""


class Certainty(Enum):
    """Certainty of a price."""

    STATED = "stated"
    """Printed on a page of the vendor."""
    INFERRED = "inferred"
    """Computed from other prices; printed on no page."""
    UNKNOWN = "unknown"
    """No price was found."""


@attrs.frozen
class Price:
    """Price of one run by the price list.

    Attributes:
        usd: Amount in USD; None if unknown.
        certainty: Certainty of the amount.
        source: Page or inference that it is from.
    """

    usd: Decimal | None
    certainty: Certainty
    source: str = ""

    def __str__(self) -> str:
        if self.usd is None:
            return "unknown"
        return f"{'≈ ' if self.certainty is Certainty.INFERRED else ''}${self.usd:.2f}"


@attrs.frozen
class EndImage:
    """A model's input for the last frame.

    Attributes:
        field: Wire name.
        required: Whether it must be given.
        elsewhere: Pairs of a provider and its wire name, for providers with another name.
    """

    field: str = "end_image"
    required: bool = False
    elsewhere: tuple[tuple[str, str], ...] = ()

    def name_at(self, provider: str) -> str:
        """Return the wire name at a provider."""
        return dict(self.elsewhere).get(provider, self.field)


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def _is_path(model: object, attribute: object, value: str) -> None:
    """Raise ValueError for an id that is not a plain path: ids from the service or the caller become part of URLs."""
    del model, attribute
    if not _ID.fullmatch(value):
        raise ValueError(f"id: expected a model path such as 'vendor/model', got {value[:120]!r}")


@attrs.frozen(kw_only=True)
class Model:
    """One model. Use `Job(model=Model(...))` to run one that is not in the catalogue.

    Attributes:
        id: Model id: its path below `/api/v3/`.
        name: Short name that users type; by default the id.
        aliases: Other accepted names; the service itself refuses them.
        providers: Names of the providers that offer it.
        prompt_required: Whether a prompt is required, or shots where the model supports them.
        max_text: Most characters of a prompt or negative prompt.
        durations: Supported video durations in seconds, ascending; empty if the model has no duration.
        default_duration: Seconds for jobs without a duration; the first of `durations` if it is not among them.
        duration_type: JSON type of the duration on the wire.
        scale: Wire name of the guidance scale; None if the model has none.
        scale_range: Lowest and highest value of the guidance scale.
        negative_prompt: Whether it supports `negative_prompt`.
        end_image: Input for the last frame; None if the model has none.
        sound: Whether it supports `sound`.
        shots: Most shots of `multi_prompt`; 0 if the model takes a single prompt only.
        shot_types: Values of `shot_type`; empty if the model has none.
        elements: Most items of `element_list`; 0 if the model has none.
        voices: Whether it supports `voice_list`.
        required: Names of further `Job` fields that are required.
        more: Inputs that go into `Job.extra`, which is checked against them; None if they are not known, and `extra`
            is sent unchecked.
        price_per_5s: USD for 5 seconds of video on WaveSpeed; None if unknown.
        sound_factor: Factor of the price with `sound=True`.
        certainty: Certainty of the price.
        resolution: Resolution class of the output: "720p", "1080p" or "4k"; empty if unknown.
        aspect_note: Unused; kept because the digests of jobs that carry a model of their own contain it.
        usual: Seconds that generating a 5 s video usually takes, until durations are learned.
        source: Source of the row.
    """

    id: str = attrs.field(validator=_is_path)
    name: str = attrs.field(default=attrs.Factory(lambda self: self.id, takes_self=True))
    aliases: tuple[str, ...] = ()
    providers: frozenset[str] = frozenset({"wavespeed"})
    prompt_required: bool = True
    max_text: int = MAX_TEXT_LENGTH
    durations: tuple[int, ...] = (5, 10)
    default_duration: int = 5
    duration_type: Literal["integer", "string"] = "integer"
    scale: str | None = "guidance_scale"
    scale_range: tuple[float, float] = (0.0, 1.0)
    negative_prompt: bool = True
    end_image: EndImage | None = None
    sound: bool = False
    shots: int = 0
    shot_types: tuple[str, ...] = ()
    elements: int = 0
    voices: bool = False
    required: frozenset[str] = frozenset()
    more: tuple[Field, ...] | None = None
    price_per_5s: Decimal | None = None
    sound_factor: Decimal = Decimal(2)
    certainty: Certainty = Certainty.UNKNOWN
    resolution: str = "1080p"
    aspect_note: bool = attrs.field(default=False, repr=False)
    usual: float = 120.0
    source: str = ""

    def price(self, duration: int, *, provider: str = "wavespeed", sound: bool = False) -> Price:
        """Return the price of one run of `duration` seconds by the price list: `base_price * duration / 5`.

        The price of a model without a duration is constant.
        """
        if self.price_per_5s is None or provider != "wavespeed":
            return Price(
                None, Certainty.UNKNOWN, f"no price list of {provider} was found" if provider != "wavespeed" else ""
            )
        usd = self.price_per_5s * duration / 5 if self.durations else self.price_per_5s
        if sound:
            usd *= self.sound_factor
        return Price(usd, Certainty.INFERRED if sound else self.certainty, self.source)

    @classmethod
    def from_service(cls, entry: ServiceModel, *, provider: str = "wavespeed") -> Model:
        """Build the row of a model that is not in the catalogue yet from the service's own description.

        Inputs that `Job` has no field for go into `Job.extra`, and are checked there.

        Args:
            entry: An item of `await kling.models()`.
            provider: Name of the provider that it came from.

        Raises:
            UnsupportedError: The model has no input for a single image, or its description is unusable.
        """
        facts = schema.read_schema(entry.schema)
        if facts.unsupported:
            raise UnsupportedError(f"{entry.id} cannot be run: {facts.unsupported}")
        by_second = schema.is_price_per_second(entry.formula)
        # With an unknown formula the price is unknown; `kling.price` then asks the service.
        priced = entry.base_price is not None and by_second is not None and (by_second or not facts.durations)
        try:
            return cls(
                id=entry.path.strip("/").removeprefix("api/v3/") or entry.id,
                providers=frozenset({provider}),
                prompt_required=facts.prompt_required,
                max_text=MAX_TEXT_LENGTH if facts.max_text is None else facts.max_text,
                durations=facts.durations,
                default_duration=facts.default_duration,
                duration_type=facts.duration_type,
                scale=facts.scale,
                scale_range=facts.scale_range,
                negative_prompt=facts.negative_prompt,
                end_image=None if facts.end_image is None else EndImage(facts.end_image, facts.end_image_required),
                sound=facts.sound,
                shots=facts.shots,
                shot_types=facts.shot_types,
                elements=facts.elements,
                voices=facts.voices,
                required=facts.required,
                more=facts.more,
                price_per_5s=entry.base_price if priced else None,
                sound_factor=Decimal(1),
                certainty=Certainty.INFERRED if priced else Certainty.UNKNOWN,
                resolution="",
                source=f"the service's own catalogue, base_price {entry.base_price}",
            )
        except ValueError as error:
            raise UnsupportedError(f"{entry.id[:120]!r} cannot be run: {error}") from None


_BOTH_PROVIDERS = frozenset({"wavespeed", "gptproto"})
_DOCS_2025_10 = "wavespeed.ai/docs, 2025-10"
_SHOT_TYPES = ("customize", "intelligence")

MODELS: tuple[Model, ...] = (
    Model(
        id="kwaivgi/kling-v2.1-i2v-standard",
        name="kling-v2.1-standard",
        aliases=("kling-v2.1-std", "kling-v2.1-i2v-standard"),
        providers=_BOTH_PROVIDERS,
        price_per_5s=Decimal("0.28"),
        certainty=Certainty.INFERRED,
        resolution="720p",
        source="inferred: 2.5 turbo std at 0.21 is called 25 % cheaper",
    ),
    Model(
        id="kwaivgi/kling-v2.1-i2v-pro",
        name="kling-v2.1-pro",
        aliases=("kling-v2.1-i2v-pro",),
        providers=_BOTH_PROVIDERS,
        price_per_5s=Decimal("0.45"),
        certainty=Certainty.STATED,
        source="wavespeed.ai/docs/docs-api/kwaivgi/kwaivgi-kling-v2.1-i2v-pro",
    ),
    Model(
        id="kwaivgi/kling-v2.1-i2v-master",
        name="kling-v2.1-master",
        aliases=("kling-v2.1-i2v-master",),
        providers=_BOTH_PROVIDERS,
        price_per_5s=Decimal("1.30"),
        certainty=Certainty.STATED,
        usual=150.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi/kwaivgi-kling-v2.1-i2v-master",
    ),
    Model(
        id="kwaivgi/kling-v2.1-i2v-pro/start-end-frame",
        name="kling-v2.1-pro-start-end-frame",
        aliases=("kwaivgi/kling-v2.1-i2v-pro-start-end-frame", "kling-v2.1-start-end-frame"),
        end_image=EndImage(required=True),
        price_per_5s=Decimal("0.45"),
        certainty=Certainty.STATED,
        source="wavespeed.ai/models/kwaivgi/kling-v2.1-i2v-pro/start-end-frame",
    ),
    Model(
        id="kwaivgi/kling-v1.6-i2v-standard",
        name="kling-v1.6-standard",
        price_per_5s=Decimal("0.28"),
        certainty=Certainty.INFERRED,
        resolution="720p",
        usual=150.0,
        source=f"{_DOCS_2025_10}; price inferred",
    ),
    Model(
        id="kwaivgi/kling-v1.6-i2v-pro",
        name="kling-v1.6-pro",
        end_image=EndImage(),
        aspect_note=True,
        source=f"{_DOCS_2025_10}; no price found",
    ),
    Model(
        id="kwaivgi/kling-v2.0-i2v-master",
        name="kling-v2.0-master",
        end_image=EndImage(),
        price_per_5s=Decimal("1.30"),
        certainty=Certainty.STATED,
        aspect_note=True,
        usual=150.0,
        source=_DOCS_2025_10,
    ),
    Model(
        id="kwaivgi/kling-v2.5-turbo-pro/image-to-video",
        name="kling-v2.5-turbo-pro",
        providers=_BOTH_PROVIDERS,
        end_image=EndImage("last_image"),
        price_per_5s=Decimal("0.35"),
        certainty=Certainty.STATED,
        aspect_note=True,
        usual=80.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 2.5 turbo pro; last_image by its newer page",
    ),
    Model(
        id="kwaivgi/kling-v2.5-turbo-std/image-to-video",
        name="kling-v2.5-turbo-std",
        providers=_BOTH_PROVIDERS,
        price_per_5s=Decimal("0.21"),
        certainty=Certainty.STATED,
        resolution="720p",
        usual=80.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 2.5 turbo std",
    ),
    Model(
        id="kwaivgi/kling-v2.6-std/image-to-video",
        name="kling-v2.6-std",
        prompt_required=False,
        scale=None,
        price_per_5s=Decimal("0.21"),
        certainty=Certainty.STATED,
        resolution="720p",
        usual=80.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 2.6 std",
    ),
    Model(
        id="kwaivgi/kling-v2.6-pro/image-to-video",
        name="kling-v2.6-pro",
        providers=_BOTH_PROVIDERS,
        scale="cfg_scale",
        # GPTProto's page of the same model calls it last_image.
        end_image=EndImage(elsewhere=(("gptproto", "last_image"),)),
        sound=True,
        voices=True,
        price_per_5s=Decimal("0.35"),
        certainty=Certainty.STATED,
        usual=83.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 2.6 pro; price with sound inferred",
    ),
    Model(
        id="kwaivgi/kling-v3.0-std/image-to-video",
        name="kling-v3.0-std",
        durations=tuple(range(3, 16)),
        scale="cfg_scale",
        end_image=EndImage(),
        sound=True,
        shots=6,
        shot_types=_SHOT_TYPES,
        elements=3,
        price_per_5s=Decimal("0.42"),
        certainty=Certainty.STATED,
        resolution="720p",
        usual=79.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 3.0 std; price with sound inferred",
    ),
    Model(
        id="kwaivgi/kling-v3.0-pro/image-to-video",
        name="kling-v3.0-pro",
        durations=tuple(range(3, 16)),
        scale="cfg_scale",
        end_image=EndImage(),
        sound=True,
        shots=6,
        shot_types=_SHOT_TYPES,
        elements=3,
        price_per_5s=Decimal("0.56"),
        certainty=Certainty.STATED,
        usual=151.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 3.0 pro; price with sound inferred",
    ),
    Model(
        id="kwaivgi/kling-v3.0-4k/image-to-video",
        name="kling-v3.0-4k",
        durations=tuple(range(3, 16)),
        scale="cfg_scale",
        end_image=EndImage(),
        sound=True,
        shots=6,
        shot_types=_SHOT_TYPES,
        elements=3,
        resolution="4k",
        usual=240.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 3.0 4k; no price found",
    ),
    Model(
        id="kwaivgi/kling-v3-turbo-std/image-to-video",
        name="kling-v3-turbo-std",
        durations=tuple(range(3, 16)),
        scale=None,
        negative_prompt=False,
        shots=6,
        resolution="720p",
        usual=80.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 3 turbo std; no price found",
    ),
    Model(
        id="kwaivgi/kling-v3-turbo-pro/image-to-video",
        name="kling-v3-turbo-pro",
        durations=tuple(range(3, 16)),
        scale=None,
        negative_prompt=False,
        shots=6,
        usual=100.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 3 turbo pro; no price found",
    ),
)

DEFAULT_MODEL = "kling-v2.1-standard"
"""Model of jobs that name none: the cheapest of Kling 2.1."""


def _by_name(models: Iterable[Model]) -> Mapping[str, Model]:
    names: dict[str, Model] = {}
    for model in models:
        for name in (model.id, model.name, *model.aliases):
            if names.setdefault(name, model) is not model:
                raise ValueError(f"catalogue: expected one model per name, got two for {name}")
    return names


_BY_NAME = _by_name(MODELS)


def find_model(name: str) -> Model | None:
    """Return the model with this id, short name or alias; None if there is none."""
    return _BY_NAME.get(name) or _BY_NAME.get(name.strip().strip("/").lower())


def near_names(name: str) -> list[str]:
    """Return short names similar to `name`; all of them if none is similar."""
    shorts = [model.name for model in MODELS]
    near = difflib.get_close_matches(name.rpartition("kwaivgi/")[2], shorts, n=3, cutoff=0.5)
    return near or shorts


@attrs.frozen
class Level:
    """Limits of an account level (wavespeed.ai/docs/account-levels).

    The vendor has changed these numbers before: pass a `Level` of your own when they are outdated.

    Attributes:
        name: The vendor's name of the level.
        starts: Most videos started within `per` seconds.
        in_flight: Most predictions running at once.
        per: Length of the window in seconds.
    """

    name: str
    starts: int
    in_flight: int
    per: float = 60.0


LEVELS: Mapping[str, Level] = {
    level.name: level
    for level in (
        Level("bronze", 2, 2),
        Level("silver", 500, 300),
        Level("gold", 3_000, 3_000),
        Level("ultra", 5_000, 10_000),
    )
}
