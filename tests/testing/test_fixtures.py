"""The fixtures, in this module and in a separate pytest process without this repository's configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kling_async import KlingSession
from kling_async.emulator import Emulator
from kling_async.testing.plugin import kling, kling_emulator, kling_emulator_options, kling_options
from support.pytests import run_pytest

__all__ = ["kling", "kling_emulator", "kling_emulator_options", "kling_options"]

pytestmark = pytest.mark.anyio

IMAGE = "https://pictures.example/lake.png"


async def test_kling_is_open_on_emulator_in_its_time(
    kling: KlingSession,
    kling_emulator: Emulator,
) -> None:
    prediction = await kling.generate(prompt="Waves", image=IMAGE)
    assert prediction.output
    assert kling.level.name == "gold"
    assert kling.provider.base_url == kling_emulator.base_url
    assert [charge.prediction_id for charge in kling_emulator.charges()] == [prediction.id]


class TestOverridden:
    @pytest.fixture
    def kling_emulator_options(self) -> dict[str, Any]:
        return {"balance": 1, "speed": 500}

    @pytest.fixture
    def kling_options(self) -> dict[str, Any]:
        return {"level": "silver", "max_in_flight": 7}

    async def test_options_are_applied(
        self,
        kling: KlingSession,
        kling_emulator: Emulator,
    ) -> None:
        assert await kling.balance() == 1
        assert kling.level.name == "silver"
        assert kling.max_in_flight == 7
        assert kling_emulator.balance() == 1


@pytest.mark.parametrize("before", ["", "import kling_async.testing\nfrom kling_async.testing import plugin\n"])
def test_plugin_works_by_its_name(tmp_path: Path, before: str) -> None:
    (tmp_path / "conftest.py").write_text(before + 'pytest_plugins = ["kling_async.testing"]\n')
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n\n@pytest.mark.anyio\n"
        "async def test_it(kling, kling_emulator):\n"
        f"    await kling.generate(prompt='Waves', image={IMAGE!r})\n"
        "    assert len(kling_emulator.charges()) == 1\n"
    )
    ran = run_pytest(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_fixtures_are_absent_without_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(kling_emulator_options):\n    pass\n")
    ran = run_pytest(tmp_path)
    assert "fixture 'kling_emulator_options' not found" in ran.stdout


def test_import_loads_neither_pytest_nor_emulator_nor_aiohttp() -> None:
    script = "import sys, kling_async.testing; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "kling_async.testing._transports" in loaded
    assert not {"pytest", "_pytest", "aiohttp", "kling_async.emulator"} & loaded
