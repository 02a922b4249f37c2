"""Binding of objects to their event loop."""

from __future__ import annotations

import asyncio

import pytest

from kling_async import WrongLoopError
from kling_async._loops import LoopBinding


async def call(method: object) -> None:
    assert callable(method)
    method()


def test_object_of_a_closed_loop_is_to_be_opened_again() -> None:
    """`asyncio.run` for each call: the loop that the object was opened in is closed by the second."""
    binding = LoopBinding("the session")
    asyncio.run(call(binding.check))
    asyncio.run(call(binding.bind))
    with pytest.raises(WrongLoopError, match=r"is closed.*nothing was spent; make and open a session in each"):
        asyncio.run(call(binding.check))


def test_object_without_connections_moves_on_from_a_closed_loop() -> None:
    binding = LoopBinding("the rate limiter")
    for _ in range(2):
        asyncio.run(call(binding.bind_or_check))
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(call(binding.bind_or_check))
        with pytest.raises(WrongLoopError, match="another event loop"):
            second.run(call(binding.bind_or_check))
