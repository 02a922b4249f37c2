"""Tests without sockets, in virtual time: an hour of polling takes milliseconds, and every time is exact."""

from __future__ import annotations

import pytest

from support import virtual


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio", {"loop_factory": virtual.new_event_loop}
