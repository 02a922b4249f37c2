"""Test helpers for pipelines that use this package: fixtures, a scripted transport, virtual time, contract checks.

Put `pytest_plugins = ["kling_async.testing"]` into a `conftest.py` or a test module to get these fixtures:

* `kling_emulator`: an `Emulator` (tiny videos, 100 times as fast, level gold, image URLs are not fetched);
* `kling`: an open `KlingSession` on it, in its time;
* `kling_emulator_options`, `kling_options`: dicts of arguments for both; override them to change an argument;
* `anyio_backend`: "asyncio", which a session runs on; override it as usual.

The fixtures are asynchronous and run by anyio's plugin: mark tests with `pytest.mark.anyio`. The rest works without
pytest. The checks test your own rate limiter, transport, provider or ledger against the contract that a session relies
on, and raise an `AssertionError` that names the defect.

PYTEST_DONT_REWRITE: the module may be imported before pytest registers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._clocks import LoopClock
from ._ledgers import check_ledger
from ._limiters import check_rate_limiter
from ._providers import check_provider
from ._scripted import ScriptedTransport, json_response
from ._transports import check_transport

if TYPE_CHECKING:
    from ._virtual import VirtualClock

__all__ = [
    "LoopClock",
    "ScriptedTransport",
    "VirtualClock",
    "check_ledger",
    "check_provider",
    "check_rate_limiter",
    "check_transport",
    "json_response",
]

pytest_plugins = ("kling_async.testing.plugin",)
"""Module from which pytest loads the fixtures."""


def __getattr__(name: str) -> object:
    if name != "VirtualClock":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported on first use: it is built on the emulator, whose import loads aiohttp.
    from ._virtual import VirtualClock  # noqa: PLC0415 -- see above

    return VirtualClock
