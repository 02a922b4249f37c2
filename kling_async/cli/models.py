"""`kling-async models`: the catalogue, and the account levels."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

import anyio
import attrs
from rich.text import Text

from kling_async._core.catalogue import DEFAULT_MODEL, LEVELS, MODELS, Level, Model, find_model
from kling_async._core.prices import Certainty, Price
from kling_async._core.text import one_line
from kling_async._session.session import KlingSession

from .exits import Exit
from .output import has_cursor, make_console, new_table, plural, print_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from kling_async._core.account import ServiceModel

_COMMON_FIELDS: Final = ("prompt", "image", "negative_prompt", "duration")
_PRICE_STYLES: Final = {
    Certainty.STATED: "",
    Certainty.REPORTED: "yellow",
    Certainty.INFERRED: "yellow",
    Certainty.UNKNOWN: "dim",
}
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


def check(*, as_json: bool) -> Exit:
    """Compare the catalogue with the service's own list of models, and print the differences, one line each.

    Raises:
        ApiError: The service refused.
        TransportError: The service could not be reached.
    """
    entries = anyio.run(_entries)
    found = _differences(entries)
    if as_json:
        sys.stdout.write(json.dumps({name: list(lines) for name, lines in found.items()}, indent=2) + "\n")
        return Exit.SOME_FAILED if found else Exit.WELL
    console = make_console()
    for name, lines in found.items():
        for line in lines:
            console.print(Text.assemble((one_line(name), "bold cyan"), f"  {one_line(line)}"), soft_wrap=True)
    shared = sum(model.id in entries for model in MODELS)
    of = f"{shared} of {plural(len(MODELS), 'model')} of the catalogue are at the service"
    told = plural(sum(map(len, found.values())), "difference") if found else "no differences"
    print_text(console, Text(f"{of}: {told}.", "dim"))
    return Exit.SOME_FAILED if found else Exit.WELL


async def _entries() -> dict[str, ServiceModel]:
    async with KlingSession() as kling:
        return {entry.model: entry for entry in await kling.models()}


def _differences(entries: Mapping[str, ServiceModel]) -> dict[str, tuple[str, ...]]:
    """Return the differences by the name of the model, only for models that have some."""
    found = {
        model.name: model.check(entries[model.id]) if model.id in entries else ("the service does not have it",)
        for model in MODELS
    }
    for path, entry in entries.items():
        if find_model(path) is None and path.startswith("kwaivgi/") and entry.type == "image-to-video":
            found[path] = ("the catalogue does not have it: run it with Model.from_service",)
    return {name: lines for name, lines in found.items() if lines}


@attrs.frozen
class _Variant:
    """A choice between runs of a model, besides their length.

    Attributes:
        resolution: Resolution as jobs give it; empty for the default.
        sound: Whether sound is asked for.
        label: For people.
    """

    resolution: str
    sound: bool
    label: str


def _variants(model: Model) -> list[_Variant]:
    """Return the resolutions of a model, the default first, each without and with sound where that is a choice."""
    return [
        _Variant(
            resolution,
            sound,
            (resolution or model.resolution) if not sound else f"{resolution} sound" if resolution else "sound",
        )
        for resolution, sound in model.variants
    ]


def _price(model: Model, seconds: int, variant: _Variant) -> Price:
    return model.price(seconds, sound=variant.sound, resolution=variant.resolution)


def _model_row(model: Model) -> dict[str, object]:
    default, *_ = variants = _variants(model)
    prices = {seconds: _price(model, seconds, default) for seconds in model.durations}
    per_second = [(variant, _price(model, 1, variant)) for variant in variants]
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
        "usd_per_second": [
            {
                "resolution": variant.resolution or model.resolution,
                "sound": variant.sound if model.sound else None,
                "usd": None if price.usd is None else float(price.usd),
                "certainty": price.certainty.value,
                "source": price.source,
            }
            for variant, price in per_second
        ],
        "fields": [*_common_fields(model), *(name for name, _ in _more_fields(model)), *_rare_fields(model)],
        "end_image_required": model.end_image is not None and model.end_image.required,
        "prompt_required": model.prompt_required,
        "source": model.source,
    }


def _common_fields(model: Model) -> list[str]:
    missing = {name for name in ("image", "negative_prompt") if not getattr(model, name)}
    return [name for name in _COMMON_FIELDS if name not in missing]


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
    return [*fields, *((field.name, " (required)" if field.required else "") for field in model.inputs)]


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
    table = new_table(console, *names, "length", "video", ">5 s", ">10 s", *more)
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
        rest = [Text(("\n" if terminal else ", ").join(providers)), Text(fields)] if wide else []
        variants = _variants(model)
        lines = [
            (Text(variant.label), *(_styled(_price(model, seconds, variant)) for seconds in (5, 10)))
            for variant in variants
        ]
        if not terminal:
            for line in lines:
                table.add_row(name, Text(model.id), _durations(model), *line, *rest)
            continue
        about = [name, Text(model.id, "dim"), *([Text(fields, "dim")] if fields and not wide else [])]
        columns = [Text("\n").join(column) for column in zip(*lines, strict=True)]
        table.add_row(Text("\n").join(about), _durations(model), *columns, *rest)
    console.print(table)
    if not wide:
        print_text(console, Text("All are at WaveSpeed, those marked gptproto also at GPTProto.", "dim"))


def _styled(price: Price) -> Text:
    return Text(str(price), _PRICE_STYLES[price.certainty])


def _print_notes(console: Console) -> None:
    print_text(
        console,
        Text(
            f"All take {', '.join(_COMMON_FIELDS)}. Prices are WaveSpeed's; those of GPTProto are in its "
            "public list, which estimate --ask reads.",
            "dim",
        ),
    )
    for missing in ("image", "negative_prompt"):
        without = [model.name for model in MODELS if not getattr(model, missing)]
        print_text(console, Text(f"But no {missing}: {', '.join(without)}.", "dim"))
    for fields in dict.fromkeys(tuple(_rare_fields(model)) for model in MODELS if _rare_fields(model)):
        takers = ", ".join(model.name for model in MODELS if tuple(_rare_fields(model)) == fields)
        print_text(console, Text(f"{', '.join(fields)}: {takers}.", "dim"))
    print_text(console, Text("≈: on no page of the vendor: read by third parties, or computed from others.", "dim"))


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
