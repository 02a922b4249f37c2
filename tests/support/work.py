"""Work that Python does: counted, not timed, so that it is the same on every machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def work_of(what: Callable[[], object]) -> int:
    """Count the bytecode instructions and C calls that `what` executes in this thread."""
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
    # Garbage collection would run finalizers at arbitrary moments.
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
    """Return whether the frame is the event loop's own; its iterations depend on timing and are not counted."""
    code = frame.f_code
    return code.co_name == "_run_once" or any(
        name in code.co_filename for name in ("looptime", "selector", "_weakrefset")
    )


def work_per(count: int, what: Callable[[int], object]) -> float:
    """Return the work of one more item, without that of start and end."""
    what(count)
    few = work_of(lambda: what(count))
    many = work_of(lambda: what(3 * count))
    return (many - few) / (2 * count)
