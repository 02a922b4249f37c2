"""Assertions shared by the contract checks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator


def require(condition: object, message: str) -> None:
    """Raise unless the condition is true. Unlike `assert`, this also runs under `python -O`.

    Raises:
        AssertionError: The condition is false.
    """
    if not condition:
        raise AssertionError(message)


@contextmanager
def patience(seconds: float, message: str) -> Iterator[None]:
    """Cancel a block that takes longer than `seconds`.

    Raises:
        AssertionError: The block took longer.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    # Not `cancelled_caught`: a block that suppresses the cancellation took too long as well.
    require(not scope.cancel_called, f"{message} (waited {seconds:g} s)")
