"""What the checks share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator


def require(truth: object, otherwise: str) -> None:
    """Go on when it holds.

    Raises:
        AssertionError: It does not.
    """
    if not truth:
        raise AssertionError(otherwise)


@contextmanager
def patience(seconds: float, otherwise: str) -> Iterator[None]:
    """End a block that takes too long.

    Raises:
        AssertionError: It did.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    # Not `cancelled_caught`: what swallows the cancellation took too long as well.
    require(not scope.cancel_called, f"{otherwise} (waited {seconds:g} s)")
