"""The whole SDK with the extra `speed`."""

from __future__ import annotations

import orjson  # noqa: F401 -- before the other looks for it

from contenders.kling import run

__all__ = ["run"]
