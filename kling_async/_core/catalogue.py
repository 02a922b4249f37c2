"""The models, prices and account levels: a new model is one row of `MODELS`.

Sources are the vendors' pages (wavespeed.ai/docs/docs-api/kwaivgi/..., the models' llms.txt, docs.gptproto.com), and
for some prices third parties, which `Certainty` tells. Where they disagree, a row has what is safe to send:

* `duration` is an integer (the standard page says string): both are accepted, an integer is sent.
* 15 s and 20 s are in two price tables and in no schema: they are refused.
* `image` is required (two pages call it optional and fall back to a sample image, which would be charged).
* The last frame is `end_image` up to 2.1, in 3.0 and O3, and `last_image` in 2.5 turbo, O1 and 4.0. For 2.6 pro the
  newest page says `last_image`, an older one and a copy of the schema `end_image`: both are sent. GPTProto has
  `last_image` for it.
* 3.0 and 3 turbo take one prompt or the prompts of several shots; O3 takes shots beside its prompt. `shot_type` is
  `intelligent` at WaveSpeed and `intelligence` at GPTProto: either is accepted, and each is sent its own.
* Fields that no page names are refused: the service would ignore them and charge.
* The path of the start/end-frame model has a slash; the dashed form is from its documentation page, here an alias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping  # noqa: TC003 -- attrs resolves field types at run time
from decimal import Decimal

import attrs

from .model import MAX_TEXT_LENGTH, AtProvider, Caution, EndImage, Model, Requirement
from .prices import Certainty, Price, Rate
from .schema import Field

__all__ = [
    "DEFAULT_MODEL",
    "LEVELS",
    "MAX_TEXT_LENGTH",
    "MODELS",
    "Certainty",
    "EndImage",
    "Level",
    "Model",
    "Price",
    "find_model",
    "near_names",
]

_BOTH_PROVIDERS = frozenset({"wavespeed", "gptproto"})
_DOCS = "wavespeed.ai/docs/docs-api/kwaivgi"
_DOCS_2025_10 = "wavespeed.ai/docs, 2025-10"
_SHOT_TYPES = ("customize", "intelligence")
_SHOT_WORDS = AtProvider(provider="wavespeed", words=(("intelligence", "intelligent"),))
_3_TO_15_S = tuple(range(3, 16))
_SOUND_3_0 = "3.0: five resellers charge 1.5 times as much with sound, 0.126 and 0.168 USD per second"
_SOUND_O3 = "O3: no price with sound was found"

MODELS: tuple[Model, ...] = (
    Model(
        id="kwaivgi/kling-v2.1-i2v-standard",
        name="kling-v2.1-standard",
        aliases=("kling-v2.1-std", "kling-v2.1-i2v-standard"),
        providers=_BOTH_PROVIDERS,
        price_per_5s=Decimal("0.25"),
        certainty=Certainty.REPORTED,
        resolution="720p",
        source="a third party's reading of the vendor's collection page",
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
        providers=_BOTH_PROVIDERS,
        end_image=EndImage(required=True),
        price_per_5s=Decimal("0.45"),
        certainty=Certainty.STATED,
        source="wavespeed.ai/models/kwaivgi/kling-v2.1-i2v-pro/start-end-frame; GPTProto's list",
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
    *(
        Model(
            id=f"kwaivgi/kling-v1.6-multi-i2v-{quality}",
            name=f"kling-v1.6-multi-{quality}",
            image=False,
            scale=None,
            inputs=(
                Field(name="images", type="array", required=True, max_length=4),
                Field(name="aspect_ratio", type="string", choices=("1:1", "16:9", "9:16"), default="1:1"),
            ),
            price_per_5s=price,
            certainty=certainty,
            resolution=resolution,
            usual=150.0,
            source=f"{_DOCS_2025_10}; at most 4 images by Kling's own API; {note}",
        )
        for quality, price, certainty, resolution, note in (
            ("standard", Decimal("0.28"), Certainty.INFERRED, "720p", "price inferred"),
            ("pro", None, Certainty.UNKNOWN, "1080p", "no price found"),
        )
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
        providers=_BOTH_PROVIDERS,
        prompt_required=False,
        scale=None,
        cautions=(
            Caution(
                missing=("prompt",),
                message="schema and llms.txt of 2.6 std require a prompt, its page does not: give one to be sure",
            ),
        ),
        price_per_5s=Decimal("0.21"),
        certainty=Certainty.STATED,
        resolution="720p",
        usual=80.0,
        source=f"{_DOCS}, 2.6 std; GPTProto's list",
    ),
    Model(
        id="kwaivgi/kling-v2.6-pro/image-to-video",
        name="kling-v2.6-pro",
        providers=_BOTH_PROVIDERS,
        scale="cfg_scale",
        end_image=EndImage(elsewhere=(("gptproto", "last_image"),), also="last_image"),
        sound=True,
        voices=True,
        cautions=(
            Caution(
                given=("end_image", "sound"),
                provider="wavespeed",
                message="third parties say that 2.6 pro does not take a last frame together with sound: "
                "leave one of them out to be sure",
            ),
        ),
        price_per_5s=Decimal("0.35"),
        certainty=Certainty.STATED,
        sound_certainty=Certainty.STATED,
        sound_source=f"{_DOCS}, 2.6 pro: twice the price with sound",
        usual=83.0,
        source=f"{_DOCS}, 2.6 pro",
    ),
    *(
        Model(
            id=f"kwaivgi/kling-v3.0-{quality}/image-to-video",
            name=f"kling-v3.0-{quality}",
            providers=_BOTH_PROVIDERS,
            durations=_3_TO_15_S,
            scale="cfg_scale",
            end_image=EndImage(),
            sound=True,
            shots=6,
            shot_types=_SHOT_TYPES,
            elements=3,
            at=at,
            price_per_5s=price,
            sound_factor=Decimal("1.5"),
            certainty=Certainty.STATED,
            sound_certainty=Certainty.REPORTED,
            sound_source=_SOUND_3_0,
            resolution=resolution,
            usual=usual,
            source=f"{_DOCS}, 3.0 {quality}",
        )
        for quality, price, resolution, usual, at in (
            (
                "std",
                Decimal("0.42"),
                "720p",
                79.0,
                (_SHOT_WORDS, AtProvider(provider="gptproto", scale="guidance_scale", sound_by_default=True)),
            ),
            ("pro", Decimal("0.56"), "1080p", 151.0, (_SHOT_WORDS,)),
        )
    ),
    Model(
        id="kwaivgi/kling-v3.0-4k/image-to-video",
        name="kling-v3.0-4k",
        prompt_required=False,
        durations=_3_TO_15_S,
        scale="cfg_scale",
        end_image=EndImage(),
        sound=True,
        shots=6,
        shot_types=_SHOT_TYPES,
        elements=3,
        at=(_SHOT_WORDS,),
        price_per_5s=Decimal("2.10"),
        sound_factor=Decimal(1),
        certainty=Certainty.REPORTED,
        sound_certainty=Certainty.REPORTED,
        resolution="4k",
        usual=240.0,
        source=f"{_DOCS}, 3.0 4k; a third party's price, sound included",
    ),
    *(
        Model(
            id=f"kwaivgi/kling-v3-turbo-{quality}/image-to-video",
            name=f"kling-v3-turbo-{quality}",
            durations=_3_TO_15_S,
            scale=None,
            negative_prompt=False,
            shots=6,
            price_per_5s=price,
            certainty=Certainty.STATED,
            resolution=resolution,
            usual=usual,
            source=f"{_DOCS}, 3 turbo {quality}; its base_price is per second",
        )
        for quality, price, resolution, usual in (
            ("std", Decimal("0.56"), "720p", 80.0),
            ("pro", Decimal("0.70"), "1080p", 100.0),
        )
    ),
    *(
        Model(
            id=f"kwaivgi/kling-video-o3-{quality}/image-to-video",
            name=f"kling-o3-{quality}",
            aliases=(f"kling-video-o3-{quality}", *aliases),
            providers=providers,
            durations=_3_TO_15_S,
            scale=None,
            negative_prompt=False,
            end_image=EndImage(),
            sound=True,
            shots=6,
            shot_types=_SHOT_TYPES,
            elements=3,
            prompt_beside_shots=True,
            at=(_SHOT_WORDS,),
            price_per_5s=price,
            sound_factor=None,
            certainty=certainty,
            sound_certainty=Certainty.UNKNOWN,
            sound_source=_SOUND_O3,
            resolution=resolution,
            usual=usual,
            source=f"{_DOCS}, O3 {quality}{note}",
        )
        for quality, aliases, providers, price, certainty, resolution, usual, note in (
            ("std", ("kling-v3-omni-std",), _BOTH_PROVIDERS, Decimal("0.42"), Certainty.STATED, "720p", 100.0, ""),
            ("pro", ("kling-v3-omni-pro",), _BOTH_PROVIDERS, Decimal("0.56"), Certainty.STATED, "1080p", 150.0, ""),
            (
                "4k",
                (),
                frozenset({"wavespeed"}),
                Decimal("2.10"),
                Certainty.REPORTED,
                "4k",
                240.0,
                "; about 2.10 by a third party",
            ),
        )
    ),
    *(
        Model(
            id=f"kwaivgi/{path}/image-to-video",
            name=f"kling-o1-{quality}",
            aliases=(path,),
            providers=_BOTH_PROVIDERS,
            durations=tuple(range(3, 11)),
            scale=None,
            negative_prompt=False,
            end_image=EndImage("last_image"),
            price_per_5s=price,
            certainty=Certainty.STATED,
            resolution=resolution,
            usual=usual,
            source=f"{_DOCS}, O1{note}",
        )
        for path, quality, price, resolution, usual, note in (
            ("kling-video-o1-std", "std", Decimal("0.42"), "720p", 100.0, " std"),
            ("kling-video-o1", "pro", Decimal("0.56"), "1080p", 150.0, ""),
        )
    ),
    Model(
        id="kwaivgi/kling-v4.0/image-to-video",
        name="kling-v4.0",
        prompt_required=False,
        durations=tuple(range(3, 31)),
        scale=None,
        negative_prompt=False,
        end_image=EndImage("last_image"),
        inputs=(
            Field(name="keyframes", type="array", max_length=8),
            Field(name="resolution", type="string", choices=("720p", "1080p", "4k"), default="720p"),
            Field(name="aspect_ratio", type="string", choices=("16:9", "9:16", "1:1", "21:9")),
            Field(name="dynamic_range", type="string", choices=("hdr",)),
        ),
        requirements=(Requirement(field="dynamic_range", other="resolution", values=("1080p", "4k")),),
        price_per_5s=Decimal("0.785"),
        certainty=Certainty.STATED,
        rates=(
            Rate(resolution="1080p", usd_per_second=Decimal("0.235"), certainty=Certainty.STATED),
            Rate(
                resolution="4k",
                usd_per_second=None,
                certainty=Certainty.UNKNOWN,
                source="no price of 4.0 at 4k was found",
            ),
        ),
        resolution="720p",
        usual=150.0,
        source=f"{_DOCS}, 4.0: 0.157 USD per second at 720p and 0.235 at 1080p, sound included",
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
    import difflib  # noqa: PLC0415 -- for wrong names only

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
