"""Differences between a row of the catalogue and the service's own description of the model (docs: list-models)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from . import schema
from .formula import Formula
from .prices import Kind, dollars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .account import ServiceModel
    from .model import Model
    from .schema import Facts, Field

_PROVIDER = "wavespeed"
"""The provider that describes its models."""


def differences(row: Model, entry: ServiceModel) -> tuple[str, ...]:
    """Return what differs, one line each; empty if the row and the service agree.

    Args:
        row: The row.
        entry: The service's description.
    """
    facts = schema.read_schema(entry.schema)
    if facts.unsupported:
        return (f"inputs: {facts.unsupported}",)
    return (*_inputs(row, facts), *_values(row, facts), *_prices(row, entry, facts))


def _inputs(row: Model, facts: Facts) -> Iterator[str]:
    """Yield inputs that one of the two does not have, or does not require."""
    required, optional = _names(row)
    theirs = {each.name for each in facts.formula_inputs}
    two = row.end_image is not None and bool(row.end_image.also)
    last_frame = set(row.end_image.names_at(_PROVIDER)) if row.end_image is not None else set[str]()
    # Of two names that are sent because the pages disagree, one is enough.
    settled = last_frame if two and last_frame & theirs else set[str]()
    yield from (f"{name}: the service does not have it" for name in sorted((required | optional) - theirs - settled))
    for name in sorted(theirs - required - optional):
        yield f"{name}: the catalogue does not have it" + (", and it is required" if name in facts.all_required else "")
    for name in sorted((required | optional) & theirs):
        if (name in facts.all_required) != (name in required):
            by = (
                "service, and not by the catalogue"
                if name in facts.all_required
                else "catalogue, and not by the service"
            )
            yield f"{name}: required by the {by}"


def _names(row: Model) -> tuple[set[str], set[str]]:
    """Return the wire names of the inputs that a row requires, and of the others."""
    has = {
        "prompt": row.prompt,
        "image": row.image,
        "negative_prompt": row.negative_prompt,
        "duration": bool(row.durations),
        "sound": row.sound,
        "multi_prompt": row.shots > 0,
        "shot_type": bool(row.shot_types),
        "element_list": row.elements > 0,
        "voice_list": row.voices,
        row.scale or "": row.scale is not None,
    }
    names = {name for name, there in has.items() if there} | {field.name for field in _further(row)}
    required = {field.name for field in _further(row) if field.required} | set(row.required)
    # Where shots are another way to say it, no schema can require the prompt.
    if row.prompt and row.prompt_required and (not row.shots or row.prompt_beside_shots):
        required.add("prompt")
    if row.image and row.image_required:
        required.add("image")
    if row.end_image is not None:
        names.update(row.end_image.names_at(_PROVIDER))
        required.update(row.end_image.names_at(_PROVIDER) if row.end_image.required else ())
    return required, names - required


def _further(row: Model) -> tuple[Field, ...]:
    return (*row.inputs, *(row.more or ()))


def _values(row: Model, facts: Facts) -> Iterator[str]:
    """Yield inputs that both have, with other values."""
    if row.durations and facts.durations and row.durations != facts.durations:
        ours, theirs = schema.numbers(row.durations), schema.numbers(facts.durations)
        yield f"duration: {ours} s in the catalogue, {theirs} s at the service"
    if row.durations and facts.durations and row.default_duration != facts.default_duration:
        default = f"{row.default_duration} s in the catalogue, {facts.default_duration} s at the service"
        yield f"duration: by default {default}"
    words = tuple(row.shot_word(word, _PROVIDER) for word in row.shot_types)
    if facts.shot_types and set(words) != set(facts.shot_types):
        yield f"shot_type: {_listed(words)} in the catalogue, {_listed(facts.shot_types)} at the service"
    if row.scale is not None and row.scale == facts.scale and row.scale_range != facts.scale_range:
        spans = ["{:g} to {:g}".format(*each) for each in (row.scale_range, facts.scale_range)]
        yield f"{row.scale}: {spans[0]} in the catalogue, {spans[1]} at the service"
    if facts.max_text is not None and row.max_text != facts.max_text:
        yield f"prompt: {row.max_text} characters in the catalogue, {facts.max_text} at the service"
    yield from _item_counts(row, facts)
    described = {field.name: field.choices for field in facts.more}
    for field in _further(row):
        choices = described.get(field.name, ())
        if choices and set(choices) != set(field.choices):
            yield f"{field.name}: {_listed(field.choices)} in the catalogue, {_listed(choices)} at the service"


def _item_counts(row: Model, facts: Facts) -> Iterator[str]:
    """Yield lists of which the two take other numbers of items; a schema that states none differs from none."""
    ours = {"multi_prompt": row.shots, "element_list": row.elements}
    ours |= {field.name: field.max_length for field in _further(row) if field.type == "array" and field.max_length}
    units = {"multi_prompt": "shots", "element_list": "elements"}
    for name, most in ours.items():
        theirs = facts.most_items.get(name)
        if most and theirs is not None and theirs != most:
            unit = units.get(name, "items")
            yield f"{name}: at most {most} {unit} in the catalogue, {theirs} at the service"


def _prices(row: Model, entry: ServiceModel, facts: Facts) -> Iterator[str]:
    """Yield the first length at which the prices differ, for each resolution, without and with sound.

    Prices that the catalogue does not know differ from none.
    """
    if entry.base_price is None:
        return
    formula = Formula(entry.formula, entry.base_price, facts.formula_inputs)
    for size, sound in row.variants:
        kinds = (Kind(row.id, seconds, sound, size) for seconds in row.durations or (0,))
        yield from itertools.islice(filter(None, (_price_difference(row, kind, formula) for kind in kinds)), 1)


def _price_difference(row: Model, kind: Kind, formula: Formula) -> str:
    given = {"duration": kind.duration, "sound": kind.sound or None, "resolution": kind.resolution or None}
    ours, theirs = row.price_of(kind).usd, formula.price(given)
    if ours is None or ours == theirs:
        return ""
    of = ", ".join(filter(None, (f"{kind.duration} s", kind.resolution, "with sound" if kind.sound else "")))
    there = f"an unread formula, {formula.text[:80]!r}," if theirs is None else dollars(theirs)
    return f"price: {of}: {dollars(ours)} in the catalogue, {there} at the service"


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or "any"
