"""The logger of the package. No record contains text from outside as it came."""

from __future__ import annotations

import logging

from kling_async._core.text import one_line


class OneLine(logging.Filter):
    """Puts the arguments of records on one line, without control characters: they may come from a service or a file."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the arguments that contain such characters; drop no record."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_safe, record.args))
        return True


def _safe(argument: object) -> object:
    if argument is None or isinstance(argument, (int, float)):
        return argument
    text = str(argument)
    safe = one_line(text)
    return argument if safe == text else safe


log = logging.getLogger("kling_async")
log.addFilter(OneLine())
