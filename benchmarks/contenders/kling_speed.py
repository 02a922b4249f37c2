"""kling_async with the extra `speed`."""

from __future__ import annotations

import orjson  # noqa: F401 -- before kling.py hides it

from contenders.kling import run

__all__ = ["run"]
