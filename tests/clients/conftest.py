"""An emulator that is quick in real time: these clients have clocks of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kling_async.emulator import Emulator
from support.pictures import png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nothing_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy before this computer, and nothing of its owner's settings."""
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
    """A file that the service takes."""
    path = tmp_path / "face.png"
    path.write_bytes(png(320, 300))
    return path
