"""`kling-async models`: the catalogue, and the account levels."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

from rich.text import Text

from kling_async._core.catalogue import DEFAULT_MODEL, LEVELS, MODELS, Certainty, Level, Model

from .interrupts import Exit
from .output import has_cursor, make_console, new_table, print_text

if TYPE_CHECKING:
    from rich.console import Console

_COMMON_FIELDS: Final = ("prompt", "image", "negative_prompt", "duration")
_PRICE_STYLES: Final = {Certainty.STATED: "", Certainty.INFERRED: "yellow", Certainty.UNKNOWN: "dim"}
_WIDE_TABLE_COLUMNS: Final = 110
"""Terminal width from which providers and fields have columns of their own."""


def models(*, as_json: bool) -> Exit:
    """Print every model with its prices and every level with its limits."""
    if as_json:
        shown = {"models": [_model_row(model) for model in MODELS], "levels": list(map(_level_row, LEVELS.values()))}
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return Exit.WELL
    console = make_console()
    _print_models(console)
    _print_notes(console)
    _print_levels(console)
    return Exit.WELL


def _model_row(model: Model) -> dict[str, object]:
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
            *(name for name in _COMMON_FIELDS if name != "negative_prompt" or model.negative_prompt),
            *(name for name, _ in _more_fields(model)),
            *_rare_fields(model),
        ],
        "end_image_required": model.end_image is not None and model.end_image.required,
        "prompt_required": model.prompt_required,
        "source": model.source,
    }


def _level_row(level: Level) -> dict[str, object]:
    return {"name": level.name, "starts": level.starts, "per_seconds": level.per, "in_flight": level.in_flight}


def _more_fields(model: Model) -> list[tuple[str, str]]:
    """Return fields beside the common ones, each with a note."""
    fields = []
    if model.scale is not None:
        fields.append(("guidance_scale", ""))
    if model.end_image is not None:
        fields.append(("end_image", " (required)" if model.end_image.required else ""))
    if model.sound:
        fields.append(("sound", ""))
    return fields


def _rare_fields(model: Model) -> list[str]:
    """Return the fields of Kling 2.6 and 3.0, which are listed below the table."""
    fields = {
        "multi_prompt": model.shots,
        "shot_type": model.shot_types,
        "element_list": model.elements,
        "voice_list": model.voices,
    }
    return [name for name, accepted in fields.items() if accepted]


def _durations(model: Model) -> str:
    low, high = model.durations[0], model.durations[-1]
    return f"{low}-{high} s" if len(model.durations) > 2 else f"{low}, {high} s"  # noqa: PLR2004 -- a range


def _print_models(console: Console) -> None:
    """Print a table of the models. In a terminal the id is below the name, and below 110 columns the fields too."""
    terminal = has_cursor(console)
    wide = console.width >= _WIDE_TABLE_COLUMNS
    names = ("model",) if terminal else ("model", "id")
    more = ("at", "further fields") if wide else ()
    table = new_table(console, *names, "length", "size", ">5 s", ">10 s", *more)
    # Ids are copied, so they must not be broken.
    table.columns[0].no_wrap = wide
    for model in MODELS:
        providers = sorted(model.providers, reverse=True)
        fields = ", ".join(name + note for name, note in _more_fields(model))
        name = Text(model.name, "bold cyan")
        if model.name == DEFAULT_MODEL:
            name.append("  default", "not bold green")
        if not wide and len(providers) > 1:
            name.append("  gptproto", "not bold magenta")
        cells = [name, Text(model.id)]
        if terminal:
            lines = [name, Text(model.id, "dim"), *([Text(fields, "dim")] if fields and not wide else [])]
            cells = [Text("\n").join(lines)]
        prices = [Text(str(model.price(seconds)), _PRICE_STYLES[model.certainty]) for seconds in (5, 10)]
        rest = [Text(("\n" if terminal else ", ").join(providers)), Text(fields)] if wide else []
        table.add_row(*cells, _durations(model), model.resolution, *prices, *rest)
    console.print(table)
    if not wide:
        print_text(console, Text("All are at WaveSpeed, those marked gptproto also at GPTProto.", "dim"))


def _print_notes(console: Console) -> None:
    print_text(
        console, Text(f"All take {', '.join(_COMMON_FIELDS)}. Prices are WaveSpeed's; GPTProto has none.", "dim")
    )
    without = [model.name for model in MODELS if not model.negative_prompt]
    print_text(console, Text(f"But {' and '.join(without)} take no negative_prompt.", "dim"))
    for fields in dict.fromkeys(tuple(_rare_fields(model)) for model in MODELS if _rare_fields(model)):
        takers = ", ".join(model.name for model in MODELS if tuple(_rare_fields(model)) == fields)
        print_text(console, Text(f"{', '.join(fields)}: {takers}.", "dim"))
    print_text(console, Text("≈: computed from other prices; the vendor publishes none.", "dim"))


def _print_levels(console: Console) -> None:
    if not has_cursor(console):
        console.print()
    table = new_table(console, "level", ">starts a minute", ">at once")
    for level in LEVELS.values():
        name = Text(level.name, "bold cyan")
        if level.name == "bronze":
            name.append("  default", "not bold green")
        table.add_row(name, f"{level.starts * 60 / level.per:,.0f}", f"{level.in_flight:,}")
    console.print(table)
    print_text(
        console,
        Text(
            "Bronze is safe on every account. wavespeed.ai shows yours; choose it with --level silver, or in code with "
            'KlingSession(level="silver").',
            "dim",
        ),
    )
