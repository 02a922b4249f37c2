"""The system's clock: the default of sessions."""

from __future__ import annotations

import time

import anyio


class SystemClock:
    """Real time; implements `Clock`."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(anyio.sleep)
