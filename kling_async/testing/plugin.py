"""The fixtures; pytest loads them by `pytest_plugins = ["kling_async.testing"]`.

PYTEST_DONT_REWRITE: there is no assertion in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kling_async import KlingSession
from kling_async.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(scope="session")
def anyio_backend() -> object:
    """What anyio's plugin runs tests on: the one that a session runs on."""
    return "asyncio"


@pytest.fixture
def kling_emulator_options() -> dict[str, Any]:
    """Arguments of `Emulator`, besides or instead of those of `kling_emulator`."""
    return {}


@pytest.fixture
async def kling_emulator(kling_emulator_options: dict[str, Any]) -> AsyncIterator[Emulator]:
    """An emulator for this test alone: tiny videos, 100 times as fast, level gold; it looks at no image URLs."""
    options: dict[str, Any] = {"profile": "tiny", "level": "gold", "downloads": False, **kling_emulator_options}
    if options.get("clock") is None:
        options.setdefault("speed", 100)
    async with Emulator(**options) as emulator:
        yield emulator


@pytest.fixture
def kling_options() -> dict[str, Any]:
    """Arguments of `KlingSession`, besides or instead of those of `kling`."""
    return {}


@pytest.fixture
async def kling(kling_emulator: Emulator, kling_options: dict[str, Any]) -> AsyncIterator[KlingSession]:
    """An open session on `kling_emulator`, in its time; level gold."""
    options: dict[str, Any] = {
        "api_key": kling_emulator.api_key,
        "base_url": kling_emulator.base_url,
        "clock": kling_emulator.clock,
        "level": "gold",
        **kling_options,
    }
    async with KlingSession(**options) as session:
        yield session
