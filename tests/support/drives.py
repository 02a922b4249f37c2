"""A drive without shared memory maps and hard links, as network drives are: a folder that is mounted by FUSE."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from support.patience import PATIENCE_S

SCRIPT = Path(__file__).with_name("fuse_drive.py")


def missing() -> str:
    """Return what is missing for such a drive; empty if nothing is."""
    if sys.platform != "linux" or not os.access("/dev/fuse", os.W_OK):
        return "FUSE"
    if importlib.util.find_spec("mfusepy") is None or not ctypes.util.find_library("fuse3"):
        return "mfusepy, or libfuse3"
    return "" if shutil.which("fusermount3") else "fusermount3"


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """Mount a new drive beside a folder, and yield its path."""
    behind, mount = folder / "behind", folder / "drive"
    behind.mkdir()
    mount.mkdir()
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(behind), str(mount)])
    try:
        by = time.monotonic() + PATIENCE_S
        while not os.path.ismount(mount):
            assert process.poll() is None, "the drive could not be mounted"
            if time.monotonic() > by:
                raise TimeoutError("the drive was not mounted in time")
            time.sleep(0.01)
        yield mount
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mount)], check=False, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        process.kill()
        process.wait()
