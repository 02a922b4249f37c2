"""Text from outside, made fit for a terminal, a log and an error: one line, without control characters."""

from __future__ import annotations

import re

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control characters, among them those that begin an escape sequence; line and paragraph separators; halves of surrogate
# pairs, which cannot be encoded; and signs that turn the direction of what follows.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def one_line(text: str) -> str:
    """Return text on one line, each unsafe character replaced by U+FFFD; most text is returned as it is."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_REPLACEMENT, text)


def safe_lines(text: str) -> str:
    """Return text with its line feeds, every other unsafe character replaced by U+FFFD."""
    return _UNSAFE_IN_LINES.sub(_REPLACEMENT, text)
