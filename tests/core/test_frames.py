"""Exceptions without frames still say what they said, and remain linked for anyio."""

from __future__ import annotations

import asyncio

import pytest

from kling_async._core.frames import without_frames


def raised(error: BaseException, during: BaseException | None = None) -> BaseException:
    """Return an error after it was raised, in the frames of this function, while another one was handled."""
    try:
        if during is None:
            raise error
        try:
            raise during
        except BaseException:  # noqa: BLE001 -- any
            raise error  # noqa: B904 -- the context is what matters
    except BaseException as caught:  # noqa: BLE001 -- any
        return caught


@pytest.mark.promise(8)
def test_frames_and_other_exceptions_are_removed() -> None:
    error = raised(asyncio.CancelledError("by its scope"), during=ValueError("with headers in its repr"))
    assert without_frames(error) is error
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert error.args == ("by its scope",)


def test_cancellations_remain_linked() -> None:
    first = raised(asyncio.CancelledError("first"), during=ValueError("with headers in its repr"))
    error = without_frames(raised(asyncio.CancelledError("second"), during=first))
    assert error.__context__ is first
    assert (first.__traceback__, first.__context__) == (None, None)
