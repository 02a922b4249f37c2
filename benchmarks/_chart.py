"""Charts as SVG that follow the system into a dark theme, as the pictures of docs/scripts/svg.py do."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import Any

STYLE = """
  :root { --ink: #1f2328; --ground: #ffffff; }
  @media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --ground: #161b22; } }
  text, use { fill: var(--ink); }
"""


def pyplot() -> ModuleType:
    """Return matplotlib's pyplot, set up to write the same bytes for the same data."""
    import matplotlib as mpl  # noqa: PLC0415 -- only charts need it

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kling_async", "font.family": "sans-serif"})
    import matplotlib.pyplot as plt  # noqa: PLC0415 -- see above

    return plt


def save(figure: Any, path: Path, description: str | None = None) -> None:
    """Write a figure as SVG. Its black and its white are those of the theme; other colours are to be seen on both."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Description": description})
    path.write_text(themed(drawn.getvalue()), encoding="utf-8")


def themed(svg: str) -> str:
    """Return the picture with variables in place of black and white."""
    coloured = svg.replace("#000000", "var(--ink)").replace("#ffffff", "var(--ground)")
    return coloured.replace("<defs>", f"<style>{STYLE}</style>\n <defs>", 1)
