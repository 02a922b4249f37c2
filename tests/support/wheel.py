"""Check a wheel in an environment where it is installed: `python -P wheel.py WHEEL`. Prints what is wrong.

It has the package with its type marker and its data, its licence, and nothing else; the installed copy is imported.
"""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path

REQUIRED = ("kling_async/py.typed", "kling_async/gallery/parts/page.html")
IMPORTED = ("", ".gallery", ".manifest", ".providers", ".storage", ".testing")


def problems(wheel: Path) -> list[str]:
    """Return what is wrong, a line each."""
    names = zipfile.ZipFile(wheel).namelist()
    foreign = [name for name in names if not name.startswith(("kling_async/", "kling_async-"))]
    found = [f"{name}: expected only kling_async and its metadata" for name in foreign]
    found += [f"{name}: missing" for name in REQUIRED if name not in names]
    if not any(name.endswith("licenses/LICENSE") for name in names):
        found.append("licenses/LICENSE: missing")
    files = [importlib.import_module(f"kling_async{name}").__file__ or "" for name in IMPORTED]
    found += [f"{file}: expected a file in site-packages" for file in files if "site-packages" not in file]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(Path(sys.argv[1]))) or None)
