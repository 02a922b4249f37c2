"""The clock of a session that is given none."""

from __future__ import annotations

import time

import anyio


class SystemClock:
    """Real time."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(anyio.sleep)
