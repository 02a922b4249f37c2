"""The models, as data. A new model is one row.

Facts come from the vendors' pages (wavespeed.ai/docs/docs-api/kwaivgi/..., the models' llms.txt, docs.gptproto.com).
Where pages disagree the row holds what is safe to send:

* `duration` is an integer (the standard page says string): both are accepted, an integer is sent.
* 15 s and 20 s stand in two price tables and in no schema: they are refused.
* `image` is required (two pages call it optional and fall back to a sample picture, which would be charged).
* The end frame is `end_image` up to 2.1 and `last_image` in 2.5 turbo: the row knows its wire name.
* The path of the start/end-frame model has a slash; the dashed form is its documentation page, here an alias.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping  # noqa: TC003 -- attrs resolves field types at run time
from decimal import Decimal
from enum import Enum

import attrs


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
    """

    field: str = "end_image"
    required: bool = False


@attrs.frozen(kw_only=True)
class Model:
    """One model.

    Attributes:
        id: The id, which is its path below `/api/v3/`.
        name: The short name that users type.
        aliases: Other names for it, refused by the service and accepted here.
        providers: Names of the providers that have it.
        prompt_required: Whether a prompt must be given.
        durations: Seconds that may be asked for.
        scale: Wire name of the guidance scale, or None when the model has none.
        end_image: How it takes a last frame, or None when it takes none.
        sound: Whether it takes `sound`.
        price_per_5s: USD of 5 seconds on WaveSpeed, or None.
        sound_factor: What `sound=True` multiplies the price by.
        certainty: How sure the price is.
        resolution: Of the longer output class: "720p", "1080p", "4k".
        aspect_note: Whether its page names 1:2.5 to 2.5:1 as the input's aspect ratio.
        usual: Seconds that a 5 s video usually takes: where learning starts from.
        source: Where the row is from.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    providers: frozenset[str] = frozenset({"wavespeed"})
    prompt_required: bool = True
    durations: tuple[int, ...] = (5, 10)
    scale: str | None = "guidance_scale"
    end_image: EndImage | None = None
    sound: bool = False
    price_per_5s: Decimal | None = None
    sound_factor: Decimal = Decimal(2)
    certainty: Certainty = Certainty.UNKNOWN
    resolution: str = "1080p"
    aspect_note: bool = False
    usual: float = 120.0
    source: str = ""

    def price(self, duration: int, *, provider: str = "wavespeed", sound: bool = False) -> Price:
        """What one run of `duration` seconds costs by the price list (`base_price * duration / 5`)."""
        if self.price_per_5s is None or provider != "wavespeed":
            return Price(
                None, Certainty.UNKNOWN, f"no price list of {provider} was found" if provider != "wavespeed" else ""
            )
        usd = self.price_per_5s * duration / 5
        if sound:
            usd *= self.sound_factor
        return Price(usd, Certainty.INFERRED if sound else self.certainty, self.source)


BOTH = frozenset({"wavespeed", "gptproto"})
_SNAP = "wavespeed.ai/docs, 2025-10"

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
        end_image=EndImage(),
        sound=True,
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
        price_per_5s=Decimal("0.56"),
        certainty=Certainty.STATED,
        usual=151.0,
        source="wavespeed.ai/docs/docs-api/kwaivgi, 3.0 pro; price with sound inferred",
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
