"""For the tests of pipelines that use this package: fixtures, a scripted transport, virtual time, checks.

Put `pytest_plugins = ["kling_async.testing"]` into a `conftest.py` or a test module, and these are fixtures:

* `kling_emulator`: an `Emulator` (tiny videos, 100 times as fast, level gold, no look at image URLs);
* `kling`: an open `KlingSession` on it, in its time;
* `kling_emulator_options`, `kling_options`: what is passed to both, a dict; override them to change something;
* `anyio_backend`: "asyncio", which is what a session runs on; override it as usual.

The fixtures are asynchronous and driven by anyio's plugin: mark tests with `pytest.mark.anyio`. Without pytest all but
the fixtures can be used. The checks hold a rate limiter, a transport, a provider or a ledger of your own to what a
session relies on, and raise `AssertionError` that says what is wrong.

PYTEST_DONT_REWRITE: it may be imported before pytest hears of it.
"""

from __future__ import annotations

from ._clocks import LoopClock, VirtualClock
from ._ledgers import check_ledger
from ._limiters import check_rate_limiter
from ._providers import check_provider
from ._scripted import ScriptedTransport, json_response
from ._transports import check_transport

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
"""Where pytest, and nobody else, goes on to look for the fixtures."""
