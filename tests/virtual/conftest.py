"""Tests without sockets, in virtual time: an hour of polling takes milliseconds, and every time is exact."""

from __future__ import annotations

import looptime
import pytest


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio", {"loop_factory": looptime.new_event_loop}
