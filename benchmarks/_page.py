"""The tables of docs/benchmarks.md, and a picture."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import _chart
import cattrs

from _results import Figure, Found, Ratio

OURS = "kling_async"
PLACE = re.compile(r"(<!-- bench:begin(?: (?P<part>[^>]+))? -->\n).*?(<!-- bench:end -->)", re.DOTALL)
"""Comments around a table: of one part, or of all parts without a place of their own."""
FIRST = ("throughput", "peers")


def filled(page: str, results: Mapping[str, Found]) -> str:
    """Return the page with the tables of these results, by the names of their files."""
    elsewhere = {part for _, part, _ in PLACE.findall(page) if part}
    order = [name for name in FIRST if name in results] + [name for name in sorted(results) if name not in FIRST]
    found = [results[name] for name in order]

    def fill(place: re.Match[str]) -> str:
        text = place_of(place["part"]) if place["part"] else tables(found, elsewhere)
        return f"{place[1]}{text}\n{place[3]}"

    def place_of(part: str) -> str:
        return "\n".join(_rows([figure for one in found for figure in one.figures if figure.part == part]))

    return PLACE.sub(fill, page)


def tables(results: Sequence[Found], elsewhere: Container[str] = ()) -> str:
    """Return machine and date, the aims, and a table for every part."""
    blocks = _where(results)
    ratios = [ratio for found in results for ratio in found.ratios]
    if ratios:
        rows = [f"| {_aim(ratio)} | {_span(ratio)} | {ratio.verdict} |" for ratio in ratios]
        blocks.append("\n".join(["| aimed at | in this run | verdict |", "|---|---|---|", *rows]))
    for found in results:
        parts = dict.fromkeys(one.part for one in found.figures)
        blocks += [_part(found, part) for part in parts if part not in elsewhere]
    return "\n\n".join(blocks)


def _where(results: Sequence[Found]) -> list[str]:
    """A line for every day and machine, with the versions of all that was measured there."""
    places: dict[str, dict[str, None]] = {}
    for found in results:
        place = places.setdefault(f"Measured on {found.date}: {_machine(found.machine)}", {})
        place.update(dict.fromkeys(f"{name} {version}" for name, version in found.versions.items()))
    return [f"{place}; {', '.join(versions)}." for place, versions in places.items()]


def _machine(told: object) -> str:
    if not isinstance(told, Mapping):
        return str(told)
    names = [str(told[name]) for name in ("processor", "system") if told.get(name)]
    return ", ".join([*names, *([f"{told['cores']} cores"] if "cores" in told else [])])


def _aim(ratio: Ratio) -> str:
    aim = f"at least {ratio.at_least:g}" if ratio.at_least is not None else f"at most {ratio.at_most:g}"
    return f"{ratio.part}, {ratio.unit}: {ratio.name} {aim}" + (f" of {ratio.over}" if ratio.over is not None else "")


def _part(found: Found, part: str) -> str:
    """A section: its note, how to run it again, and its table."""
    note = found.notes.get(part, "")
    told = " ".join(filter(None, [note[:1].upper() + note[1:], f"(`{found.command}`)" if found.command else ""]))
    rows = "\n".join(_rows([one for one in found.figures if one.part == part]))
    return "\n\n".join(filter(None, [f"## {part}", told, rows]))


def _rows(figures: Sequence[Figure]) -> list[str]:
    """The table of a part, in lines."""
    units = list(dict.fromkeys(one.unit for one in figures))
    cells = {(one.name, one.unit): one for one in figures}
    ours = {one.unit: one for one in reversed(figures) if not one.baseline}
    rows = [
        f"| {_name(name, figures)} | " + " | ".join(_cell(cells.get((name, unit)), ours.get(unit)) for unit in units)
        for name in dict.fromkeys(one.name for one in figures)
    ]
    return [f"| measured | {' | '.join(units)} |", "|---" * (len(units) + 1) + "|", *(f"{row} |" for row in rows)]


def _name(name: str, figures: Sequence[Figure]) -> str:
    baseline = any(one.baseline for one in figures if one.name == name)
    return name if baseline else f"**{name}**"


def _cell(figure: Figure | None, ours: Figure | None) -> str:
    """Return median and range of a figure, and for a baseline its ratio to ours."""
    if figure is None:
        return ""
    if not (figure.baseline and ours and ours.median):
        return _span(figure)
    times = figure.median / ours.median
    return _span(figure) if math.isclose(times, 1, abs_tol=0.05) else f"{_span(figure)}, {_number(times)} times ours"


def _span(figure: Figure | Ratio) -> str:
    low, middle, high = map(_number, (figure.low, figure.median, figure.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(figure: float) -> str:
    """Three digits are more than such figures are worth."""
    if abs(figure) >= 100:  # noqa: PLR2004 -- from here on no digits behind the point
        return f"{float(f'{figure:.3g}'):,.0f}"
    return f"{figure:.2g}" if abs(figure) < 1 else f"{figure:.3g}"


def digest(results: Mapping[str, Found]) -> str:
    """Return the digest of the results that a picture shows."""
    return hashlib.sha256(repr([cattrs.unstructure(results[name]) for name in sorted(results)]).encode()).hexdigest()


def picture(path: Path, results: Mapping[str, Found]) -> None:
    """CPU per job of everybody, a panel for a part; the lines go from the lowest round to the highest."""
    plt = _chart.pyplot()
    shown = [one for name in FIRST if name in results for one in results[name].figures if "CPU per job" in one.unit]
    parts = list(dict.fromkeys(one.part for one in shown))
    panels, axes = plt.subplots(len(parts), 1, figsize=(9, 2.6 * len(parts)), layout="constrained", squeeze=False)
    for axis, part in zip(axes[:, 0], parts, strict=True):
        bars = sorted((one for one in shown if one.part == part), key=lambda one: -one.median)
        colours = ["#9aa5b1" if one.baseline else "#1f6feb" for one in bars]
        spans = [[one.median - one.low for one in bars], [one.high - one.median for one in bars]]
        axis.barh([one.name for one in bars], [one.median for one in bars], color=colours, xerr=spans, ecolor="black")
        for row, one in enumerate(bars):
            axis.annotate(_number(one.median), (one.high, row), xytext=(4, 0), textcoords="offset points", va="center")
        axis.set_title(f"{part}: {bars[0].unit}", loc="left", fontsize=11)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    _chart.save(panels, path, digest(results))
    plt.close(panels)
