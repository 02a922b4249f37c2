"""The models, as data. A new model is one row.

Facts come from the vendors' pages (wavespeed.ai/docs/docs-api/kwaivgi/..., the models' llms.txt, docs.gptproto.com).
Where pages disagree the row holds what is safe to send:

* `duration` is an integer (the standard page says string): both are accepted, an integer is sent.
* 15 s and 20 s stand in two price tables and in no schema: they are refused.
* `image` is required (two pages call it optional and fall back to a sample picture, which would be charged).
* The end frame is `end_image` up to 2.1 and `last_image` in 2.5 turbo, and of 2.6 pro it has another name at GPTProto:
  the row knows its wire names.
* 3.0 and 3 turbo take one prompt or the prompts of several shots. `shot_type` is `intelligence` in the schema and
  `intelligent` in the pages' prose: the schema's word is sent.
* What a page does not name is refused: the service would drop it silently and charge.
* The path of the start/end-frame model has a slash; the dashed form is its documentation page, here an alias.
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


MAX_TEXT = 2500
"""Characters of a prompt and of a negative prompt (pages of standard and pro; ComfyUI node)."""


class Certainty(Enum):
    """How sure a price is."""

    STATED = "stated"
    """A page of the vendor prints it."""
    INFERRED = "inferred"
    """Computed from other prices; no page prints it."""
    UNKNOWN = "unknown"
    """Nothing was found."""


@attrs.frozen
class Price:
    """What one run costs by the price list.

    Attributes:
        usd: The amount, or None when it is not known.
        certainty: How sure it is.
        source: Where it is from.
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
    """How a model takes the last frame.

    Attributes:
        field: The name on the wire.
        required: Whether it must be given.
        elsewhere: Pairs of a provider and the name on its wire, where that is another one.
    """

    field: str = "end_image"
    required: bool = False
    elsewhere: tuple[tuple[str, str], ...] = ()

    def name_at(self, provider: str) -> str:
        """The name on the wire of a provider."""
        return dict(self.elsewhere).get(provider, self.field)


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def _is_path(model: object, attribute: object, value: str) -> None:
    """Refuse ids that would lead elsewhere: they come from the service or the caller, and stand in URLs."""
    del model, attribute
    if not _ID.fullmatch(value):
        raise ValueError(f"no id of a model: {value[:120]!r}")


@attrs.frozen(kw_only=True)
class Model:
    """One model. `Job(model=Model(...))` runs one that is in no catalogue.

    Attributes:
        id: The id, which is its path below `/api/v3/`.
        name: The short name that users type; by default the id.
        aliases: Other names for it, refused by the service and accepted here.
        providers: Names of the providers that have it.
        prompt_required: Whether a prompt must be given, or shots where the model takes them.
        max_text: Characters of a prompt and of a negative prompt at most.
        durations: Seconds that may be asked for, ascending; empty when the model takes no duration.
        default_duration: Seconds when a job names none; the first of `durations` if it is not among them.
        duration_type: How the duration is written on the wire.
        scale: Wire name of the guidance scale, or None when the model has none.
        scale_range: The least and the greatest value of the guidance scale.
        negative_prompt: Whether it takes `negative_prompt`.
        end_image: How it takes a last frame, or None when it takes none.
        sound: Whether it takes `sound`.
        shots: How many shots `multi_prompt` may have; 0 when the model takes one prompt only.
        shot_types: The words that `shot_type` may be; empty when the model takes none.
        elements: How many items `element_list` may have; 0 when the model takes none.
        voices: Whether it takes `voice_list`.
        required: Names of other fields of `Job` that must be given.
        more: The inputs that go into `Job.extra`, which is checked against them; None when they are not known, and
            then `extra` is sent as it is.
        price_per_5s: USD of 5 seconds on WaveSpeed, or None.
        sound_factor: What `sound=True` multiplies the price by.
        certainty: How sure the price is.
        resolution: Of the longer output class: "720p", "1080p", "4k".
        aspect_note: Whether its page names 1:2.5 to 2.5:1 as the input's aspect ratio.
        usual: Seconds that a 5 s video usually takes: where learning starts from.
        source: Where the row is from.
    """

    id: str = attrs.field(validator=_is_path)
    name: str = attrs.field(default=attrs.Factory(lambda self: self.id, takes_self=True))
    aliases: tuple[str, ...] = ()
    providers: frozenset[str] = frozenset({"wavespeed"})
    prompt_required: bool = True
    max_text: int = MAX_TEXT
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
    aspect_note: bool = False
    usual: float = 120.0
    source: str = ""

    def price(self, duration: int, *, provider: str = "wavespeed", sound: bool = False) -> Price:
        """What one run of `duration` seconds costs by the price list (`base_price * duration / 5`).

        A model that takes no duration costs the same every time.
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
        """The row of a model by the service's own description, for models that are not in the catalogue yet.

        Inputs that `Job` has no field for are given in `Job.extra`, and checked there.

        Args:
            entry: One of `await kling.models()`.
            provider: The provider that it came from.

        Raises:
            UnsupportedError: The model takes no single image, or the service tells too little of it.
        """
        facts = schema.read(entry.schema)
        if facts.missing:
            raise UnsupportedError(f"{entry.id} cannot be run: {facts.missing}")
        by_second = schema.price_by_the_second(entry.formula)
        # A formula that is not understood makes the price unknown, not wrong: `kling.price` asks the service.
        priced = entry.base_price is not None and by_second is not None and (by_second or not facts.durations)
        try:
            return cls(
                id=entry.path.strip("/").removeprefix("api/v3/") or entry.id,
                providers=frozenset({provider}),
                prompt_required=facts.prompt_required,
                max_text=MAX_TEXT if facts.max_text is None else facts.max_text,
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


BOTH = frozenset({"wavespeed", "gptproto"})
_SNAP = "wavespeed.ai/docs, 2025-10"
_SHOT_TYPES = ("customize", "intelligence")

MODELS: tuple[Model, ...] = (
    Model(
        id="kwaivgi/kling-v2.1-i2v-standard",
        name="kling-v2.1-standard",
        aliases=("kling-v2.1-std", "kling-v2.1-i2v-standard"),
        providers=BOTH,
        price_per_5s=Decimal("0.28"),
        certainty=Certainty.INFERRED,
        resolution="720p",
        source="inferred: 2.5 turbo std at 0.21 is called 25 % cheaper",
    ),
    Model(
        id="kwaivgi/kling-v2.1-i2v-pro",
        name="kling-v2.1-pro",
        aliases=("kling-v2.1-i2v-pro",),
        providers=BOTH,
        price_per_5s=Decimal("0.45"),
        certainty=Certainty.STATED,
        source="wavespeed.ai/docs/docs-api/kwaivgi/kwaivgi-kling-v2.1-i2v-pro",
    ),
    Model(
        id="kwaivgi/kling-v2.1-i2v-master",
        name="kling-v2.1-master",
        aliases=("kling-v2.1-i2v-master",),
        providers=BOTH,
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
        source=f"{_SNAP}; price inferred",
    ),
    Model(
        id="kwaivgi/kling-v1.6-i2v-pro",
        name="kling-v1.6-pro",
        end_image=EndImage(),
        aspect_note=True,
        source=f"{_SNAP}; no price found",
    ),
    Model(
        id="kwaivgi/kling-v2.0-i2v-master",
        name="kling-v2.0-master",
        end_image=EndImage(),
        price_per_5s=Decimal("1.30"),
        certainty=Certainty.STATED,
        aspect_note=True,
        usual=150.0,
        source=_SNAP,
    ),
    Model(
        id="kwaivgi/kling-v2.5-turbo-pro/image-to-video",
        name="kling-v2.5-turbo-pro",
        providers=BOTH,
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
        providers=BOTH,
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
        providers=BOTH,
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
"""What a job runs on when it names no model: the least expensive of Kling 2.1."""


def _index(models: Iterable[Model]) -> Mapping[str, Model]:
    names: dict[str, Model] = {}
    for model in models:
        for name in (model.id, model.name, *model.aliases):
            if names.setdefault(name, model) is not model:
                raise ValueError(f"two models are called {name}")
    return names


_BY_NAME = _index(MODELS)


def find_model(name: str) -> Model | None:
    """The row with this id, short name or alias; None when there is none."""
    return _BY_NAME.get(name) or _BY_NAME.get(name.strip().strip("/").lower())


def near_names(name: str) -> list[str]:
    """Short names that may have been meant."""
    shorts = [model.name for model in MODELS]
    near = difflib.get_close_matches(name.rpartition("kwaivgi/")[2], shorts, n=3, cutoff=0.5)
    return near or shorts


@attrs.frozen
class Level:
    """What an account level permits (wavespeed.ai/docs/account-levels).

    The vendor has moved these numbers before: give your own `Level` when they no longer hold.

    Attributes:
        name: The vendor's word.
        starts: Videos that may be started in `per` seconds.
        in_flight: Predictions that may run at once.
        per: Seconds; the windows are minutes.
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
