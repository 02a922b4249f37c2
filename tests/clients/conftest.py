"""Emulator with short real-time predictions, since the vendor's clients use their own clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kling_async.emulator import Emulator
from support.pictures import png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bypass proxies for loopback and remove the user's settings."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    for name in ("WAVESPEED_API_KEY", "WAVESPEED_BASE_URL", "WAVESPEED_CLIENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def emu() -> AsyncIterator[Emulator]:
    async with Emulator(profile="tiny", timing=0.3, downloads=False) as emulator:
        yield emulator


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Path of a valid input picture."""
    path = tmp_path / "face.png"
    path.write_bytes(png(320, 300))
    return path
