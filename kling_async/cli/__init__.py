"""The command line `kling-async`; its commands are in `app.py`. Needs the extra `cli`."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the extra, print how to install it and exit with status 2."""
    missing = [name for name in ("rich", "typer") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"kling-async: {' and '.join(missing)} missing; pip install 'kling-async[cli]'\n")
        raise SystemExit(2)
    for stream in (sys.stdout, sys.stderr):
        # On a terminal with another encoding an unsupported character becomes `?` instead of an exception.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    from .app import app  # noqa: PLC0415 -- typer may be missing

    app(prog_name="kling-async")
