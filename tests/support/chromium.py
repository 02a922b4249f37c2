"""A Chromium for tests, from npm: one that needs neither a system's packages nor root."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
from filelock import FileLock

from support.node import NODE, npm_install
from support.patience import PATIENCE_S

PACKAGE = "@sparticuz/chromium@153.0.0"
AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
"""The package has a browser for this system."""
OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
"""Its sandbox needs a helper that root owns; names of hosts lead nowhere."""

# The package unpacks into TMPDIR, and its shared libraries only for the system that it is made for.
_UNPACK = "import('@sparticuz/chromium').then((package) => package.default.executablePath())"
_MADE_FOR = {"AWS_EXECUTION_ENV": "AWS_Lambda_nodejs24.x"}
# Its own file of fonts names folders at the root of that system.
_FONTS = "<fontconfig><dir>{folder}</dir><cachedir>{folder}/cache</cachedir></fontconfig>"


@attrs.frozen
class Chromium:
    """The program, and the environment with its shared libraries and fonts."""

    program: Path
    environment: dict[str, str]


def chromium(cache: Path) -> Chromium:
    """Return the browser in this folder, installed before if it is not there: 70 MB to download, 210 MB on disk."""
    # Playwright's own Node needs a shared library (libatomic) that a bare system lacks.
    os.environ["PLAYWRIGHT_NODEJS_PATH"] = str(NODE)
    home = cache / PACKAGE.replace("/", "-")
    with FileLock(cache / "chromium.lock"):
        if not home.exists():
            _install(home)
    libraries = os.pathsep.join(filter(None, [str(home / "al2023" / "lib"), os.environ.get("LD_LIBRARY_PATH")]))
    environment = os.environ | {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_PATH": str(home / "fonts")}
    return Chromium(home / "chromium", environment)


def _install(home: Path) -> None:
    """Install into another folder first, so that `home` is either whole or not there."""
    folder = Path(tempfile.mkdtemp(dir=home.parent))
    try:
        npm_install(PACKAGE, folder)
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        environment = os.environ | _MADE_FOR | {"TMPDIR": str(unpacked)}
        subprocess.run([NODE, "--eval", _UNPACK], cwd=folder, env=environment, check=True, timeout=2 * PATIENCE_S)
        (unpacked / "fonts" / "fonts.conf").write_text(_FONTS.format(folder=home / "fonts"))
        unpacked.rename(home)
    finally:
        shutil.rmtree(folder)
