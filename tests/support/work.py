"""How much work Python does: counted, not timed, so that it is the same on every machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def work_of(what: Callable[[], object]) -> int:
    """Instructions of Python that `what` executes in this thread, and calls into C: those have no instructions."""
    executed = called = 0

    def within(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal executed
        if event == "opcode":
            executed += 1
        return within

    def entered(frame: FrameType, _event: str, _: Any) -> Any:
        if _of_the_loop(frame):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return within

    def profiled(frame: FrameType, event: str, _: Any) -> None:
        nonlocal called
        called += event == "c_call" and not _of_the_loop(frame)

    before = sys.gettrace(), sys.getprofile()
    gc.collect()
    # What is collected in between runs finalizers, at no fixed moment.
    gc.disable()
    sys.setprofile(profiled)
    sys.settrace(entered)
    try:
        what()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        gc.enable()
    return executed + called


def _of_the_loop(frame: FrameType) -> bool:
    """Whether it turns the loop, as often as there are moments: what is done in a turn counts, not the turn."""
    code = frame.f_code
    return code.co_name == "_run_once" or any(
        name in code.co_filename for name in ("looptime", "selector", "_weakrefset")
    )


def work_per(count: int, what: Callable[[int], object]) -> float:
    """The work of one more: what stands at the beginning and at the end does not count."""
    what(count)
    few = work_of(lambda: what(count))
    many = work_of(lambda: what(3 * count))
    return (many - few) / (2 * count)
