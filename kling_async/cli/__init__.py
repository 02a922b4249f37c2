"""The command line, `kling-async`: `app.py` has its commands. It needs the extra `cli`."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    missing = [name for name in ("rich", "typer") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"kling-async: {' and '.join(missing)} missing; pip install 'kling-async[cli]'\n")
        raise SystemExit(2)
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe of another encoding shows a question mark instead of ending the run.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    from .app import app  # noqa: PLC0415 -- what it imports may be missing

    app(prog_name="kling-async")
