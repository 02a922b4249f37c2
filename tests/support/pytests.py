"""Runs of pytest in a separate process, without this package's configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kling_async
from support.patience import PATIENCE_S


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in `folder`, warnings as errors, against the package that is tested here."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    environment = os.environ | {"PYTHONPATH": str(Path(kling_async.__file__).parents[1])}
    # looptime's plugin is for pytest-asyncio, not for anyio.
    command = [sys.executable, "-m", "pytest", "-p", "no:looptime_plugin", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
