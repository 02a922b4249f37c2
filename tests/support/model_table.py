"""The table of all models of the documentation, made from the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kling_async import Model

HEAD = (
    "| name and id | seconds | fields | USD per second | certainty and source |",
    "|---|---|---|---|---|",
)


def rows() -> list[str]:
    """Return the lines of the table, without its head."""
    return [_row(model) for model in MODELS]


def _row(model: Model) -> str:
    at = ", also at GPTProto" if "gptproto" in model.providers else ""
    low, high = model.durations[0], model.durations[-1]
    seconds = f"{low} to {high}" if len(model.durations) > 2 else f"{low}, {high}"
    prices = list(_prices(model))
    cells = [
        f"`{model.name}`{at}<br>`{model.id}`",
        seconds,
        ", ".join(_fields(model)),
        "<br>".join(price for price, _ in prices),
        "<br>".join(dict.fromkeys(about for _, about in prices)),
    ]
    return f"| {' | '.join(cells)} |"


def _fields(model: Model) -> Iterator[str]:
    required = {
        "prompt": model.prompt_required,
        "image": model.image_required,
        "end_image": model.end_image is not None and model.end_image.required,
    }
    has = {
        "prompt": model.prompt,
        "image": model.image,
        "end_image": model.end_image is not None,
        "negative_prompt": model.negative_prompt,
        "guidance_scale": model.scale is not None,
        "sound": model.sound,
        "multi_prompt": model.shots > 0,
        "shot_type": bool(model.shot_types),
        "element_list": model.elements > 0,
        "voice_list": model.voices,
    }
    for name, there in has.items():
        if there:
            yield f"`{name}`{'*' if required.get(name) else ''}"
    for field in model.inputs:
        yield f"`{field.name}`{'*' if field.required else ''}"


def _prices(model: Model) -> Iterator[tuple[str, str]]:
    """Yield the price of a second, with certainty and source, at every resolution, without and with sound."""
    described = model.input("resolution")
    choices = [] if described is None else [str(each) for each in described.choices if each != model.resolution]
    for resolution in ("", *choices):
        for sound in (False, True) if model.sound else (False,):
            price = model.price(1, resolution=resolution, sound=sound)
            usd = "unknown" if price.usd is None else f"{price.usd.normalize():f}"
            label = f"{resolution or model.resolution}{', sound' if sound else ''}"
            yield f"{usd} ({label})", f"{price.certainty.value}: {price.source}"
