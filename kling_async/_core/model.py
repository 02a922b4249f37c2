"""Models as data: their inputs, rules between inputs, and prices. The rows are in `catalogue`."""

from __future__ import annotations

import functools
import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import attrs

from kling_async.errors import UnsupportedError

from . import comparison, schema
from .formula import Formula
from .prices import Certainty, Kind, Price, Rate
from .schema import Field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .account import ServiceModel

MAX_TEXT_LENGTH = 2500
"""Most characters of a prompt or negative prompt (pages of standard and pro; ComfyUI node)."""

_BASE_SECONDS = 5
"""Seconds that `Model.price_per_5s` is for."""


@attrs.frozen
class EndImage:
    """A model's input for the last frame.

    Attributes:
        field: Wire name.
        required: Whether it must be given.
        elsewhere: Pairs of a provider and its wire name, for providers with another name.
        also: Second wire name, sent together with `field` where the vendor's pages disagree: an unknown name is ignored
            and charged, so that one name alone may lose the last frame. Not for the providers of `elsewhere`.
    """

    field: str = "end_image"
    required: bool = False
    elsewhere: tuple[tuple[str, str], ...] = ()
    also: str = ""

    def names_at(self, provider: str) -> tuple[str, ...]:
        """Return the wire names at a provider, one or two."""
        other = dict(self.elsewhere).get(provider)
        if other is not None:
            return (other,)
        return (self.field, self.also) if self.also else (self.field,)


_INTELLIGENCE = "intelligence"
"""A value of `shot_type`, as GPTProto spells it."""
_INTELLIGENT = "intelligent"
"""The same, as the newest pages of WaveSpeed spell it."""


@attrs.frozen(kw_only=True)
class AtProvider:
    """Differences of a model at one provider.

    Attributes:
        provider: Name of the provider.
        scale: Wire name of the guidance scale; None if it is not another one.
        sound_by_default: Whether sound is made, and possibly charged, unless `sound=False` is sent.
        words: Pairs of a value of `shot_type` and the word that this provider has for it.
    """

    provider: str
    scale: str | None = None
    sound_by_default: bool = False
    words: tuple[tuple[str, str], ...] = ()


@functools.lru_cache(maxsize=16)
def _as_everywhere(provider: str) -> AtProvider:
    return AtProvider(provider=provider)


@attrs.frozen(kw_only=True)
class Requirement:
    """A value that a field needs another one to have.

    Attributes:
        field: Field of a job; the rule holds where it is given.
        other: The field that it needs.
        values: Values that the other one may have.
    """

    field: str
    other: str
    values: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Caution:
    """A combination of fields that may not work. It is not refused, because the vendor's pages disagree about it.

    Attributes:
        message: What may happen, and what to do.
        given: Fields that are given; True, where they are true or false.
        missing: Fields that are not given.
        provider: Name of the only provider that it is said of; empty for all.
    """

    message: str
    given: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    provider: str = ""


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
        price_per_5s: USD for 5 seconds of video on WaveSpeed, silent and at the default resolution; None if unknown.
        sound_factor: Factor of the price with `sound=True`; None if unknown.
        certainty: Certainty of the price.
        resolution: Resolution class of the output by default: "720p", "1080p" or "4k"; empty if unknown.
        aspect_note: Unused; kept because the digests of jobs that carry a model of their own contain it.
        usual: Seconds that generating a 5 s video usually takes, until durations are learned.
        source: Source of the row and its price.
        prompt: Whether it has a `prompt`.
        image: Whether it has an `image`, the first frame.
        image_required: Whether the image is required.
        inputs: Further inputs that `Job` has fields for, such as `resolution`, with their values.
        prompt_beside_shots: Whether the prompt is required beside `multi_prompt`, too.
        at: How it differs at a provider.
        requirements: Rules between fields.
        cautions: Combinations of fields that may not work.
        sound_certainty: Certainty of `sound_factor`.
        sound_source: Source of `sound_factor`.
        rates: Prices at other resolutions than the default.
        formula: The service's own formula of the price, which comes before the other prices; None without one.
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
    sound_factor: Decimal | None = Decimal(2)
    certainty: Certainty = Certainty.UNKNOWN
    resolution: str = "1080p"
    aspect_note: bool = attrs.field(default=False, repr=False)
    usual: float = 120.0
    source: str = ""
    # The digests of jobs that carry a model of their own do not contain what follows (`content`).
    prompt: bool = True
    image: bool = True
    image_required: bool = True
    inputs: tuple[Field, ...] = ()
    prompt_beside_shots: bool = False
    at: tuple[AtProvider, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    cautions: tuple[Caution, ...] = ()
    sound_certainty: Certainty = Certainty.INFERRED
    sound_source: str = ""
    rates: tuple[Rate, ...] = ()
    formula: Formula | None = None

    @property
    def variants(self) -> tuple[tuple[str, bool], ...]:
        """Resolutions, empty for the default, each without and, where that is a choice, with sound."""
        described = self.input("resolution")
        others = () if described is None else (str(each) for each in described.choices if each != self.resolution)
        return tuple((size, sound) for size in ("", *others) for sound in ((False, True) if self.sound else (False,)))

    def at_provider(self, provider: str) -> AtProvider:
        """Return how the model differs at a provider."""
        for each in self.at:
            if each.provider == provider:
                return each
        return _as_everywhere(provider)

    @property
    def shot_synonyms(self) -> tuple[str, ...]:
        """Words for the same value that jobs may use; none if the model has one word for each."""
        return (_INTELLIGENCE, _INTELLIGENT) if any(each.words for each in self.at) else ()

    def shot_word(self, shot_type: str, provider: str) -> str:
        """Return the word that a provider has for a `shot_type`."""
        word = _INTELLIGENCE if shot_type in self.shot_synonyms else shot_type
        return dict(self.at_provider(provider).words).get(word, word)

    def input(self, name: str) -> Field | None:
        """Return the description of an input that is no field of its own in this class; None if there is none."""
        for field in (*self.inputs, *(self.more or ())):
            if field.name == name:
                return field
        return None

    def price(
        self,
        duration: int,
        *,
        provider: str = "wavespeed",
        sound: bool = False,
        resolution: str = "",
        inputs: Mapping[str, object] | None = None,
    ) -> Price:
        """Return the price of one run by the price list: seconds, times a rate that sound and resolution determine.

        A model without a duration has one price for each resolution, with and without sound.

        Args:
            duration: Seconds of video.
            provider: Name of the provider.
            sound: Whether sound is asked for.
            resolution: Resolution; empty for the model's default.
            inputs: Further inputs that the service's own formula may name.
        """
        if provider != "wavespeed":
            return Price(None, Certainty.UNKNOWN, f"no price list of {provider} was found")
        if self.formula is not None:
            given: dict[str, object] = {"duration": duration, **(inputs or {})}
            given |= {"sound": True} if sound else {}
            given |= {"resolution": resolution} if resolution else {}
            usd = self.formula.price(given)
            return Price(usd, Certainty.UNKNOWN if usd is None else Certainty.INFERRED, self.source)
        rate = self._rate(resolution)
        if rate.usd is None:
            return rate
        usd = rate.usd * duration / _BASE_SECONDS if self.durations else rate.usd
        if not sound:
            return Price(usd, rate.certainty, rate.source)
        source = self.sound_source or rate.source
        if self.sound_factor is None:
            return Price(None, Certainty.UNKNOWN, source)
        certainty = max(rate.certainty, self.sound_certainty, key=lambda each: each.rank)
        return Price(usd * self.sound_factor, certainty, source)

    def _rate(self, resolution: str) -> Price:
        """Return the price of 5 silent seconds at a resolution, or of one run of a model without a duration."""
        for rate in self.rates:
            if rate.resolution == resolution:
                usd = None if rate.usd_per_second is None else rate.usd_per_second * _BASE_SECONDS
                return Price(usd, rate.certainty, rate.source or self.source)
        if resolution not in {"", self.resolution} or self.price_per_5s is None:
            return Price(None, Certainty.UNKNOWN, self.source if self.price_per_5s is None else "")
        return Price(self.price_per_5s, self.certainty, self.source)

    def price_of(self, kind: Kind, provider: str = "wavespeed") -> Price:
        """Return the price of one job of a kind, by the price list."""
        inputs = json.loads(kind.inputs) if kind.inputs else None
        return self.price(
            kind.duration, provider=provider, sound=bool(kind.sound), resolution=kind.resolution, inputs=inputs
        )

    def check(self, entry: ServiceModel) -> tuple[str, ...]:
        """Return the differences from the service's own description, one line each; empty if it agrees.

        Args:
            entry: The item of `await kling.models()` for this model.
        """
        return comparison.differences(self, entry)

    @classmethod
    def from_service(cls, entry: ServiceModel, *, provider: str = "wavespeed") -> Model:
        """Build the row of any model of the service from the service's own description, also of one without an image.

        Inputs that `Job` has no field for go into `Job.extra`, and are checked there.

        Args:
            entry: An item of `await kling.models()`.
            provider: Name of the provider that it came from.

        Raises:
            UnsupportedError: Its description is unusable, or has no inputs.
        """
        facts = schema.read_schema(entry.schema)
        if facts.unsupported:
            raise UnsupportedError(f"{entry.id} cannot be run: {facts.unsupported}")
        by_second = schema.is_price_per_second(entry.formula)
        # With an unknown formula the price is unknown; `kling.price` then asks the service.
        priced = entry.base_price is not None and by_second is not None and (by_second or not facts.durations)
        try:
            return cls(
                id=entry.model,
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
                prompt=facts.prompt,
                image=facts.image,
                image_required=facts.image_required,
                formula=_formula(entry, facts),
            )
        except ValueError as error:
            raise UnsupportedError(f"{entry.id[:120]!r} cannot be run: {error}") from None


def _formula(entry: ServiceModel, facts: schema.Facts) -> Formula | None:
    """Return the formula of an entry; without one, only a model without a duration costs the base price for certain."""
    if entry.base_price is None or (not entry.formula.strip() and facts.durations):
        return None
    return Formula(entry.formula, entry.base_price, facts.formula_inputs)
