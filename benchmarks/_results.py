"""Format of a benchmark script's JSON file.

A part is a table, a name its row, a unit its column. A ratio divides two figures of a part round by round, or stands
for a single figure; its bound is the target.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs


@attrs.frozen(kw_only=True)
class Figure:
    """A cell of a table: median, minimum and maximum over the rounds.

    `baseline` is True for a contender other than this package.
    """

    part: str
    name: str
    unit: str
    median: float
    low: float
    high: float
    baseline: bool = False
    rounds: tuple[float, ...] = ()


@attrs.frozen(kw_only=True)
class Ratio:
    """Ratio of the figure of `name` to that of `over`, with its target; without `over`, the figure itself.

    `judged` is False if the machine was too busy for a verdict.
    """

    part: str
    name: str
    over: str | None = None
    unit: str
    median: float
    low: float
    high: float
    at_least: float | None = None
    at_most: float | None = None
    judged: bool = True

    @property
    def verdict(self) -> str:
        if not self.judged:
            return "not judged, the machine was busy"
        enough = self.at_least is None or self.median >= self.at_least
        return "met" if enough and (self.at_most is None or self.median <= self.at_most) else "**missed**"


@attrs.frozen(kw_only=True)
class Found:
    """Content of a file. `notes` has a sentence per part; `machine` is a mapping or a sentence."""

    figures: list[Figure]
    date: str
    machine: Any
    versions: Mapping[str, str]
    command: str = ""
    options: Mapping[str, Any] = attrs.Factory(dict)
    notes: Mapping[str, str] = attrs.Factory(dict)
    ratios: list[Ratio] = attrs.Factory(list)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(cattrs.unstructure(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Found:
        """Read a file.

        Raises:
            ValueError: if it cannot be read or has another format.
        """
        try:
            return cattrs.structure(json.loads(path.read_text(encoding="utf-8")), cls)
        except (OSError, ValueError, cattrs.BaseValidationError) as error:
            raise ValueError(f"{path.name}: {error!r}") from error
