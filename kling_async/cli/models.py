"""`kling-async models`: the catalogue and the account levels."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rich.text import Text

from kling_async._core.catalogue import DEFAULT_MODEL, LEVELS, MODELS, Certainty, Level, Model

from .interrupts import Exit
from .output import console, pretty, say, table

if TYPE_CHECKING:
    from rich.console import Console

_COMMON = ("prompt", "image", "negative_prompt", "duration")


def models(*, as_json: bool) -> Exit:
    """Print every model with its prices, and every level with its limits."""
    if as_json:
        shown = {"models": [_row(model) for model in MODELS], "levels": [_level(level) for level in LEVELS.values()]}
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return Exit.WELL
    to = console()
    _tell_models(to)
    _tell_levels(to)
    return Exit.WELL


def _row(model: Model) -> dict[str, object]:
    prices = {seconds: model.price(seconds) for seconds in model.durations}
    return {
        "name": model.name,
        "id": model.id,
        "aliases": list(model.aliases),
        "providers": sorted(model.providers, reverse=True),
        "durations": list(model.durations),
        "resolution": model.resolution,
        "price_usd": {
            str(seconds): None if price.usd is None else float(price.usd) for seconds, price in prices.items()
        },
        "price_certainty": model.certainty.value,
        "fields": [
            *(name for name in _COMMON if name != "negative_prompt" or model.negative_prompt),
            *(name for name, _ in _more_fields(model)),
            *_rare_fields(model),
        ],
        "end_image_required": model.end_image is not None and model.end_image.required,
        "prompt_required": model.prompt_required,
        "source": model.source,
    }


def _level(level: Level) -> dict[str, object]:
    return {"name": level.name, "starts": level.starts, "per_seconds": level.per, "in_flight": level.in_flight}


def _more_fields(model: Model) -> list[tuple[str, str]]:
    fields = []
    if model.scale is not None:
        fields.append(("guidance_scale", ""))
    if model.end_image is not None:
        fields.append(("end_image", " (required)" if model.end_image.required else ""))
    if model.sound:
        fields.append(("sound", ""))
    return fields


def _rare_fields(model: Model) -> list[str]:
    """The fields of Kling 2.6 and 3.0, which have a line of their own below the table."""
    takes = {
        "multi_prompt": model.shots,
        "shot_type": model.shot_types,
        "element_list": model.elements,
        "voice_list": model.voices,
    }
    return [name for name, taken in takes.items() if taken]


def _durations(model: Model) -> str:
    low, high = model.durations[0], model.durations[-1]
    return f"{low}-{high} s" if len(model.durations) > 2 else f"{low}, {high} s"  # noqa: PLR2004 -- a range


def _tell_models(to: Console) -> None:
    two_lines = pretty(to)
    names = ("model",) if two_lines else ("model", "id")
    shown = table(to, *names, "at", "length", "size", ">5 s", ">10 s", "takes, besides the usual")
    # Ids are there to be copied: the last column gives way instead.
    shown.columns[0].no_wrap = True
    for model in MODELS:
        name = Text(model.name, "bold cyan")
        if model.name == DEFAULT_MODEL:
            name.append("  default", "green")
        cells = [Text.assemble(name, "\n", (model.id, "dim"))] if two_lines else [name, Text(model.id)]
        prices = [Text(str(model.price(seconds)), _STYLES[model.certainty]) for seconds in (5, 10)]
        shown.add_row(
            *cells,
            Text(("\n" if two_lines else ", ").join(sorted(model.providers, reverse=True))),
            _durations(model),
            model.resolution,
            *prices,
            ", ".join(name + note for name, note in _more_fields(model)),
        )
    to.print(shown)
    to.print(Text(f"All take {', '.join(_COMMON)}. Prices are WaveSpeed's; GPTProto prints none.", "dim"))
    without = [model.name for model in MODELS if not model.negative_prompt]
    say(to, Text(f"But {' and '.join(without)} take no negative_prompt.", "dim"))
    for fields in dict.fromkeys(tuple(_rare_fields(model)) for model in MODELS if _rare_fields(model)):
        takers = ", ".join(model.name for model in MODELS if tuple(_rare_fields(model)) == fields)
        say(to, Text(f"{', '.join(fields)}: {takers}.", "dim"))
    to.print(Text("≈ is computed from other prices: no page of the vendor prints it.", "dim"))


_STYLES = {Certainty.STATED: "", Certainty.INFERRED: "yellow", Certainty.UNKNOWN: "dim"}


def _tell_levels(to: Console) -> None:
    to.print()
    shown = table(to, "level", ">starts a minute", ">at once")
    for level in LEVELS.values():
        name = Text(level.name, "bold cyan")
        if level.name == "bronze":
            name.append("  default", "green")
        shown.add_row(name, f"{level.starts * 60 / level.per:,.0f}", f"{level.in_flight:,}")
    to.print(shown)
    say(
        to,
        Text(
            "Bronze is safe on every account. wavespeed.ai shows yours; name it with --level silver, or in code with "
            'KlingSession(level="silver").',
            "dim",
        ),
    )
