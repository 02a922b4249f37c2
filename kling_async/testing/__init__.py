"""Test helpers for pipelines that use this package: fixtures, a scripted transport, virtual time, contract checks.

Put `pytest_plugins = ["kling_async.testing"]` into a `conftest.py` or a test module to get these fixtures:

* `kling_emulator`: an `Emulator` (tiny videos, 100 times as fast, level gold, image URLs are not fetched);
* `kling`: an open `KlingSession` on it, in its time;
* `kling_server`: an `EmulatorThread`, that emulator in a thread of its own, for tests of web handlers: sessions of any
  thread use it by default, by environment variables and in its time;
* `kling_emulator_options`, `kling_options`: dicts of arguments of these; override them to change an argument;
* `anyio_backend`: "asyncio", which a session runs on; override it as usual.

`kling` and `kling_emulator` are asynchronous and run by anyio's plugin: mark tests with `pytest.mark.anyio`. `started`
runs the lifespan of an application for `httpx.ASGITransport`, and `served` serves it with uvicorn. The rest works
without pytest. The checks test your own rate limiter, transport, provider or ledger against the contract that a session
relies on, and raise an `AssertionError` that names the defect.

PYTEST_DONT_REWRITE: the module may be imported before pytest registers it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._clocks import LoopClock
from ._ledgers import check_ledger
from ._limiters import check_rate_limiter
from ._providers import check_provider
from ._scripted import ScriptedTransport, json_response
from ._transports import check_transport

if TYPE_CHECKING:
    from ._servers import EmulatorThread, served, started
    from ._virtual import VirtualClock

__all__ = [
    "EmulatorThread",
    "LoopClock",
    "ScriptedTransport",
    "VirtualClock",
    "check_ledger",
    "check_provider",
    "check_rate_limiter",
    "check_transport",
    "json_response",
    "served",
    "started",
]

pytest_plugins = ("kling_async.testing.plugin",)
"""Module from which pytest loads the fixtures."""


_MODULE_OF = {
    "EmulatorThread": "._servers",
    "VirtualClock": "._virtual",
    "served": "._servers",
    "started": "._servers",
}
"""Modules imported on first use: they are built on the emulator, whose import loads aiohttp."""


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name], __name__), name)
