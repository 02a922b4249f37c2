"""Draws trees and layers as SVG. Each picture has its own ground, and follows the system into a dark theme."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WIDTH = 900
STYLE = """
  .ground { fill: #ffffff; stroke: #d0d7de; }
  .line { fill: none; stroke: #b6bec8; stroke-width: 1.2; }
  .box { fill: #eef2ff; stroke: #6673c9; }
  .private { fill: #f6f8fa; stroke: #8c959f; }
  .other { fill: #9aa5b1; }
  .ours { fill: #4556c8; }
  text { font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; }
  .said { font-size: 12.5px; fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #161b22; stroke: #30363d; }
    .line { stroke: #525c68; }
    .box { fill: #232b4d; stroke: #8490ea; }
    .private { fill: #21262d; stroke: #6e7681; }
    .other { fill: #6e7681; }
    .ours { fill: #8490ea; }
    text { fill: #e6edf3; }
    .said { fill: #9da7b3; }
  }
"""
ROW = 23
CHARACTER = 7.9
"""Width of a character of a name, in pixels."""


def _svg(height: float, body: list[str], title: str) -> str:
    inner = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>\n'
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>\n{inner}\n</svg>\n'
    )


def tree_picture(root: tuple[str, str, list[Any]]) -> str:
    """Return a tree of names with remarks, one below the other.

    Args:
        root: A name, its remark, and the nodes below it.
    """
    body: list[str] = []
    row = 0

    def draw(node: tuple[str, str, list[Any]], depth: int) -> float:
        nonlocal row
        name, said, below = node
        y = 28 + row * ROW
        row += 1
        x = 20 + depth * 22
        body.append(f'<text class="name" x="{x}" y="{y + 4}">{escape(name)}</text>')
        if said:
            # A name that reaches into the column of remarks moves its own to the right.
            at = max(300, x + CHARACTER * len(name) + 14)
            body.append(f'<text class="said" x="{at:g}" y="{y + 4}">{escape(said)}</text>')
        for one in below:
            end = draw(one, depth + 1)
            body.append(f'<path class="line" d="M{x + 6} {y + 10} V{end:g} H{x + 18}"/>')
        return y

    draw(root, 0)
    return _svg(40 + row * ROW, body, "The tree of errors")


def bars_picture(title: str, bars: Sequence[tuple[str, float, bool]], said: str) -> str:
    """Return bars, the smallest first.

    Args:
        title: What they measure, with the unit.
        bars: Name, length, and whether it is this package's.
        said: Where and when they were measured.
    """
    body = [f'<text class="name" x="20" y="30">{escape(title)}</text>']
    most = max(length for _, length, _ in bars)
    for row, (name, length, ours) in enumerate(sorted(bars, key=lambda bar: bar[1])):
        y = 50 + row * 26
        wide = max(2.0, (WIDTH - 330) * length / most)
        weight = ' font-weight="700"' if ours else ""
        body += [
            f'<text class="said" x="220" y="{y + 13}" text-anchor="end"{weight}>{escape(name)}</text>',
            f'<rect class="{"ours" if ours else "other"}" x="230" y="{y}" width="{wide:.1f}" height="17" rx="3"/>',
            f'<text class="said" x="{238 + wide:.1f}" y="{y + 13}"{weight}>{length:.3g}</text>',
        ]
    end = 50 + len(bars) * 26
    body.append(f'<text class="said" x="20" y="{end + 18}">{escape(said)}</text>')
    return _svg(end + 34, body, title)


def _levels(imports: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the height of every room above those that import nothing."""
    found: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((level(one) for one in imports[name]), default=-1)
        return found[name]

    for name in imports:
        level(name)
    return found


def _direct(imports: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield the arrows that no path over another room stands for."""
    reach: dict[str, set[str]] = {}

    def below(name: str) -> set[str]:
        if name not in reach:
            reach[name] = set().union(*({one} | below(one) for one in imports[name])) if imports[name] else set()
        return reach[name]

    for name, targets in imports.items():
        for target in sorted(targets):
            if not any(target in below(other) for other in targets - {target}):
                yield name, target


def _across(levels: Mapping[str, int], arrows: list[tuple[str, str]]) -> dict[str, float]:
    """Return where each room stands in its row: near those that it has arrows with, so that few arrows cross."""
    rows: dict[int, list[str]] = {}
    for name in sorted(levels):
        rows.setdefault(levels[name], []).append(name)
    found: dict[str, float] = {}

    def spread(names: list[str]) -> None:
        for index, name in enumerate(names):
            found[name] = WIDTH * (index + 1) / (len(names) + 1) + (26 if levels[name] % 2 else -26)

    def middle(name: str) -> float:
        near = [found[other] for pair in arrows if name in pair for other in pair if other != name]
        return sum(near) / len(near) if near else found[name]

    for names in rows.values():
        spread(names)
    for sweep in range(8):
        for level in sorted(rows, reverse=sweep % 2 == 0):
            rows[level].sort(key=middle)
            spread(rows[level])
    return found


def rooms_picture(imports: Mapping[str, set[str]], docs: Mapping[str, str]) -> str:
    """Return the rooms in rows, importing downwards only; an arrow that follows from others is left out.

    Args:
        imports: The rooms that each room imports.
        docs: A sentence about each.
    """
    levels = _levels(imports)
    arrows = list(_direct(imports))
    gap, high = 64, 28
    across = _across(levels, arrows)
    place = {name: (x, 24 + (max(levels.values()) - levels[name]) * gap) for name, x in across.items()}
    boxes = []
    for name, (x, y) in place.items():
        wide = CHARACTER * len(name) + 22
        kind = "private" if name.startswith("_") else "box"
        boxes.append(
            f'<g><title>{escape(docs[name])}</title><rect class="{kind}" x="{x - wide / 2:.1f}" y="{y}" '
            f'width="{wide:.1f}" height="{high}" rx="6"/>'
            f'<text class="name" x="{x:.1f}" y="{y + 18}" text-anchor="middle">{escape(name)}</text></g>'
        )
    lines = []
    for name, target in arrows:
        (x, y), (to_x, to_y) = place[name], place[target]
        start, end = y + high, to_y
        bend = (end - start) / 2
        lines.append(
            f'<path class="line" d="M{x:.1f} {start:g} C{x:.1f} {start + bend:g} {to_x:.1f} {end - bend:g} '
            f'{to_x:.1f} {end:g}"/>'
        )
    return _svg(40 + (1 + max(levels.values())) * gap, lines + boxes, "The rooms of the package")
