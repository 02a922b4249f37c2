"""Keys of jobs as callers give them: one rule for every way into a ledger, and for jobs without one."""

from __future__ import annotations

import operator
import re
from typing import TypeAlias

from kling_async.errors import ConfigurationError, InvalidJobError, Problem

Key: TypeAlias = str | int
"""A key as callers may pass it; a whole number becomes its digits."""

DERIVED_KEY_LENGTH = 16
"""Hex digits of the content hash that make a key."""
_DERIVED = re.compile(rf"[0-9a-f]{{{DERIVED_KEY_LENGTH}}}(-(at-)?[0-9]+)?")
MAX_KEY_BYTES = 2_000
"""Most bytes of a key in UTF-8. An index of PostgreSQL takes 2,704 bytes for account, batch and key together."""


def is_derived(key: str, digest: str) -> bool:
    """Return whether a key was derived from the digest of a job's content, because its caller gave it none."""
    return key == digest[:DERIVED_KEY_LENGTH] or key.startswith(f"{digest[:DERIVED_KEY_LENGTH]}-")


def looks_derived(key: str) -> bool:
    """Return whether a key has the form of one that was derived from a job's content."""
    return _DERIVED.fullmatch(key) is not None


def checked_key(key: object, *, position: int | None = None) -> str:
    """Return a key as text.

    Args:
        key: The key: text, or a whole number.
        position: Position of the job in its input, from 0, for the error; None for a single job.

    Raises:
        InvalidJobError: It is neither, or a text that not every ledger can hold.
    """
    text = key_or_problem(key)
    if isinstance(text, str):
        return text
    where = "" if position is None else f" (item {position} of the input)"
    raise InvalidJobError([Problem("key", text.message + where)])


def checked_batch(name: object) -> str:
    """Return the name of a batch as text, by the rule of keys; None and "" name what is unnamed.

    Raises:
        ConfigurationError: It is no text or whole number, or a text that not every ledger can hold.
    """
    text = "" if name is None or name == "" else key_or_problem(name)
    if isinstance(text, Problem):
        raise ConfigurationError(f"name of a batch: {text.message}")
    return text


def key_or_problem(key: object) -> str | Problem:
    """Return a key as text, or the problem with it."""
    try:
        # `str.__str__`, because members of enumerations print their names.
        text = str.__str__(key) if isinstance(key, str) else str(_whole_number(key))
        length = len(text.encode())
    except TypeError:
        return Problem("key", f"expected text or a whole number, got {type(key).__name__}")
    except UnicodeEncodeError:
        return Problem("key", "expected Unicode text, got a lone surrogate")
    except ValueError:
        # Python refuses to print numbers of thousands of digits.
        return Problem("key", f"expected at most {MAX_KEY_BYTES:,} bytes, got more")
    if not text:
        return Problem("key", "is empty")
    if "\0" in text:
        return Problem("key", "expected text without NUL characters, got one")
    if length > MAX_KEY_BYTES:
        return Problem("key", f"expected at most {MAX_KEY_BYTES:,} bytes, got {length:,}")
    return text


def _whole_number(key: object) -> int:
    """Return the value of an integer of any library.

    Raises:
        TypeError: It is none, or a truth value.
    """
    if isinstance(key, bool):
        raise TypeError(key)
    return operator.index(key)  # type: ignore[arg-type]  # raises TypeError for anything else
