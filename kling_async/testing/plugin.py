"""Pytest fixtures, loaded by `pytest_plugins = ["kling_async.testing"]`.

PYTEST_DONT_REWRITE: the module has no assertions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kling_async import KlingSession
from kling_async.emulator import Emulator

from ._servers import EmulatorThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="session")
def anyio_backend() -> object:
    """Backend of anyio's plugin: asyncio, which a session runs on."""
    return "asyncio"


@pytest.fixture
def kling_emulator_options() -> dict[str, Any]:
    """Arguments of `Emulator` that extend or replace those of `kling_emulator` and `kling_server`."""
    return {}


def _with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"profile": "tiny", "level": "gold", "downloads": False, **given}
    if options.get("clock") is None:
        options.setdefault("speed", 100)
    return options


@pytest.fixture
async def kling_emulator(kling_emulator_options: dict[str, Any]) -> AsyncIterator[Emulator]:
    """Emulator of one test: tiny videos, 100 times as fast, level gold; image URLs are not fetched."""
    async with Emulator(**_with_defaults(kling_emulator_options)) as emulator:
        yield emulator


@pytest.fixture
def kling_server(kling_emulator_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorThread]:
    """Emulator as `kling_emulator` in a thread of its own, which sessions of the test use by default, in its time."""
    with EmulatorThread(**_with_defaults(kling_emulator_options)) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("kling_async._session.session.SystemClock", lambda: server.clock)
        yield server


@pytest.fixture
def kling_options() -> dict[str, Any]:
    """Arguments of `KlingSession` that extend or replace those of `kling`."""
    return {}


@pytest.fixture
async def kling(kling_emulator: Emulator, kling_options: dict[str, Any]) -> AsyncIterator[KlingSession]:
    """Open session on `kling_emulator`, in its time; level gold."""
    options: dict[str, Any] = {
        "api_key": kling_emulator.api_key,
        "base_url": kling_emulator.base_url,
        "clock": kling_emulator.clock,
        "level": "gold",
        **kling_options,
    }
    async with KlingSession(**options) as session:
        yield session
