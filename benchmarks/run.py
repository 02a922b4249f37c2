"""Run the whole suite, keep its results in benchmarks/results/, and write them into docs/benchmarks.md.

    python benchmarks/run.py [--only [NAME ...]] [--quick]
    python benchmarks/run.py --check

A script is bench_NAME.py. `--only` runs some anew, or none, and leaves the results of the others. `--quick` shows
within two minutes that everything works; its figures are kept nowhere. `--check` runs nothing: it fails when the page
or its picture differs from the results. A script that fails, or whose JSON cannot be read, is named, and the others go
on.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import _page
from _results import Found

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
PICTURES = HERE.parent / "docs" / "assets" / "benchmarks"
PICTURE = PICTURES / "cpu.svg"
PATIENCE = 2400.0
"""Seconds that a script may take."""
OPTIONS: dict[str, list[str]] = {
    "fastapi": ["--rounds", "3"],
    "limits": ["--jobs", "2000", "--speed", "120"],
    "watching": ["--plot", "{folder}/watching.svg"],
}
"""Options of scripts in the suite, besides `--json`."""


def names() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def results(folder: Path) -> dict[str, Found]:
    """Those that can be read, by the names of their scripts."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = Found.read(path)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def run(name: str, folder: Path, *, quick: bool) -> None:
    """Run this one, its files into the folder. Whether that went well is seen by what it left."""
    path = folder / f"{name}.json"
    options = ["--quick"] if quick else [option.format(folder=folder) for option in OPTIONS.get(name, [])]
    print(f"== {name}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, str(HERE / f"bench_{name}.py"), "--json", str(path), *options])
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        # It has processes of its own to end.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        path.unlink(missing_ok=True)
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)


def check() -> int:
    """Return 0 when the page and the picture are of the results."""
    found = results(RESULTS)
    says = PAGE.read_text(encoding="utf-8")
    should = _page.filled(says, found)
    sys.stdout.writelines(difflib.unified_diff(says.splitlines(keepends=True), should.splitlines(keepends=True)))
    drawn = PICTURE.exists() and _page.digest(found) in PICTURE.read_text(encoding="utf-8")
    if not drawn:
        print(f"{PICTURE.name} is not of these results")
    return int(says != should or not drawn)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=names(), default=None, metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        return check()
    wanted = names() if options.only is None else options.only
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in wanted:
            run(name, folder, quick=options.quick)
        failed = set(wanted) - set(results(folder))
        if not options.quick:
            keep(wanted, folder)
    for name in sorted(failed):
        print(f"bench_{name}.py gave nothing that can be shown", file=sys.stderr)
    return int(bool(failed))


def keep(wanted: Iterable[str], folder: Path) -> None:
    """Put the results of these scripts, or their absence, into the folder of results, the pictures and the page."""
    for name in wanted:
        (RESULTS / f"{name}.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        shutil.copy(path, PICTURES if path.suffix == ".svg" else RESULTS)
    found = results(RESULTS)
    PAGE.write_text(_page.filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    _page.picture(PICTURE, found)


if __name__ == "__main__":
    sys.exit(main())
